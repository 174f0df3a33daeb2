"""The components of training: batches, masks, losses, hard negatives, checkpoints."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from ldot_milvus.errors import InputError, UsageError
from ldot_milvus.models.lightningdot.pretraining import IGNORE_INDEX, cross_modal_retrieval
from ldot_milvus.regions import Regions
from ldot_milvus.training.batches import Batches, by_length, drop_features, drop_words, pad, tokenize
from ldot_milvus.training.checkpoints import copy_folder, newest, recovered, replace_folder
from ldot_milvus.training.contrastive import both_directions, fold_scale, soft_targets, standardised, unfold_scale
from ldot_milvus.training.data import CaptionedPhotos
from ldot_milvus.training.hard_negatives import mine_hard_negatives
from ldot_milvus.training.masking import Vocabulary, mask_regions, mask_words
from ldot_milvus.training.recipe import Stage
from ldot_milvus.training.stages import checkpoint_activations
from ldot_milvus.training.trainer import cosine, linear
from tests.two_processes import PAIRS, WIDTH, objective_and_batches, photos

WORDS = Vocabulary(mask=103, first=104, size=130)


def batches(**stage: object) -> Batches:
    tokens = [[[101, 104 + n % 20, 102], [101, 105, 106, 102]] for n in range(40)]
    return Batches(photos(), tokens, Stage.model_validate({"task": "retrieval", "epochs": 1, "batch_size": 8, **stage}),
                   WORDS)  # fmt: skip


@pytest.mark.parametrize("captions", [1, 2])
def test_an_epoch_shows_every_caption_once_and_photos_of_a_batch_differ(captions: int) -> None:
    some = batches(captions_per_photo=captions)
    seen = []
    for number in range(some.epoch_length):
        rows, turns = some.pair_indices(number)
        assert len(rows) == 8
        assert len(set(rows[::captions].tolist())) == 8 // captions
        assert (rows.reshape(-1, captions) == rows[::captions, None]).all()
        seen += zip(rows.tolist(), turns.tolist(), strict=True)
    assert sorted(seen) == [(row, turn) for row in range(40) for turn in range(2)]
    assert (
        some.pair_indices(some.epoch_length)[0].tolist() != some.pair_indices(0)[0].tolist()
    )  # another order in the next


def test_a_batch_depends_on_its_number_alone() -> None:
    options = {"words_dropped": 0.3, "feature_dropout": 0.3, "regions_kept": 2}
    straight, later = batches(**options), batches(**options)
    for number in range(5):
        expected = straight[number]
    ours = later[4]
    for name in ("ids", "mask", "features", "boxes", "region_mask"):
        assert torch.equal(getattr(ours, name), getattr(expected, name))
    assert ours.features.shape == (8, 2, WIDTH)


def test_the_captions_of_a_photo_share_its_regions() -> None:
    some = batches(captions_per_photo=2)
    batch, (rows, turns) = some[0], some.pair_indices(0)
    assert (len(batch.features), len(batch.ids)) == (4, 8)
    for text, (row, turn) in enumerate(zip(rows.tolist(), turns.tolist(), strict=True)):
        assert batch.ids[text][batch.mask[text]].tolist() == [[101, 104 + row % 20, 102], [101, 105, 106, 102]][turn]
        regions = batch.features[text // 2][batch.region_mask[text // 2]]
        assert torch.equal(regions, torch.from_numpy(photos().regions(row).features))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 9, "captions_per_photo": 3}, "a photo has 2 captions, fewer than captions_per_photo"),
        ({"batch_size": 82, "captions_per_photo": 2}, "40 photos are too few for batches of 41 different photos"),
    ],
)
def test_batches_that_the_photos_cannot_fill_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        batches(**options)


def test_the_loss_of_several_captions_of_a_photo() -> None:
    """A text has one photo; a photo shares its target among its captions, as if each were a photo's only one."""
    logits = torch.randn(6, 3)
    ours = both_directions(logits, torch.eye(3).repeat_interleave(2, 0))
    texts = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 0, 1, 1, 2, 2]))
    images = logits.T.log_softmax(1)
    own = torch.stack([images[0, :2], images[1, 2:4], images[2, 4:]])
    torch.testing.assert_close(ours, (texts - own.mean()) / 2)


def test_processes_share_a_batch() -> None:
    """The batches of two processes together are the batch of one; they agree on it without communication."""
    _, joined = objective_and_batches("alignment", 0, 1)
    parts = [objective_and_batches("alignment", process, 2)[1][3] for process in range(2)]
    whole = joined[3]
    assert len(whole.ids) == PAIRS
    for row in range(PAIRS):
        part, place = parts[row // 8], row % 8
        assert torch.equal(part.ids[place][part.mask[place]], whole.ids[row][whole.mask[row]])
        assert torch.equal(part.features[place][part.region_mask[place]], whole.features[row][whole.region_mask[row]])


def test_hard_negatives_follow_their_pair() -> None:
    some = batches(hard_negatives=1)
    hard = np.full((40, 3, 2), -1, np.int32)
    for row in range(40):
        hard[row, :2] = [[(row + 1) % 40, 1], [(row + 2) % 40, -1]]
    some.hard = hard
    followed = 0
    for number in range(some.epoch_length):
        rows, turns = some.pair_indices(number)
        assert len(set(rows.tolist())) == 8
        for (row, other), (_, turn) in zip(rows.reshape(-1, 2), turns.reshape(-1, 2), strict=True):
            followed += (other - row) % 40 in (1, 2)
            assert (other - row) % 40 != 1 or turn == 1
    assert followed > 0.8 * 4 * some.epoch_length  # the rest had all of theirs in the batch already


def test_mining_finds_the_nearest_wrong_answers() -> None:
    """Photo n is similar to photo n + 1 of its pair; captions have the vectors of their photos."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=(5, 16)).repeat(2, axis=0)
    images = (base + 0.1 * rng.normal(size=base.shape)).astype(np.float32)
    owner = np.arange(10).repeat(2)
    texts = (images[owner] + 0.05 * rng.normal(size=(20, 16))).astype(np.float32)
    hard = mine_hard_negatives(texts, images, owner, pool=4)
    for photo in range(10):
        assert photo ^ 1 in hard[photo, 0]
        assert photo not in hard[photo, :, 0]
        assert len(set(hard[photo, :, 0].tolist())) == 4
    caption = hard[3, 0, 1]
    nearest = max((texts[2 * 2 + turn] @ images[3], turn) for turn in range(2))[1]
    assert caption == nearest


def test_mining_with_too_few_photos() -> None:
    hard = mine_hard_negatives(np.eye(2, 4, dtype=np.float32), np.eye(2, 4, dtype=np.float32), np.arange(2), pool=6)
    assert hard[0].tolist() == [[1, 0], *[[-1, -1]] * 5]


def test_masked_words() -> None:
    rng = np.random.default_rng(0)
    ids = [101, *range(104, 128), 102]
    drawn = [mask_words(ids, 0.15, WORDS, rng) for _ in range(400)]
    shown, labels = (np.array(part) for part in zip(*drawn, strict=True))
    asked = labels != IGNORE_INDEX
    assert (labels[asked] == np.tile(ids, (400, 1))[asked]).all()
    assert (shown[~asked] == np.tile(ids, (400, 1))[~asked]).all()
    assert not asked[:, [0, -1]].any()
    assert asked.any(1).all()
    assert asked[:, 1:-1].mean() == pytest.approx(0.15, abs=0.01)
    assert (shown[asked] == WORDS.mask).mean() == pytest.approx(0.8, abs=0.03)
    assert (shown[asked] == labels[asked]).mean() == pytest.approx(0.1, abs=0.03)
    assert shown[asked].min() >= WORDS.mask
    assert mask_words([101, 110, 102], 1e-9, WORDS, rng)[1] == [IGNORE_INDEX, 110, IGNORE_INDEX]


def test_masked_regions() -> None:
    rng = np.random.default_rng(0)
    marks = [mask_regions(20, 0.15, rng) for _ in range(400)]
    assert all(mark.any() for mark in marks)
    assert np.mean(marks) == pytest.approx(0.16, abs=0.02)


def test_dropout_of_words_and_features() -> None:
    rng = np.random.default_rng(0)
    texts = [drop_words([101, *range(104, 124), 102], 0.15, rng) for _ in range(300)]
    assert all(text[0] == 101 and text[-1] == 102 for text in texts)
    assert np.mean([len(text) for text in texts]) == pytest.approx(2 + 20 * 0.85, abs=0.3)
    factors = drop_features((100, 100), 0.1, rng)
    assert factors.mean() == pytest.approx(1, abs=0.02)
    assert set(np.unique(factors == 0)) == {True, False}


def test_regions_that_do_not_fit_are_named() -> None:
    good = Regions(np.ones((2, 4), np.float32), np.ones((2, 7), np.float32), np.ones(2, np.float32))
    some = CaptionedPhotos(["a.jpg", "b.jpg"], [["x"], ["y"]], [lambda row: good], width=5)
    with pytest.raises(InputError, match=r"b\.jpg: its regions have 4 features, the model reads 5"):
        some.regions(1)


def test_captions_of_another_vocabulary_are_refused(tiny_model: str) -> None:
    some = CaptionedPhotos(["a.jpg"], [[[101, 20000, 102]]], [lambda row: None], width=5)
    with pytest.raises(UsageError, match=r"a\.jpg: a caption has token ids above the model's 156"):
        tokenize(AutoTokenizer.from_pretrained(tiny_model), some, 20, 156)


@pytest.mark.parametrize("read", [WIDTH, WIDTH - 2])
def test_scale_is_folded_in_and_out(read: int) -> None:
    (some,) = standardised(photos())
    linear_layer = torch.nn.Linear(read, 5)
    before = copy.deepcopy(linear_layer.state_dict())
    plain, scaled = (torch.from_numpy(part.features[:, :read]) for part in (photos().regions(3), some.regions(3)))
    with torch.inference_mode():
        expected = linear_layer(scaled)
        fold_scale(linear_layer, some)
        torch.testing.assert_close(linear_layer(plain), expected, atol=1e-4, rtol=1e-4)
        unfold_scale(linear_layer, some)
    for name, tensor in linear_layer.state_dict().items():
        torch.testing.assert_close(tensor, before[name], atol=1e-5, rtol=1e-4)


def test_lengths_are_sorted_and_nothing_is_lost() -> None:
    _, mask = pad([[1] * n for n in (5, 2, 9, 1, 7, 3, 3)])
    seen = []
    for rows, length in by_length(mask, groups=3):
        assert int(mask[rows].sum(1).max()) == length
        seen += rows.tolist()
    assert sorted(seen) == list(range(7))


def test_soft_targets_include_captions_of_similar_meaning() -> None:
    caption_embeddings = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0]]), dim=1)
    target = soft_targets(caption_embeddings, 0.2, 0.05)
    assert target[0, 1] == pytest.approx(0.1, abs=1e-3)
    assert target[0, 2] < 1e-6
    torch.testing.assert_close(target.sum(1), torch.ones(3))


def test_the_loss_is_that_of_the_published_code() -> None:
    """:func:`cross_modal_retrieval` is compared with the authors' outputs in another test."""
    text, image = torch.randn(6, 8), torch.randn(6, 8)
    ours = both_directions(text @ image.T, torch.eye(6))
    torch.testing.assert_close(ours, cross_modal_retrieval(text, image).mean())


@pytest.mark.parametrize("shape", [cosine, linear])
def test_learning_rates(shape) -> None:
    factors = [shape(100, 10)(step) for step in range(101)]
    assert factors[:10] == pytest.approx([(n + 1) / 10 for n in range(10)])
    assert factors[9:] == sorted(factors[9:], reverse=True)
    assert factors[-1] == pytest.approx(0)
    assert shape(5, 0)(0) == pytest.approx(1)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    found = []
    for checkpointing in (False, True):
        objective, some = objective_and_batches("vmlm", 0, 1)
        if checkpointing:
            checkpoint_activations(objective.scorer.model)
            layer = objective.scorer.model.lightningdot.text_model.encoder.layer[0]
            assert layer.gradient_checkpointing
        objective.train()
        objective(some[0]).backward()
        found.append({name: p.grad for name, p in objective.named_parameters() if p.grad is not None})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)


def test_a_folder_is_replaced_atomically(tmp_path: Path) -> None:
    target = tmp_path / "best"
    replace_folder(target, lambda folder: (folder / "x").write_text("1"))

    def dies(folder: Path) -> None:
        (folder / "x").write_text("2")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_folder(target, dies)
    assert (target / "x").read_text() == "1"
    target.rename(tmp_path / "best.old")  # killed between the two steps of putting a new one in its place
    assert (recovered(target) / "x").read_text() == "1"
    replace_folder(target, lambda folder: (folder / "x").write_text("3"))
    assert (target / "x").read_text() == "3"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best"]


def test_a_copy_of_a_read_only_folder_is_writable(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "regions").mkdir(parents=True)
    (source / "regions" / "x").write_text("1")
    (source / "README.md").write_text("card")
    (source / "regions" / "x").chmod(0o444)
    for folder in (source / "regions", source):
        folder.chmod(0o555)
    copy_folder(source, tmp_path / "copy", "README.md")
    source.chmod(0o755)
    (source / "regions").chmod(0o755)
    found = {path.name: path.stat().st_mode & 0o200 for path in (tmp_path / "copy").rglob("*")}
    assert found == {"regions": 0o200, "x": 0o200}


def test_an_incomplete_checkpoint_is_ignored(tmp_path: Path) -> None:
    assert newest(tmp_path / "nowhere") is None
    for name in ("step-000000010", "step-000000002", "step-000000020.tmp"):
        (tmp_path / name).mkdir()
    found = newest(tmp_path)
    assert found is not None
    assert found.name == "step-000000010"
