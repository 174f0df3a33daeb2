"""The evaluation of a small model: re-ranking, curve, folds, pool, published figures, pictures."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldot_milvus import LightningDOTEmbedder
from ldot_milvus.errors import InputError, UsageError
from ldot_milvus.evaluation import curve, report
from ldot_milvus.evaluation import evaluate as module
from ldot_milvus.evaluation.datasets import Pair
from ldot_milvus.evaluation.evaluate import evaluate
from ldot_milvus.models.base import KeptImage
from ldot_milvus.regions import Regions
from tests.conftest import make_photo
from tests.tolerance import assert_recall, both_bounds, mean_bounds, recall_bounds


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    rng = np.random.default_rng(0)
    letters = list("abcdefghijklmnopqrstuvwxyz")
    return [Pair(f"{n:02}", lambda n=n: make_photo(n), [" ".join(rng.choice(letters, 5)) for _ in range(1 + n % 3)])
            for n in range(24)]  # fmt: skip


def dot_products(embedder: LightningDOTEmbedder, pairs: list[Pair]) -> tuple[np.ndarray, np.ndarray]:
    images = embedder.encode_images([pair.load() for pair in pairs])
    texts = embedder.encode_texts([caption for pair in pairs for caption in pair.captions])
    return texts @ images.T, np.repeat(np.arange(len(pairs)), [len(pair.captions) for pair in pairs])


def cross_scores(embedder: LightningDOTEmbedder, pairs: list[Pair]) -> np.ndarray:
    """Return the re-ranker's scores (captions, photos) of stored regions, which are in half precision."""
    captions = [caption for pair in pairs for caption in pair.captions]
    kept = embedder.reranker.keep(embedder.image_features([pair.load() for pair in pairs]))
    return np.stack([embedder.reranker.score(captions, [one] * len(captions)) for one in kept], axis=1)


def test_one_pass_measures_every_number_re_ranked(tiny: LightningDOTEmbedder, pairs: list[Pair]) -> None:
    result = evaluate(tiny, pairs, rerank=7, curve=(0, 5, 10, 20))
    scores, owner = dot_products(tiny, pairs)
    crossed = cross_scores(tiny, pairs) + tiny.reranker.dot_weight * scores
    assert_recall(result, both_bounds(scores, owner))
    assert [point["M"] for point in result["curve"]] == [0, 5, 7, 10, 20]
    assert_recall(result["curve"][0], both_bounds(scores, owner))
    for point in result["curve"][1:]:
        bounds = both_bounds(scores, owner, crossed=crossed, count=point["M"])
        alone = evaluate(tiny, pairs, rerank=point["M"])
        for figures in (point, alone["reranked"]):
            assert figures["M"] == point["M"]
            assert_recall(figures, bounds)
        assert alone.keys() == {"images", "captions", "text_to_image", "image_to_text", "reranked", "seconds"}
    assert result["reranked"] == result["curve"][2]
    assert len({json.dumps(point["text_to_image"]) for point in result["curve"]}) > 1


def test_each_pair_is_scored_once(tiny: LightningDOTEmbedder, pairs: list[Pair], monkeypatch: Any) -> None:
    scored: list[tuple[str, int]] = []
    score = tiny.reranker.score

    def counting(texts: list[str], kept: list[KeptImage]) -> np.ndarray:
        scored.extend((text, one["features"].tobytes().__hash__()) for text, one in zip(texts, kept, strict=True))
        return score(texts, kept)

    monkeypatch.setattr(tiny.reranker, "score", counting)
    monkeypatch.setattr(module, "PAIR_BLOCK", 50)
    evaluate(tiny, pairs, rerank=5, curve=(0, 5, 10))
    assert len(scored) == len(set(scored))


def test_re_ranking_everything_is_the_re_rankers_own_order(tiny: LightningDOTEmbedder, pairs: list[Pair]) -> None:
    scores, owner = dot_products(tiny, pairs)
    figures = evaluate(tiny, pairs, rerank=1000)["reranked"]
    assert_recall(figures, both_bounds(cross_scores(tiny, pairs) + tiny.reranker.dot_weight * scores, owner))


def test_folds_are_averaged(tiny: LightningDOTEmbedder, pairs: list[Pair]) -> None:
    result = evaluate(tiny, pairs, rerank=4, folds=3)
    assert (result["folds"], result["images"], result["captions"]) == (3, 24, 48)
    plain, reranked = [], []
    for start in (0, 8, 16):
        part = pairs[start : start + 8]
        scores, owner = dot_products(tiny, part)
        crossed = cross_scores(tiny, part) + tiny.reranker.dot_weight * scores
        plain.append(both_bounds(scores, owner))
        reranked.append(both_bounds(scores, owner, crossed=crossed, count=4))
    assert_recall(result, mean_bounds(plain))
    assert_recall(result["reranked"], mean_bounds(reranked))
    with pytest.raises(UsageError, match="24 photos cannot be divided into 5 equal folds"):
        evaluate(tiny, pairs, folds=5)


def test_a_pool_is_searched_but_has_no_queries(tiny: LightningDOTEmbedder, pairs: list[Pair]) -> None:
    result = evaluate(tiny, pairs[:6], pool=pairs[6:], rerank=3)
    assert (result["images"], result["captions"], result["pool"]) == (6, 12, {"images": 24, "captions": 48})
    scores, _ = dot_products(tiny, pairs)
    owner = np.repeat(np.arange(24), [len(pair.captions) for pair in pairs])
    right = owner[:, None] == np.arange(24)
    assert_recall(result, {"text_to_image": recall_bounds(scores[:12], right[:12]),
                           "image_to_text": recall_bounds(scores.T[:6], right.T[:6])})  # fmt: skip
    with pytest.raises(UsageError, match="05 is both a query and in the pool"):
        evaluate(tiny, pairs[:6], pool=pairs[5:])
    with pytest.raises(UsageError, match="give no pool"):
        evaluate(tiny, pairs[:6], pool=pairs[6:], folds=2)


def test_regions_of_another_width_and_a_broken_photo_are_named(tiny: LightningDOTEmbedder, pairs: list[Pair]) -> None:
    wide = Regions(np.ones((3, 2048), np.float32), np.ones((3, 7), np.float32), np.ones(3, np.float32))
    with pytest.raises(InputError, match=r"odd\.npz: the regions have 2048 features, model .* reads 32"):
        evaluate(tiny, [*pairs[:2], Pair("odd.npz", lambda: wide, ["x"])])
    with pytest.raises(InputError, match=r"torn"):
        evaluate(tiny, [*pairs[:2], Pair("torn", lambda: make_photo(1)[:200], ["x"])])


KNOWN = {
    "images": 1000, "captions": 5000, "seconds": 1.0,
    "text_to_image": {"R@1": 70.1, "R@5": 91.0, "R@10": 95.0},
    "image_to_text": {"R@1": 100.0, "R@5": 100.0, "R@10": 100.0},
}  # fmt: skip


def test_published_figures_follow_the_measured_ones() -> None:
    rows = report.published_figures("flickr30k test", KNOWN)
    assert [row["model"] for row in rows] == ["LightningDOT, zero-shot", "LightningDOT, fine-tuned"]
    printed = report.table(KNOWN, rows).splitlines()
    measured, published = printed[2], next(line for line in printed if "fine-tuned" in line)
    assert measured.endswith("  70.1   91.0   95.0   100.0  100.0  100.0    92.7")
    assert published.endswith("  69.9   91.1   95.2    83.9   97.2   98.6    89.3")
    assert len(measured) == len(published)
    assert printed[3] == "published, the authors' README, github intersun/LightningDOT:"
    # A figure that nobody published is a dash.
    coco = {**KNOWN, "images": 5000}
    printed = report.table(coco, report.published_figures("coco test", coco)).splitlines()
    assert next(line for line in printed if "OSCAR" in line).endswith(
        "  57.4      -      -    74.2      -      -       -"
    )
    for other in ({"images": 999}, {"folds": 5}, {"pool": {}}):
        assert not report.published_figures("flickr30k test", {**KNOWN, **other})
    assert not report.published_figures("", KNOWN)


def test_every_published_row_names_its_source() -> None:
    for row in json.loads(report.PUBLISHED.read_text()):
        assert row["source"]
        assert row.keys() == {"data", "images", "model", "text_to_image", "image_to_text", "source"}


POINTS = [{"M": number, "text_to_image": {"R@1": 20.0 + number / 10}, "image_to_text": {"R@1": 30.0}}
          for number in curve.NUMBERS]  # fmt: skip


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_curve_as_a_picture(suffix: str, tmp_path: Path) -> None:
    place = tmp_path / f"curve.{suffix}"
    curve.draw(POINTS, place, title="a model on a set")
    if suffix == "png":
        with Image.open(place) as picture:
            assert picture.size == (1024, 640)
            assert len(set(picture.convert("RGB").getcolors(1 << 20) or [])) > 50
    else:
        text = place.read_text()
        for word in ("a model on a set", "text to image", "image to text", "R@1, percent", "20.5", "100"):
            assert word in text
        curve.draw(POINTS, tmp_path / "again.svg", title="a model on a set")
        assert (tmp_path / "again.svg").read_text() == text  # the same figures, the same file


def test_an_invalid_picture_is_refused_before_the_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"written as \.png or \.svg"):
        curve.check_picture(tmp_path / "curve.jpg")
    with pytest.raises(UsageError, match="does not exist"):
        curve.check_picture(tmp_path / "nowhere" / "curve.png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"pip install 'ldot-milvus\[plot\]'"):
        curve.check_picture(tmp_path / "curve.png")


@pytest.mark.parametrize("method", ["encode_features", "encode_texts"])
def test_what_a_cache_has_is_not_encoded_again(
    tiny: LightningDOTEmbedder, pairs: list[Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """A cache keeps the pairs of one model in one precision; pairs that are new, changed or damaged are added."""
    encoded: list[int] = []
    encode = getattr(tiny, method)

    def counting(values: Any) -> Any:
        encoded.append(len(values))
        return encode(values)

    def measured(some: list[Pair], rerank: int = 5, **options: Any) -> tuple[dict[str, Any], int]:
        encoded.clear()
        result = evaluate(tiny, some, rerank=rerank, **options)
        result.pop("seconds")
        return result, sum(encoded)

    def size(some: list[Pair]) -> int:
        return sum(len(pair.captions) for pair in some) if method == "encode_texts" else len(some)

    monkeypatch.setattr(tiny, method, counting)
    cache = tmp_path / "encoded"
    expected, count = measured(pairs)
    assert count == size(pairs)
    assert measured(pairs[:10], cache=cache)[1] == size(pairs[:10])
    assert measured(pairs, cache=cache) == (expected, size(pairs[10:]))
    assert measured(pairs, cache=cache) == (expected, 0)
    assert measured(pairs, cache=cache, precision="cpu float16")[1] == size(pairs)
    assert measured(pairs, 0, cache=cache)[1] == size(pairs), "without the re-ranker, nothing is known of it"
    changed = [replace(pairs[0], captions=["another caption"]), *pairs[1:]]
    assert measured(changed, cache=cache)[1] == size(changed[:1])
    damaged, *_ = sorted(cache.rglob("*.safetensors"))
    for path in cache.rglob(damaged.name):
        path.write_bytes(damaged.read_bytes()[:100])
    assert measured(pairs, cache=cache)[0] == expected
    assert measured(pairs, cache=cache)[1] == 0
