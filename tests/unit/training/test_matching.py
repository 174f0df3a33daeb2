"""Training an EDJE re-ranker: the choice of pairs, the loss, teachers, and a run over tokens of two first stages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldot_milvus import load_embedder, load_reranker
from ldot_milvus.errors import ModelError, UsageError
from ldot_milvus.images import open_image
from ldot_milvus.models.base import ModelFiles
from ldot_milvus.models.edje.configuration import EdjeConfig
from ldot_milvus.models.edje.joint_encoder import EdjeReranker
from ldot_milvus.models.lightningdot.cross_attention import CrossAttentionReranker
from ldot_milvus.models.patches import PatchFeatures
from ldot_milvus.models.registry import FAMILIES, register_family
from ldot_milvus.training.batches import Batch, Batches
from ldot_milvus.training.matching import AlignmentTeacher, EdjeScorer, MatchingObjective, matched_and_nearest
from ldot_milvus.training.recipe import Recipe, Stage
from ldot_milvus.training.run import train
from tests.training_data import BODY, WIDTH, add_reranker, write_photos, write_start
from tests.two_processes import photos

EDJE = {"scoring": "compressed", "compressed_tokens": 4, "adapter_hidden": 32, "adapter_heads": 2}
STAGE = {"task": "rerank", "epochs": 1, "batch_size": 16, "learning_rate": 1e-3}


def test_pairs_are_the_right_ones_and_the_nearest_wrong_ones() -> None:
    similarities = torch.tensor([[9.0, 1.0, 2.0], [4.0, 0.0, 3.0], [5.0, 6.0, 1.0]])
    texts, images = matched_and_nearest(similarities)
    assert list(zip(texts.tolist(), images.tolist(), strict=True)) == [
        (0, 0), (1, 1), (2, 2),  # right
        (0, 2), (1, 0), (2, 1),  # the photo that each text finds nearest
        (2, 0), (2, 1), (1, 2),  # the text that each photo finds nearest
    ]  # fmt: skip
    assert similarities[0, 0] == 9


def test_a_batch_knows_what_the_first_stage_says_of_its_pairs() -> None:
    tokens = [[[101, 104 + n, 102], [101, 105, 102]][: 1 + n % 2] for n in range(40)]
    rng = np.random.default_rng(0)
    texts, images = rng.normal(size=(60, 6)).astype(np.float32), rng.normal(size=(40, 6)).astype(np.float32)
    some = Batches(photos(), tokens, Stage.model_validate({**STAGE, "batch_size": 8}), None,  # type: ignore[arg-type]
                   first_stage=(texts, images))  # fmt: skip
    rows, turns = some.pair_indices(3)
    batch = some[3]
    assert isinstance(batch, Batch)
    first = np.cumsum([0, *(len(captions) for captions in tokens)])
    for i, (row, turn) in enumerate(zip(rows, turns, strict=True)):
        for j, other in enumerate(rows):
            assert batch.similarities is not None
            assert batch.similarities[i, j].item() == pytest.approx(texts[first[row] + turn] @ images[other], abs=1e-5)


def network(**changes: Any) -> EdjeReranker:
    torch.manual_seed(0)
    body = {**BODY, "vocab_size": 130, "max_position_embeddings": 80}
    settings = {"compressed_tokens": 4, "adapter_hidden": 32, "adapter_heads": 2, **changes}
    return EdjeReranker(EdjeConfig(bert_config=body, token_dim=WIDTH, **settings)).eval()


def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    ids = torch.tensor([[101, 104 + n, 102] for n in range(5)])
    tokens = torch.randn(5, 7, WIDTH, generator=generator)
    whole = Batch(ids, torch.ones(5, 3, dtype=torch.bool), tokens, torch.rand(5, 7, 7, generator=generator),
                  torch.ones(5, 7, dtype=torch.bool), similarities=torch.randn(5, 5, generator=generator))  # fmt: skip
    whole.complete = whole
    return whole


def test_the_loss_is_that_of_the_paper() -> None:
    """Binary cross-entropy with the labels, and with the sigmoid of the teacher's logits."""
    student, teacher, some = EdjeScorer(network()), EdjeScorer(network(compressed_tokens=None)), batch()
    assert some.similarities is not None
    texts, images = matched_and_nearest(some.similarities)

    def logits(scorer: EdjeScorer) -> torch.Tensor:
        pairs = zip(texts.split(1), images.split(1), strict=True)
        return torch.cat([scorer.model(some.ids[t], None, some.features[p]) for t, p in pairs]).double()

    def cross_entropy(probability: torch.Tensor) -> torch.Tensor:
        ours = logits(student).sigmoid()
        return -(probability * ours.log() + (1 - probability) * (1 - ours).log()).mean()

    with torch.inference_mode():
        matching, distilled = cross_entropy((texts == images).double()), cross_entropy(logits(teacher).sigmoid())
        stage = Stage.model_validate({**STAGE, "distilled": 0.3, "teacher": "x"})
        plain = MatchingObjective(student, stage)(some)
        torch.testing.assert_close(plain.double(), matching, atol=1e-5, rtol=0)
        taught = MatchingObjective(student, stage, teacher)(some)
    torch.testing.assert_close(taught.double(), 0.7 * matching + 0.3 * distilled, atol=1e-5, rtol=0)


def test_an_alignment_teacher_has_its_zero_between_right_and_wrong(tmp_path: Path, tiny_model: str) -> None:
    add_reranker(write_start(tmp_path, tiny_model), "alignment")
    model = CrossAttentionReranker.from_pretrained(tmp_path / "reranker").eval()
    some = batch()
    assert some.similarities is not None
    texts, images = matched_and_nearest(some.similarities)
    with torch.inference_mode():
        ours = AlignmentTeacher(model).pairs(some, texts, images)
        raw = model(some.ids[texts], some.mask[texts], some.features[images], some.boxes[images])
    torch.testing.assert_close(ours - ours[0], raw - raw[0], atol=1e-4, rtol=1e-4)
    assert ours[:5].mean().item() == pytest.approx(-ours[5:].mean().item(), abs=1e-4)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_photos(tmp_path_factory.mktemp("world"))


def recipe(world: tuple[Path, Path], start: Path, stage: dict, **tables: Any) -> Recipe:
    pairs, regions = world
    data = {"train": [str(pairs)], "dev": [str(pairs)], "regions": [str(regions)]}
    return Recipe.model_validate(
        {"data": data, "start": {"model": str(start), "reranker": EDJE}, "stages": [{**STAGE, **stage}], **tables}
    )


def losses(stage: Path) -> list[float]:
    entries = map(json.loads, (stage / "log.jsonl").read_text().splitlines())
    return [entry["loss"]["cmr"] for entry in entries if "loss" in entry]


@pytest.mark.slow  # 15 seconds
def test_it_learns_over_regions_and_loads_as_a_reranker(
    world: tuple[Path, Path], tiny_model: str, tmp_path: Path
) -> None:
    start = write_start(tmp_path / "start", tiny_model)
    learning = {"epochs": 60, "evaluate_every": 360, "standardise": True, "learning_rate": 2e-3, "hard_negatives": 1}
    model = train(recipe(world, start, learning, finish={"dot_weight": True, "storage": "int8"}), tmp_path / "out")
    assert {path.name for path in model.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    during = losses(tmp_path / "out" / "train")
    assert np.mean(during[-3:]) < 0.5 < during[0]  # 0.64 says nothing of a pair but that one of three is right
    embedder = load_embedder(str(start), device="cpu")
    reranker = load_reranker(str(model), embedder)
    assert reranker is not None
    kept = reranker.keep(embedder.image_features(_regions(world)))
    assert {record["tokens"].shape for record in kept} == {(4, BODY["hidden_size"])}
    assert np.isfinite(reranker.score(["a b c"] * len(kept), kept)).all()
    with pytest.raises(ModelError, match=f"reads image tokens of width {WIDTH}, and model 'ldot-mini' gives 3580"):
        load_reranker(str(model), load_embedder("ldot-mini", device="cpu"))


def _regions(world: tuple[Path, Path]) -> list:
    from ldot_milvus.regions.files import open_regions

    stored = open_regions(world[1])
    return [stored.read(name) for name in stored.names[:3]]


def test_an_uncompressed_teacher_and_a_second_stage(world: tuple[Path, Path], tiny_model: str, tmp_path: Path) -> None:
    start = write_start(tmp_path / "start", tiny_model)
    alone = recipe(world, start, {"steps": 2, "epochs": None})
    uncompressed = alone.start.model_copy(update={"reranker": {**EDJE, "scoring": "uncompressed"}})
    teacher = train(alone.model_copy(update={"start": uncompressed}), tmp_path / "teacher")
    assert EdjeReranker.from_pretrained(teacher).config.compressed_tokens is None
    taught = {"steps": 2, "epochs": None, "teacher": str(teacher), "distilled": 0.5}
    stages = [{**STAGE, **taught, "name": "one"}, {**STAGE, **taught, "name": "two", "learning_rate": 1e-9}]
    both = Recipe.model_validate({**recipe(world, start, {}).model_dump(), "stages": stages})
    model = train(both, tmp_path / "out")
    first, last = (EdjeReranker.from_pretrained(folder) for folder in (tmp_path / "out" / "one" / "best", model))
    for name, tensor in first.state_dict().items():  # the second stage continued from the first
        torch.testing.assert_close(last.state_dict()[name], tensor, atol=1e-6, rtol=1e-4)


class PatchFiles(ModelFiles):
    """A first stage whose tokens are the rows of a photo of 4 x 4 pixels, with an alpha of zero."""

    dim = 4  # type: ignore[assignment]

    def load(self, *, device: str | None = None, dtype: str | None = None) -> Any:
        return PatchEmbedder(self)


class PatchEmbedder:
    dim, least_side, vocabulary_size, reranker, former_fingerprints = 4, None, None, None, ()

    def __init__(self, files: PatchFiles) -> None:
        self.name, self.fingerprint = files.name, files.fingerprint

    def image_features(self, images: Sequence[Any]) -> list[PatchFeatures]:
        pixels = [np.asarray(open_image(image).image.resize((4, 4)), np.float32) / 255 for image in images]
        tokens = [torch.from_numpy(each.reshape(4, 12)) for each in pixels]
        return [PatchFeatures(each, each.mean(0)[:4].numpy()) for each in tokens]

    def encode_features(self, features: Sequence[PatchFeatures]) -> np.ndarray:
        return np.stack([each.vector for each in features])

    def encode_images(self, images: Sequence[Any]) -> np.ndarray:
        return self.encode_features(self.image_features(images))

    def encode_texts(self, texts: Sequence[Any]) -> np.ndarray:
        return np.stack([np.full(4, len(text) / 10, np.float32) for text in texts])


def test_any_first_stage(tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Photos, and a model of another family whose tokens are those of a vision transformer."""
    monkeypatch.setattr("ldot_milvus.models.registry.FAMILIES", dict(FAMILIES))
    register_family("patch", f"{__name__}:PatchFiles")
    (tmp_path / "patch").mkdir()
    (tmp_path / "patch" / "config.json").write_text('{"model_type": "patch"}')
    (tmp_path / "patch" / "model.safetensors").write_bytes(b"")
    (tmp_path / "photos").mkdir()
    for number in range(8):
        Image.new("RGB", (8, 8), (30 * number, 100, 200)).save(tmp_path / "photos" / f"{number}.png")
        (tmp_path / "photos" / f"{number}.json").write_text(json.dumps({"captions": [f"photo {number}"]}))
    content = {
        "data": {"train": [str(tmp_path / "photos")], "dev": [str(tmp_path / "photos")]},
        "start": {"model": str(tmp_path / "patch"), "reranker": {**EDJE, "text": _bert(tmp_path, tiny_model)}},
        "stages": [{**STAGE, "batch_size": 4}],
    }
    model = train(Recipe.model_validate(content), tmp_path / "out")
    embedder = load_embedder(str(tmp_path / "patch"))
    reranker = load_reranker(str(model), embedder)
    assert reranker is not None
    kept = reranker.keep(embedder.image_features([tmp_path / "photos" / "0.png"]))
    assert kept[0]["tokens"].shape == (4, BODY["hidden_size"])
    content["start"]["reranker"] = EDJE
    with pytest.raises(
        UsageError, match=r"the text encoder of .*patch' is not a BERT: name one by start\.reranker\.text"
    ):
        train(Recipe.model_validate(content), tmp_path / "other")


def _bert(tmp_path: Path, tiny_model: str) -> str:
    from transformers import AutoTokenizer, BertConfig, BertModel

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    BertModel(BertConfig(**{**BODY, "vocab_size": len(tokenizer)})).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    return str(tmp_path / "bert")


@pytest.mark.parametrize(
    ("stage", "changes", "message"),
    [
        ({}, {"adapter_size": 3}, r"start\.reranker\.adapter_size: no such setting"),
        ({}, {"adapter_heads": 5}, r"start\.reranker: these settings do not fit \(token_dim 24 is not a multiple"),
        ({}, {"bert_config": {"hidden_size": 48}}, r"start\.reranker: these settings do not fit \(.* has shape"),
        ({"teacher": "no-such", "distilled": 0.5}, {}, "no-such"),
        ({"teacher": "ldot-mini", "distilled": 0.5}, {}, "reads tokens of width 3580, and the model gives 24"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    world: tuple[Path, Path], tiny_model: str, tmp_path: Path, stage: dict, changes: dict, message: str
) -> None:
    start = write_start(tmp_path / "start", tiny_model)
    whole = recipe(world, start, stage)
    whole = whole.model_copy(update={"start": whole.start.model_copy(update={"reranker": {**EDJE, **changes}})})
    with pytest.raises(UsageError, match=message):
        train(whole, tmp_path / "out")
