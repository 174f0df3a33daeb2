"""An EDJE re-ranker that starts from an alignment re-ranker: what it knows before training, and its two losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ldot_milvus import load_embedder, load_reranker
from ldot_milvus.errors import ModelError, UsageError
from ldot_milvus.models.edje.joint_encoder import EdjeReranker
from ldot_milvus.models.lightningdot.cross_attention import CrossAttentionReranker
from ldot_milvus.models.patches import PatchFeatures
from ldot_milvus.regions import Regions
from ldot_milvus.regions.files import open_regions
from ldot_milvus.training.batches import Batch
from ldot_milvus.training.edje_alignment import from_alignment
from ldot_milvus.training.matching import EdjeScorer, matched_and_nearest
from ldot_milvus.training.recipe import Recipe
from ldot_milvus.training.run import train
from tests.training_data import WIDTH, add_reranker, write_photos, write_start
from tests.unit.training.test_matching import batch, losses

ALIGNED = {"scoring": "aligned", "compressed_tokens": 4, "adapter_hidden": 32}
STAGE = {"task": "rerank", "epochs": 1, "batch_size": 16, "learning_rate": 1e-3}
ALIGNMENT = {**STAGE, "name": "alignment", "loss": "alignment"}
MATCHING = {**STAGE, "name": "matching", "hard_negatives": 1}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_photos(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, tiny_model: str) -> Path:
    return add_reranker(write_start(tmp_path_factory.mktemp("start"), tiny_model), "alignment")


def recipe(world: tuple[Path, Path], start: Path, *stages: dict, **reranker: Any) -> Recipe:
    pairs, regions = world
    data = {"train": [str(pairs)], "dev": [str(pairs)], "regions": [str(regions)]}
    table = {**ALIGNED, **reranker}
    return Recipe.model_validate(
        {"data": data, "start": {"model": str(start), "reranker": table}, "stages": list(stages)}
    )


class Photos:
    """What the start reads of the training photos."""

    def __init__(self, folder: Path) -> None:
        self._stored = open_regions(folder)

    def __len__(self) -> int:
        return len(self._stored.names)

    def regions(self, row: int) -> Regions:
        return self._stored.read(self._stored.names[row])


def started(world: tuple[Path, Path], start: Path, **settings: Any) -> EdjeReranker:
    photos: Any = Photos(world[1])
    settings = {"compressed_tokens": 4, "adapter_hidden": 32, "bert_config": {}, **settings}
    return from_alignment(load_embedder(str(start), device="cpu"), settings, None, photos)[0].eval()


@torch.inference_mode()
def test_the_start_scores_as_the_alignment_reranker(world: tuple[Path, Path], start: Path) -> None:
    """Exactly where compression loses nothing: a kept token is a mean of regions, and these regions are equal."""
    source, some = CrossAttentionReranker.from_pretrained(start / "reranker").eval(), batch()
    features, boxes = some.features[:, :1].expand(-1, 7, -1), some.boxes[:, :1].expand(-1, 7, -1)
    expected = source(some.ids, some.mask, features, boxes)
    ours = started(world, start)(some.ids, some.mask, features, some.region_mask, boxes)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
    assert expected.std() > 0.01


@torch.inference_mode()
def test_the_kept_tokens_of_a_start_differ(world: tuple[Path, Path], start: Path) -> None:
    """Queries that attend to all regions alike would keep the same mean four times."""
    regions = Photos(world[1]).regions(0)
    tokens = started(world, start).adapt(
        torch.from_numpy(regions.features)[None], torch.ones(1, len(regions), dtype=torch.bool),
        torch.from_numpy(regions.boxes)[None],
    )[0][0]  # fmt: skip
    distances = torch.cdist(tokens, tokens)[~torch.eye(4, dtype=torch.bool)]
    assert distances.min() > 0.1 * tokens.norm(dim=1).mean()


@torch.inference_mode()
def test_an_untrained_head_skips_the_joint_layers_without_a_difference(world: tuple[Path, Path], start: Path) -> None:
    model, some = started(world, start), batch()
    torch.nn.init.constant_(model.classifier.bias, 0.7)
    images = model.adapt(some.features, some.region_mask, some.boxes)
    skipped = model.score(some.ids, some.mask, *images)
    model.bert.encoder.layer[1].register_forward_hook(lambda *_: pytest.fail("a joint layer ran"))
    torch.testing.assert_close(model.score(some.ids, some.mask, *images), skipped)
    model = started(world, start)
    torch.nn.init.constant_(model.classifier.bias, 0.7)
    torch.nn.init.constant_(model.classifier.weight, 1e-9)
    torch.testing.assert_close(model.score(some.ids, some.mask, *images), skipped, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_a_pair_has_the_same_score_in_every_batch(world: tuple[Path, Path], start: Path) -> None:
    """Padding, and a text that is encoded once for several images, change nothing."""
    model = started(world, start)
    torch.nn.init.normal_(model.classifier.weight)
    ids = torch.tensor([[101, 104, 102, 0, 0], [101, 105, 106, 107, 102]])
    images, mask = torch.randn(3, 4, 32), torch.ones(3, 4, dtype=torch.bool)
    mask[2, 2:] = False
    texts = torch.tensor([0, 1, 0])
    together = model.score(ids, ids != 0, images, mask, texts)
    for pair, text in enumerate(texts.tolist()):
        words, kept = ids[text, ids[text] != 0][None], images[pair, mask[pair]][None]
        alone = model.score(words, torch.ones_like(words), kept, kept.new_ones(kept.shape[:2], dtype=torch.bool))
        torch.testing.assert_close(alone[0], together[pair], atol=1e-5, rtol=1e-5)


def test_the_joint_layers_see_text_and_image(world: tuple[Path, Path], start: Path) -> None:
    model, some = started(world, start), batch()
    torch.nn.init.normal_(model.classifier.weight)

    def correction(features: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        images, mask = model.adapt(features, some.region_mask, some.boxes)
        assert model.alignment is not None
        alignment = model.alignment(model.encode_words(ids, some.mask), some.mask, images, mask)
        return model.score(ids, some.mask, images, mask) - alignment

    with torch.inference_mode():
        one = correction(some.features, some.ids)
        assert (one - correction(some.features.flip(0), some.ids)).abs().max() > 1e-3
        assert (one - correction(some.features, some.ids.flip(0))).abs().max() > 1e-3


def test_the_zero_is_set_once(world: tuple[Path, Path], start: Path) -> None:
    scorer, some = EdjeScorer(started(world, start)), batch()
    assert some.similarities is not None
    pairs = matched_and_nearest(some.similarities)

    def middle() -> float:
        with torch.inference_mode():
            logits = scorer.eval().pairs(some, *pairs)
        return float(logits[:5].mean() + logits[5:].mean())

    assert abs(middle()) > 1e-3
    scorer.set_zero(some)
    assert middle() == pytest.approx(0, abs=1e-4)
    with torch.no_grad():
        scorer.model.classifier.weight.fill_(0.1)  # the head has learned a zero of its own
    bias = scorer.model.classifier.bias.clone()
    scorer.set_zero(Batch(**{**vars(some), "ids": some.ids.flip(0)}))
    torch.testing.assert_close(scorer.model.classifier.bias, bias)


def test_alignment_then_matching(world: tuple[Path, Path], start: Path, tmp_path: Path) -> None:
    """The first loss leaves the joint layers; the second trains them; the result keeps regions with their boxes."""
    taught = {**ALIGNMENT, "epochs": 6, "distilled": 0.5, "standardise": True}
    model = train(recipe(world, start, taught, {**MATCHING, "standardise": True}), tmp_path / "out")
    during = losses(tmp_path / "out" / "alignment")
    assert during[-1] < during[0]
    first, last = (EdjeReranker.from_pretrained(each) for each in (tmp_path / "out" / "alignment" / "best", model))
    before = started(world, start).state_dict()
    joint = [name for name in before if name.startswith(("bert.encoder.layer.1.", "classifier"))]
    text = [name for name in before if name.startswith(("bert.encoder.layer.0.", "bert.embeddings"))]
    assert min(len(joint), len(text)) >= 5
    for name in joint + text:
        torch.testing.assert_close(first.state_dict()[name], before[name], atol=0, rtol=0)
    for name in joint:
        assert not torch.equal(last.state_dict()[name], before[name]), name
    assert not torch.equal(first.adapter.query, before["adapter.query"])
    embedder = load_embedder(str(start), device="cpu")
    reranker = load_reranker(str(model), embedder)
    assert reranker is not None
    regions = [Photos(world[1]).regions(row) for row in range(3)]
    kept = reranker.keep(regions)
    moved = [Regions(each.features, each.boxes[::-1].copy(), each.confidence) for each in regions]
    assert kept[0]["tokens"].shape == (4, 32)
    assert np.abs(kept[0]["tokens"] - reranker.keep(moved)[0]["tokens"]).max() > 1e-2
    texts = ["a b c", "d e f", "a b c"]
    np.testing.assert_allclose(
        reranker.score(texts, kept), [reranker.score([t], [k])[0] for t, k in zip(texts, kept, strict=True)], atol=1e-4
    )
    with pytest.raises(ModelError, match=r"reads regions, and model .* gives tokens"):
        reranker.keep([PatchFeatures(torch.zeros(5, WIDTH), np.zeros(1, np.float32))])


@pytest.mark.parametrize(
    ("stage", "changes", "message"),
    [
        ({}, {"text": "my-bert"}, r"start\.reranker\.text: scoring 'aligned' starts from the model's own"),
        ({}, {"bert_config": {"num_hidden_layers": 1}}, "text_layers is 1 of 1 layers; at least one must be left"),
        ({}, {"token_dim": 7}, "these settings do not fit"),
        ({}, {"compressed_tokens": 1000}, "compressed_tokens is 1000, and the photos have 432 regions"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    world: tuple[Path, Path], start: Path, tmp_path: Path, stage: dict, changes: dict, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        train(recipe(world, start, {**ALIGNMENT, **stage}, **changes), tmp_path / "out")


def test_a_model_without_alignment_is_refused(world: tuple[Path, Path], tiny_model: str, tmp_path: Path) -> None:
    plain = write_start(tmp_path / "plain", tiny_model)
    with pytest.raises(UsageError, match=r"has no alignment re-ranker to start from: set start\.reranker\.scoring"):
        train(recipe(world, plain, ALIGNMENT), tmp_path / "out")


def test_a_teacher_without_alignment_is_refused(world: tuple[Path, Path], start: Path, tmp_path: Path) -> None:
    short = {"steps": 1, "epochs": None}
    teacher = train(
        recipe(world, start, {**MATCHING, **short}, scoring="compressed", adapter_heads=2), tmp_path / "teacher"
    )
    taught = {**ALIGNMENT, **short, "teacher": str(teacher), "distilled": 0.5}
    with pytest.raises(UsageError, match="has no alignment to distil"):
        train(recipe(world, start, taught), tmp_path / "out")
