"""Every kind of stage improves recall on a small artificial data set, and writes a usable model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldot_milvus import LightningDOTEmbedder, UsageError
from ldot_milvus.evaluation.datasets import Pair, read_pairs
from ldot_milvus.evaluation.evaluate import evaluate
from ldot_milvus.model import LightningDOT, LightningDOTConfig, LightningDOTForPreTraining
from ldot_milvus.regions import open_regions
from ldot_milvus.training.recipe import Recipe
from ldot_milvus.training.run import train
from tests.tolerance import assert_recall, both_bounds
from tests.training_data import BODY, PHOTOS, add_reranker, write_photos, write_start

CHANCE = float(np.mean([100 * k / PHOTOS for k in (1, 5, 10)]))
STAGE = {"batch_size": 16, "learning_rate": 3e-3, "epochs": 5, "schedule": "cosine"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_photos(tmp_path_factory.mktemp("world"), soft_labels=True)


def recipe(world: tuple[Path, Path], start: Path, *stages: dict[str, Any], **more: Any) -> Recipe:
    pairs, regions = map(str, world)
    return Recipe.model_validate({
        "data": {"train": [pairs], "dev": [pairs], "regions": regions},
        "start": {"model": str(start)},
        "stages": [{**STAGE, **stage} for stage in stages],
        "trainer": {"mixed_precision": "no"},
        **more,
    })  # fmt: skip


def asked(world: tuple[Path, Path]) -> list[Pair]:
    return read_pairs([world[0]], regions=[world[1]], split="val")


def measured(folder: Path, world: tuple[Path, Path], rerank: int = 0) -> tuple[float, float]:
    """Mean recall by dot product and re-ranked, as ``ldot eval`` measures it."""
    figures = evaluate(LightningDOTEmbedder(str(folder), device="cpu"), asked(world), rerank=rerank)
    both = [
        float(np.mean([*part["text_to_image"].values(), *part["image_to_text"].values()]))
        for part in (figures, figures.get("reranked", figures))
    ]
    return both[0], both[1]


def logged(out: Path, stage: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / stage / "log.jsonl").read_text().splitlines()]


def test_fine_tuning_with_hard_negatives(world: tuple[Path, Path], tiny_model: str, tmp_path: Path) -> None:
    """All options of a stage together; the saved model has the recall that was measured in training."""
    start = write_start(tmp_path / "start", tiny_model)
    stage = {"task": "retrieval", "hard_negatives": 1, "ema": 0.9, "standardise": True, "regions_kept": 6,
             "feature_dropout": 0.1, "soft_targets": 0.1, "patience": 6}  # fmt: skip
    out = tmp_path / "out"
    model = train(recipe(world, start, stage), out)
    best = max((entry for entry in logged(out, "train") if "dev" in entry), key=lambda entry: entry["mean"])
    assert best["mean"] > 2 * CHANCE
    for folder in (out / "train" / "best", model):
        embedder, pairs = LightningDOTEmbedder(str(folder), device="cpu"), asked(world)
        texts = embedder.encode_texts([caption for pair in pairs for caption in pair.captions])
        images = embedder.encode_images([pair.load() for pair in pairs])
        # Training read the same features, but scaled them.
        bounds = both_bounds(texts @ images.T, np.repeat(np.arange(PHOTOS), 2), near=1e-4)
        assert_recall(best["dev"], bounds)
        assert_recall(evaluate(embedder, pairs), bounds)


def test_pretraining_then_fine_tuning(world: tuple[Path, Path], tiny_model: str, tmp_path: Path) -> None:
    """The losses of all five objectives decrease, and the next stage continues from the pre-trained model."""
    start = write_start(tmp_path / "start", tiny_model)
    mix = {"cmr": 2, "vmlm": 1, "smrm_features": 1, "smrm_kl": 1, "smrm_class": 1}
    stages = [
        {"name": "first", "task": "pretrain", "mix": mix, "epochs": 18, "evaluate_every": 108, "batch_size": 16},
        {"name": "second", "task": "retrieval", "epochs": 2},
    ]
    out = tmp_path / "out"
    chosen = recipe(world, start, *stages, finish={"calibration_anchors": 10})
    model = train(chosen, out)
    losses = [entry["loss"] for entry in logged(out, "first") if "loss" in entry]
    for objective in mix:
        course = [loss[objective] for loss in losses if objective in loss]
        assert min(course[1:]) < course[0] * (0.9 if objective in ("cmr", "vmlm", "smrm_features") else 1), objective
    heads = LightningDOTForPreTraining.from_pretrained(out / "first" / "best")
    assert heads.config.calibration_anchors == 0
    assert measured(model, world)[0] > 2 * CHANCE
    assert LightningDOTEmbedder(str(model)).dim == 16 + 2  # calibrated


@pytest.mark.parametrize("scoring", ["alignment", pytest.param("joint", marks=pytest.mark.slow)])
def test_the_reranker_learns(world: tuple[Path, Path], tiny_model: str, tmp_path: Path, scoring: str) -> None:
    """Re-ranked recall improves, and the dual encoder is unchanged."""
    start = add_reranker(write_start(tmp_path / "start", tiny_model), scoring)
    stage = {"task": "rerank", "hard_negatives": 3, "epochs": 2 if scoring == "alignment" else 10}
    finish = {"dot_weight": scoring == "alignment", "probability": True}
    model = train(recipe(world, start, stage, finish=finish), tmp_path / "out")
    before, after = measured(start, world, rerank=20), measured(model, world, rerank=20)
    assert after[0] == before[0]
    assert after[1] > before[1] + 5
    embedder = LightningDOTEmbedder(str(model), device="cpu")
    assert embedder.calibration is not None  # of a dual encoder that has learned nothing: its scale is noise around 0
    assert embedder.reranker.calibration.scale > 0


@pytest.mark.slow
def test_the_dual_encoder_learns_from_a_new_reranker(world: tuple[Path, Path], tiny_model: str, tmp_path: Path) -> None:
    """As in the recipe of ldot-mini, a re-ranker is trained first and then distilled; the result is stored as int8."""
    start = write_start(tmp_path / "start", tiny_model)
    stages = [
        {"name": "reranker", "task": "rerank", "frozen_text_layers": 0},
        {"name": "dual", "task": "retrieval", "distilled": 1.0, "standardise": True, "epochs": 8},
    ]
    chosen = recipe(world, start, *stages, finish={"storage": "int8"})
    chosen = chosen.model_copy(update={"start": chosen.start.model_copy(update={"reranker": {"scoring": "alignment"}})})
    model = train(chosen, tmp_path / "out")
    embedder = LightningDOTEmbedder(str(model), device="cpu")
    pairs = asked(world)
    texts, regions = [str(pair.captions[0]) for pair in pairs], [pair.load() for pair in pairs]
    dot = embedder.encode_texts(texts) @ embedder.encode_images(regions).T
    kept = embedder.reranker.keep(regions)
    taught = [embedder.reranker.score([text] * len(kept), kept) for text in texts]
    assert np.corrcoef(dot.flatten(), np.concatenate(taught))[0, 1] > 0.3
    assert measured(model, world)[0] > 1.5 * CHANCE


def test_a_teacher_that_reads_more_than_the_dual_encoder(
    world: tuple[Path, Path], tiny_model: str, tmp_path: Path
) -> None:
    """As in the recipe of ldot-mini: the result is reduced, calibrated and stored, and can be trained further."""
    start = write_start(tmp_path / "start", tiny_model)
    stages: list[dict[str, Any]] = [
        {"name": "teacher", "task": "rerank", "epochs": 2},
        {"name": "dual", "task": "retrieval", "distilled": 0.5, "standardise": True, "region_features": 18},
    ]
    out = tmp_path / "out"
    finish = {"calibration_anchors": 10, "storage": "int8", "principal_dim": 12}
    chosen = recipe(world, start, *({"frozen_text_layers": 0, **stage} for stage in stages), finish=finish)
    chosen = chosen.model_copy(update={"start": chosen.start.model_copy(update={"reranker": {"scoring": "alignment"}})})
    model = train(chosen, out)
    reads = LightningDOT.from_pretrained(model).image_model.img_embeddings.img_linear.in_features
    assert (reads, LightningDOTEmbedder(str(model)).dim) == (18, 12 + 2)
    last = max((entry for entry in logged(out, "dual") if "dev" in entry), key=lambda entry: entry["mean"])
    assert measured(model, world)[0] > max(1.5 * CHANCE, last["mean"] - 10)
    tuned = train(recipe(world, model, {"task": "retrieval", "epochs": 1, "learning_rate": 1e-5}), tmp_path / "more")
    assert LightningDOTEmbedder(str(tuned)).dim == 12 + 2
    assert measured(tuned, world)[0] > 1.5 * CHANCE


@pytest.mark.parametrize("scoring", ["alignment", "joint"])
def test_a_reranker_reads_the_first_features(
    world: tuple[Path, Path], tiny_model: str, tmp_path: Path, scoring: str
) -> None:
    """The result ignores those that it does not read, and a later stage reads the same."""
    start = write_start(tmp_path / "start", tiny_model)
    stage = {"task": "rerank", "hard_negatives": 1, "epochs": 1, "region_features": 18, "frozen_text_layers": 0}
    stages = [{"name": name, "standardise": True, **stage} for name in ("first", "second")]
    chosen = recipe(world, start, *stages)
    chosen = chosen.model_copy(update={"start": chosen.start.model_copy(update={"reranker": {"scoring": scoring}})})
    model = train(chosen, tmp_path / "out", most_steps=2)
    embedder = LightningDOTEmbedder(str(model), device="cpu")
    assert embedder.reranker.model.bert.img_embeddings.img_linear.in_features == 18
    (regions,) = [asked(world)[0].load()]
    changed = [regions.features.copy() for _ in range(2)]
    changed[0][:, 18:] += 1
    changed[1][:, :18] += 1
    kept = [embedder.reranker.keep([replace(regions, features=features)]) for features in (regions.features, *changed)]
    same, other = (
        abs(embedder.reranker.score(["a b"], one) - embedder.reranker.score(["a b"], kept[0])) for one in kept[1:]
    )
    assert same < 1e-5 < other


def test_pretraining_of_an_encoder_that_reads_the_first_features(
    world: tuple[Path, Path], tiny_model: str, tmp_path: Path
) -> None:
    """Feature regression predicts those that the encoder reads."""
    stages = [
        {"name": "dual", "task": "retrieval", "region_features": 18},
        {"name": "pretraining", "task": "pretrain", "mix": {"smrm_features": 1}},
    ]
    train(recipe(world, write_start(tmp_path / "start", tiny_model), *stages), tmp_path / "out", most_steps=2)
    heads = LightningDOTForPreTraining.from_pretrained(tmp_path / "out" / "pretraining" / "best")
    assert heads.feature_bias.shape == (18,)


@pytest.mark.parametrize(
    ("stages", "match"),
    [
        ([{"task": "retrieval", "region_features": 25}], "region_features is 25, and the model reads 24"),
        ([{"task": "rerank", "hard_negatives": 1, "region_features": 25}], "is 25, and a region has 24"),
        (
            [{"task": "rerank", "hard_negatives": 1, "region_features": n, "name": str(n)} for n in (18, 20)],
            "20: region_features is 20, and the model's re-ranker reads 18",
        ),
    ],
)  # fmt: skip
def test_features_that_a_network_cannot_read_are_refused(
    world: tuple[Path, Path], tiny_model: str, tmp_path: Path, stages: list[dict[str, Any]], match: str
) -> None:
    start = write_start(tmp_path / "start", tiny_model)
    with pytest.raises(UsageError, match=match):
        train(
            recipe(world, start, *({"frozen_text_layers": 0, **stage} for stage in stages)),
            tmp_path / "out",
            most_steps=1,
        )


def test_the_authors_files(tiny_model: str, tmp_path: Path) -> None:
    """Pre-train on the authors' LMDBs, with token ids and soft labels in the form of their script."""
    authors = Path(__file__).parents[2] / "golden" / "authors_data"
    regions = authors / "coco_val2014" / "feat_th0.2_max100_min10"
    fixed = regions.with_name("feat_numbb20")
    start = write_start(tmp_path / "start", tiny_model)
    first = open_regions(regions).read(open_regions(regions).names[0])
    assert first.soft_labels is not None
    body = {**BODY, "max_position_embeddings": 64, "vocab_size": 28996}
    config = LightningDOTConfig(text_config=body, image_config=body, region_dim=first.features.shape[1],
                                region_classes=first.soft_labels.shape[1], projection_dim=16)  # fmt: skip
    LightningDOT(config).save_pretrained(start)
    stage = {"task": "pretrain", "steps": 6, "batch_size": 2, "mix": {"smrm_kl": 1, "smrm_class": 1, "vmlm": 1}}
    text = str(authors / "itm_coco_val_base-cased.db")
    chosen = Recipe.model_validate({
        "data": {"train": [text], "dev": text, "regions": [str(regions)], "dev_regions": str(fixed)},
        "start": {"model": str(start)},
        "stages": [{**stage}],
        "trainer": {"mixed_precision": "no", "log_every": 6},
    })  # fmt: skip
    train(chosen, tmp_path / "out")
    (losses,) = (entry["loss"] for entry in logged(tmp_path / "out", "train") if "loss" in entry)
    assert losses.keys() <= {"smrm_kl", "smrm_class", "vmlm"}
    assert len(losses) > 1
    assert all(0 < loss < 20 for loss in losses.values())
