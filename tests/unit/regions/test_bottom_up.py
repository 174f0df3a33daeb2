"""The detector's modules: pooling and suppression compared with plain loops; unusual photos; the fast mode."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldot_milvus.errors import InputError, ModelError, UsageError
from ldot_milvus.regions import BottomUpExtractor, Regions
from ldot_milvus.regions.bottom_up.boxes import nms, propose
from ldot_milvus.regions.bottom_up.pooling import MaximumTable, bin_edges, round_half_up
from ldot_milvus.regions.bottom_up.preprocessing import resized
from ldot_milvus.regions.bottom_up.selection import by_any_class, by_best_class
from tests.conftest import PHOTOS

GOLDEN = Path(__file__).parents[2] / "golden" / "bottom_up"


@pytest.fixture(scope="module")
def extractor() -> BottomUpExtractor:
    return BottomUpExtractor.from_pretrained(GOLDEN)


# Pooling


def pooled_by_hand(features: np.ndarray, box: np.ndarray) -> np.ndarray:
    channels, height, width = features.shape
    x1, y1, x2, y2 = (math.floor(float(edge) / 16 + 0.5) for edge in box)
    rows, columns = (np.float32(max(last - first + 1, 1)) / np.float32(14) for first, last in ((y1, y2), (x1, x2)))
    result = np.zeros((channels, 14, 14), np.float32)
    for i in range(14):
        top, bottom = (
            min(max(int(edge) + y1, 0), height)
            for edge in (np.floor(np.float32(i) * rows), np.ceil(np.float32(i + 1) * rows))
        )
        for j in range(14):
            left, right = (
                min(max(int(edge) + x1, 0), width)
                for edge in (np.floor(np.float32(j) * columns), np.ceil(np.float32(j + 1) * columns))
            )
            if bottom > top and right > left:
                result[:, i, j] = features[:, top:bottom, left:right].max((1, 2))
    return result


@pytest.mark.parametrize("shape", [(9, 13), (1, 1), (1, 83), (50, 3), (64, 63)])
def test_pooling_is_the_maximum_of_each_bin(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    height, width = shape
    features = rng.normal(size=(3, height, width)).astype(np.float32)
    # Half a cell, the whole map, beyond its last cell (empty bins), a point.
    corners = [
        [8, 8, 24, 24],
        [0, 0, 16 * width, 16 * height],
        [16 * width - 8, 0, 16 * width, 16 * height],
        [5, 5, 5, 5],
    ]
    for _ in range(30):
        x, y = np.sort(rng.uniform(0, 16 * width, 2)), np.sort(rng.uniform(0, 16 * height, 2))
        corners.append([x[0], y[0], x[1], y[1]])
    boxes = np.array(corners, np.float32)
    pooled = MaximumTable(torch.from_numpy(features)).pool(torch.from_numpy(boxes)).numpy()
    for box, found in zip(boxes, pooled, strict=True):
        np.testing.assert_array_equal(found, pooled_by_hand(features, box))
    quarter = MaximumTable(torch.from_numpy(features), step=2).pool(torch.from_numpy(boxes)).numpy()
    np.testing.assert_array_equal(quarter, pooled[:, :, ::2, ::2])


def test_a_half_is_rounded_up() -> None:
    values = torch.tensor([0.0, 0.49999997, 0.5, 1.5, 2.5, 8.5, 8388607.5])
    assert round_half_up(values).tolist() == [0, 0, 1, 2, 3, 9, 8388608]


def test_the_lengths_at_which_float32_matters() -> None:
    """57 and 62 cells: the published kernel's own rounding moves an edge by a cell."""
    exact = {}
    for cells in range(1, 80):
        low, high = bin_edges(torch.tensor([0.0]), torch.tensor([16.0 * (cells - 1)]), 100)
        wanted = [[i * cells // 14 for i in range(14)], [-(-(i + 1) * cells // 14) for i in range(14)]]
        exact[cells] = [low[0].tolist(), high[0].tolist()] == wanted
    assert [cells for cells, same in exact.items() if not same] == [57, 62]


# Suppression and choice


def overlap_by_hand(a: np.ndarray, b: np.ndarray) -> float:
    shared = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def suppressed_by_hand(boxes: np.ndarray, order: np.ndarray, threshold: float) -> list[int]:
    kept: list[int] = []
    for place in order:
        if all(overlap_by_hand(boxes[place], boxes[other]) <= threshold for other in kept):
            kept.append(int(place))
    return kept


def random_boxes(rng: np.random.Generator, n: int) -> np.ndarray:
    corner = rng.integers(0, 60, (n, 2))
    return np.concatenate([corner, corner + rng.integers(5, 60, (n, 2))], 1).astype(np.float32)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.7])
def test_suppression_is_greedy(threshold: float) -> None:
    rng = np.random.default_rng(1)
    for n in (1, 2, 40, 200):
        boxes = random_boxes(rng, n)
        wanted = suppressed_by_hand(boxes, np.arange(n), threshold)
        assert nms(torch.from_numpy(boxes), threshold, n).tolist() == wanted
        assert nms(torch.from_numpy(boxes), threshold, 7).tolist() == wanted[:7]


def test_an_overlap_of_just_the_threshold_survives() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5]])  # exactly a half
    assert nms(boxes, 0.5, 2).tolist() == [0, 1]
    assert nms(boxes, 0.49, 2).tolist() == [0]


def test_uniters_choice_is_a_suppression_for_each_class() -> None:
    rng = np.random.default_rng(2)
    for least, most in ((1, 5), (10, 100), (60, 100)):
        boxes = random_boxes(rng, 50)
        scores = rng.dirichlet(np.full(7, 0.3), 50).astype(np.float32)
        best = np.zeros(50, np.float32)
        classes = np.zeros(50, int)
        for c in range(7):
            for place in suppressed_by_hand(boxes, np.argsort(-scores[:, c], kind="stable"), 0.3):
                if scores[place, c] > best[place]:
                    best[place], classes[place] = scores[place, c], c
        number = min(max(least, int((best > 0.2).sum())), most, 50)
        wanted = np.argsort(-best, kind="stable")[:number]
        choice = by_any_class(torch.from_numpy(boxes), torch.from_numpy(scores), least=least, most=most)
        assert choice.kept.tolist() == wanted.tolist()
        np.testing.assert_array_equal(choice.confidence.numpy(), best[wanted])
        certain = best[wanted] > 0
        assert choice.classes.numpy()[certain].tolist() == classes[wanted][certain].tolist()


def test_the_first_threshold_that_leaves_enough_regions_is_used() -> None:
    rng = np.random.default_rng(3)
    boxes, scores = torch.from_numpy(random_boxes(rng, 80)), torch.from_numpy(rng.random(80, np.float32))
    order = np.argsort(-scores.numpy(), kind="stable")
    counts = [len(suppressed_by_hand(boxes.numpy(), order, step)) for step in (0.1, 0.4, 0.6)]
    assert counts == sorted(set(counts))
    for step, least in ((0.1, counts[0]), (0.4, counts[0] + 1), (0.6, counts[1] + 1)):
        choice = by_best_class(boxes, scores, torch.arange(80), overlaps=(0.1, 0.4, 0.6), least=least, most=80)
        assert choice.kept.tolist() == suppressed_by_hand(boxes.numpy(), order, step)
    # None leaves enough: all that the last one leaves.
    choice = by_best_class(boxes, scores, torch.arange(80), overlaps=(0.1, 0.4, 0.6), least=80, most=80)
    assert len(choice.kept) == counts[2]
    assert by_best_class(boxes, scores, torch.arange(80), overlaps=(0.6,), least=1, most=3).kept.tolist() == [
        int(place) for place in suppressed_by_hand(boxes.numpy(), order, 0.6)[:3]
    ]


def test_without_detections_the_photo_is_one_region() -> None:
    deltas = torch.zeros(4, 2, 3)
    deltas[0] = 1e6  # every box is far outside, and has no width when it is cut
    boxes, logits = propose(
        torch.zeros(1, 2, 3), deltas, torch.tensor([[-8.0, -8, 8, 8]]), (32, 48),
        candidates=6, most=5, threshold=0.7, least_side=0,
    )  # fmt: skip
    assert boxes.tolist() == [[0, 0, 48, 32]]
    assert len(logits) == 1


def test_a_photo_without_a_proposal_is_one_region() -> None:
    for boxes in ("uniter", "reference"):
        empty = BottomUpExtractor.from_pretrained(GOLDEN, boxes=boxes)
        empty.detector.proposal_generator.rpn_head.anchor_deltas.bias.data[::4] = 1e6
        regions = empty(GOLDEN / "image0.png")
        assert len(regions) == 1
        assert regions.features.shape == (1, 256)
        if boxes == "uniter":
            np.testing.assert_array_equal(regions.boxes, [[0, 0, 1, 1, 1, 1, 1]])


# Photos


@pytest.mark.parametrize(
    ("photo", "sides", "size"),
    [
        ((640, 480), (800, 1333), (1067, 800)),
        ((500, 333), (800, 1333), (1201, 800)),
        ((1500, 500), (800, 1333), (1333, 444)),
        ((640, 480), (600, 1000), (800, 600)),
        ((10, 4000), (800, 1333), (3, 1333)),
        ((4000, 1), (800, 1333), (1333, 3)),
        ((1, 1), (600, 1000), (600, 600)),
    ],
)
def test_sizes(photo: tuple[int, int], sides: tuple[int, int], size: tuple[int, int]) -> None:
    assert resized(*photo, *sides) == size


def whole(regions: Regions, least: int = 10) -> None:
    assert least <= len(regions) <= 100
    assert regions.features.dtype == regions.boxes.dtype == regions.confidence.dtype == np.float32
    for array in (regions.features, regions.boxes, regions.confidence, regions.soft_labels):
        assert array is not None
        assert np.isfinite(array).all()
    assert (regions.features >= 0).all()
    assert (regions.boxes >= 0).all()
    assert (regions.boxes <= 1 + 1e-6).all()
    assert (np.diff(regions.confidence) <= 0).all()
    np.testing.assert_allclose(regions.soft_labels.sum(1), 1, atol=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (10, 4000), (4000, 10), (1, 4000), (4000, 1), (3000, 2000), (17, 33)])
def test_any_shape_has_regions(extractor: BottomUpExtractor, size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    whole(extractor(Image.fromarray(pixels)), least=1)


@pytest.mark.parametrize("boxes", ["uniter", "reference"])
def test_a_photo_of_one_colour_has_the_least_or_all_there_are(boxes: str) -> None:
    found = BottomUpExtractor.from_pretrained(GOLDEN, boxes=boxes, least=15, most=20)
    every = BottomUpExtractor.from_pretrained(GOLDEN, boxes=boxes, least=1000, most=1000)
    plain = Image.new("RGB", (90, 60), (120, 130, 125))
    assert 1 <= len(found(plain)) <= 20
    assert len(every(plain)) >= len(found(plain))


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "1", "I;16"])
def test_any_mode_is_read_as_rgb(extractor: BottomUpExtractor, mode: str) -> None:
    photo = Image.open(PHOTOS / "000000214753.jpg").resize((120, 90))
    photo = Image.fromarray(np.array(photo.convert("L"), np.uint16) * 257) if mode == "I;16" else photo.convert(mode)
    whole(extractor(photo), least=1)


def encoded(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, subsampling=0, **options)
    return buffer.getvalue()


def test_a_rotated_photo_is_turned_first(extractor: BottomUpExtractor) -> None:
    upright = Image.open(PHOTOS / "000000214753.jpg").resize((120, 88))
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = encoded(upright.transpose(Image.Transpose.ROTATE_90), exif=exif)
    turned = Image.open(io.BytesIO(lying)).transpose(Image.Transpose.ROTATE_270)
    np.testing.assert_array_equal(extractor(lying).boxes, extractor(Image.fromarray(np.array(turned))).boxes)


def test_an_unreadable_photo_is_refused(extractor: BottomUpExtractor, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="empty"):
        extractor(b"")
    with pytest.raises(InputError, match=r"gone\.jpg"):
        extractor([tmp_path / "gone.jpg"])
    assert extractor([]) == []


def test_the_fast_mode_is_a_quarter_of_the_bins(extractor: BottomUpExtractor) -> None:
    """The mean over the even bins of the exact mode's own res5, computed exactly."""
    fast = BottomUpExtractor.from_pretrained(GOLDEN, fast=True)
    with torch.inference_mode():
        features = torch.rand(1, 128, 9, 13)
        boxes = torch.from_numpy(random_boxes(np.random.default_rng(4), 10)) * 2
        pooled = MaximumTable(features[0]).pool(boxes)
        wanted = extractor.detector.roi_heads.res5(pooled)[:, :, ::2, ::2].mean((2, 3))
        np.testing.assert_allclose(fast.region_features(features, boxes), wanted, atol=1e-4)


def test_bfloat16_is_close(extractor: BottomUpExtractor) -> None:
    half = BottomUpExtractor.from_pretrained(GOLDEN, dtype=torch.bfloat16)
    photo = Image.open(GOLDEN / "image0.png")
    exact, rounded = extractor(photo), half(photo)
    a, b = exact.features.mean(0), rounded.features.mean(0)
    assert float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) > 0.99
    whole(rounded)


def test_features_that_are_not_finite_are_refused() -> None:
    broken = BottomUpExtractor.from_pretrained(GOLDEN)
    broken.detector.roi_heads.res5[2].conv3.bias.data[0] = float("inf")
    with pytest.raises(ModelError, match=r"not finite in torch\.float32"):
        broken(GOLDEN / "image0.png")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"boxes": "mine"}, "boxes is 'mine'"),
        ({"least": 5, "most": 4}, "least is 5, most 4"),
        ({"short_side": 0}, "short_side 0"),
    ],
)
def test_invalid_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        BottomUpExtractor.from_pretrained(GOLDEN, **options)
