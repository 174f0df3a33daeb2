"""The detector equals the public one, run on random weights; a change of any of its peculiarities is noticed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import grid_sample

from ldot_milvus.regions import BottomUpExtractor, Regions
from ldot_milvus.regions.base import boxes7
from ldot_milvus.regions.bottom_up import extractor as extractor_module
from ldot_milvus.regions.bottom_up import pooling, preprocessing
from ldot_milvus.regions.bottom_up.boxes import box_iou, clip_boxes, decode_boxes, grid_anchors
from ldot_milvus.regions.bottom_up.network import BoxPredictor
from ldot_milvus.regions.bottom_up.pooling import MaximumTable
from ldot_milvus.regions.bottom_up.preprocessing import to_input
from ldot_milvus.regions.files import CONFIDENT

GOLDEN = Path(__file__).parents[2] / "golden" / "bottom_up"
PHOTOS = ("image0.png", "image1.png")

NEAR = 1e-4
"""Probabilities and overlaps differ by half of this between processors: two that are nearer to each other are a tie."""

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def golden() -> Arrays:
    with np.load(GOLDEN / "outputs.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


def build(boxes: str) -> BottomUpExtractor:
    return BottomUpExtractor.from_pretrained(GOLDEN, boxes=boxes)


def close(ours: torch.Tensor | np.ndarray, golden: np.ndarray, tolerance: float) -> None:
    np.testing.assert_allclose(np.asarray(ours), golden, atol=tolerance, rtol=0)


@torch.inference_mode()
def compare_steps(extractor: BottomUpExtractor, photo: Image.Image, expected: Arrays) -> None:
    """Every step between the photo and the scores."""
    config, detector = extractor.config, extractor.detector
    pixels = extractor_module.to_input(
        photo, config.short_side, config.long_side, torch.tensor(config.pixel_mean), torch.tensor(config.pixel_std)
    )
    height, width = pixels.shape[2:]
    assert [[height, width]] == expected["image_sizes_hw"].tolist() == expected["out_sizes"].tolist()
    close([[photo.height / height, photo.width / width]], expected["scales_yx"], 1e-6)
    close(pixels, expected["input"], 1e-3)
    hidden = pixels
    for name in ("stem", "res2", "res3", "res4"):
        hidden = getattr(detector.backbone, name)(hidden)
        close(hidden, expected[name], 1e-3)
    logits, deltas = detector.proposal_generator.rpn_head(hidden)
    close(logits, expected["rpn_objectness_logits"], 1e-3)
    close(deltas, expected["rpn_anchor_deltas"], 1e-3)
    close(grid_anchors(detector.anchors, *hidden.shape[2:]), expected["anchors"], 1e-3)
    proposals, best = extractor.proposals(hidden, (height, width))
    close(proposals, expected["proposals_0"], 1e-2)
    close(best, expected["proposal_logits_0"], 1e-3)
    pooled = MaximumTable(hidden[0]).pool(proposals)
    close(pooled[expected["roi_pool_rows"]], expected["roi_pool"], 1e-3)
    close(detector.roi_heads.res5(pooled[expected["res5_out_rows"]]), expected["res5_out"], 2e-3)
    features = extractor.region_features(hidden, proposals)
    close(features, expected["feature_pooled_all"], 5e-4)
    predictor = detector.roi_heads.box_predictor
    scores = predictor.class_logits(features)
    close(scores, expected["obj_logits_all"], 2e-3)
    close(predictor.attribute_logits(features, scores), expected["attr_logits_all"], 2e-3)
    close(predictor.bbox_pred(features), expected["box_deltas_all"], 2e-3)


@dataclass(frozen=True)
class Numbers:
    """What the choice of regions goes by: a photo's proposals (n, 4), their features (n, d) and class logits (n, C)."""

    proposals: torch.Tensor
    features: torch.Tensor
    logits: torch.Tensor

    def with_rows(self, rows: np.ndarray, other: Numbers) -> Numbers:
        """The same with some rows of ``other``."""
        chosen = torch.from_numpy(rows)[:, None]
        return Numbers(*(torch.where(chosen, theirs, ours) for ours, theirs in
                         zip(vars(self).values(), vars(other).values(), strict=True)))  # fmt: skip


def golden_numbers(expected: Arrays) -> Numbers:
    return Numbers(*(torch.from_numpy(expected[name]) for name in
                     ("proposals_0", "feature_pooled_all", "obj_logits_all")))  # fmt: skip


@torch.inference_mode()
def our_numbers(extractor: BottomUpExtractor, photo: Image.Image) -> Numbers:
    config = extractor.config
    pixels = extractor_module.to_input(
        photo, config.short_side, config.long_side, torch.tensor(config.pixel_mean), torch.tensor(config.pixel_std)
    )
    hidden = extractor.feature_map(pixels)
    proposals, _ = extractor.proposals(hidden, (int(pixels.shape[2]), int(pixels.shape[3])))
    features = extractor.region_features(hidden, proposals)
    return Numbers(proposals, features, extractor.detector.roi_heads.box_predictor.class_logits(features))


@torch.inference_mode()
def chosen_by(extractor: BottomUpExtractor, numbers: Numbers, size: tuple[int, int]) -> tuple[np.ndarray, Regions]:
    """The proposals that are kept and their regions, by our rules and given numbers."""
    probabilities = numbers.logits.softmax(1)
    boxes, choice = extractor.choose(numbers.proposals, numbers.features, probabilities, size)
    kept = choice.kept
    attributes = extractor.detector.roi_heads.box_predictor.attribute_probabilities(
        numbers.features[kept], numbers.logits[kept]
    ).max(1)
    height, width = size
    return kept.numpy(), Regions(
        features=numbers.features[kept].numpy(),
        boxes=boxes7((boxes[kept] / torch.tensor([width, height, width, height])).numpy()),
        confidence=choice.confidence.numpy(),
        soft_labels=probabilities[kept].roll(1, 1).numpy(),
        objects=choice.classes.numpy(),
        attributes=attributes.indices.numpy(),
        attribute_confidence=attributes.values.numpy(),
    )


def tied(scores: np.ndarray, overlaps: np.ndarray, threshold: float) -> np.ndarray:
    """(n,) bool: proposals whose fate differs from processor to processor.

    Two scores (n, classes; NaN where one is of no account) or an overlap (n, n) and the threshold are nearer to each
    other than processors agree.
    """
    near = (np.abs(scores[:, None] - scores[None]) <= NEAR).any(2) | (np.abs(overlaps - threshold) <= NEAR)
    np.fill_diagonal(near, False)
    return near.any(1)


def compare_choice(
    extractor: BottomUpExtractor, photo: Image.Image, expected: Arrays, size: tuple[int, int], near: np.ndarray
) -> Regions:
    """A photo's regions are those that the reference's numbers lead to; only what is ``near`` goes by ours."""
    golden, ours = golden_numbers(expected), our_numbers(extractor, photo)
    assert near.sum() <= len(near) // 6
    close(ours.proposals[near], golden.proposals[near].numpy(), 1e-2)
    close(ours.features[near], golden.features[near].numpy(), 5e-4)
    close(ours.logits[near], golden.logits[near].numpy(), 2e-3)
    _, wanted = chosen_by(extractor, golden.with_rows(near, ours), size)
    regions = extractor(photo)
    assert len(regions) == len(wanted)
    np.testing.assert_array_equal(regions.objects, wanted.objects)
    np.testing.assert_array_equal(regions.attributes, wanted.attributes)
    for name in ("confidence", "attribute_confidence", "features", "soft_labels"):
        close(getattr(regions, name), getattr(wanted, name), 5e-4)
    close(regions.boxes, wanted.boxes, 1e-4)
    return regions


def compare_reference(extractor: BottomUpExtractor, photo: Image.Image, expected: Arrays) -> None:
    """What the reference keeps; its arrays are padded to one length."""
    (n,) = expected["out_preds_per_image"]
    height, width = map(int, expected["image_sizes_hw"][0])
    golden = golden_numbers(expected)
    kept, same = chosen_by(extractor, golden, (height, width))
    assert len(kept) == n
    np.testing.assert_array_equal(same.objects, expected["out_obj_ids"][0, :n])
    np.testing.assert_array_equal(same.attributes, expected["out_attr_ids"][0, :n])
    close(same.confidence, expected["out_obj_probs"][0, :n], 1e-5)
    close(same.attribute_confidence, expected["out_attr_probs"][0, :n], 1e-5)
    close(same.features, expected["out_roi_features"][0, :n], 1e-5)
    close(same.boxes[:, :4], expected["out_normalized_boxes"][0, :n], 1e-5)
    close(same.boxes[:, :4] * np.tile(photo.size, 2), expected["out_boxes"][0, :n], 1e-3)
    scores, classes = golden.logits.softmax(1)[:, :-1].topk(2)
    deltas = torch.from_numpy(expected["box_deltas_all"]).view(len(scores), -1, 4)[range(len(scores)), classes[:, 0]]
    boxes = clip_boxes(decode_boxes(golden.proposals, deltas, extractor.config.box_weights), (height, width))
    near = tied(scores[:, :1].numpy(), box_iou(boxes, boxes).numpy(), 0.3)  # the threshold at which there are enough
    compare_choice(extractor, photo, expected, (height, width), near | ((scores[:, 0] - scores[:, 1]) <= NEAR).numpy())


def compare_all(extractor: BottomUpExtractor, photos: list[Image.Image], golden: Arrays) -> None:
    for number, photo in enumerate(photos):
        compare_reference(extractor, photo, part(golden, f"img{number}"))


def compare_uniter(extractor: BottomUpExtractor, photo: Image.Image, steps: Arrays, expected: Arrays) -> None:
    """UNITER's choice among the proposals of the reference's ``steps``."""
    height, width = map(int, steps["image_sizes_hw"][0])
    golden = golden_numbers(steps)
    kept, same = chosen_by(extractor, golden, (height, width))
    np.testing.assert_array_equal(kept, expected["rows"])
    close(same.confidence, expected["conf"], 1e-5)
    close(same.boxes, expected["norm_bb7"], 1e-5)
    close(same.features, expected["features"], 1e-5)
    assert same.soft_labels is not None
    close(np.roll(same.soft_labels, -1, axis=1), expected["soft_labels_bg_last"], 1e-5)
    # In each class and of all classes; scores that cannot reach the threshold decide about nothing that is kept.
    confidence = np.zeros(len(golden.logits), np.float32)
    confidence[kept] = same.confidence
    scores = np.column_stack([golden.logits.softmax(1)[:, :-1].numpy(), confidence])
    scores = np.where(scores >= CONFIDENT - NEAR, scores, np.nan)
    overlaps = box_iou(golden.proposals, golden.proposals).numpy()
    threshold = (np.abs(scores - CONFIDENT) <= NEAR).any(1)
    regions = compare_choice(extractor, photo, steps, (height, width), tied(scores, overlaps, 0.3) | threshold)
    assert regions.soft_labels is not None
    best = np.take_along_axis(regions.soft_labels, regions.objects[:, None] + 1, axis=1)[:, 0]
    np.testing.assert_array_equal(best, regions.confidence)  # the class is the one that the confidence is of


def part(golden: Arrays, group: str) -> Arrays:
    return {name.removeprefix(f"{group}/"): array for name, array in golden.items() if name.startswith(f"{group}/")}


@pytest.fixture(scope="module")
def reference() -> BottomUpExtractor:
    return build("reference")


@pytest.fixture(scope="module")
def uniter() -> BottomUpExtractor:
    return build("uniter")


@pytest.mark.parametrize("number", [0, 1])
def test_every_step_is_the_references(reference: BottomUpExtractor, golden: Arrays, number: int) -> None:
    compare_steps(reference, Image.open(GOLDEN / PHOTOS[number]), part(golden, f"img{number}"))


@pytest.mark.parametrize("number", [0, 1])
def test_the_selection_is_the_references(reference: BottomUpExtractor, golden: Arrays, number: int) -> None:
    compare_reference(reference, Image.open(GOLDEN / PHOTOS[number]), part(golden, f"img{number}"))


@pytest.mark.parametrize("number", [0, 1])
def test_the_selection_is_uniters(uniter: BottomUpExtractor, golden: Arrays, number: int) -> None:
    steps, expected = part(golden, f"img{number}"), part(golden, f"uniter_img{number}")
    compare_uniter(uniter, Image.open(GOLDEN / PHOTOS[number]), steps, expected)


@pytest.mark.parametrize("boxes", ["reference", "uniter"])
def test_regions_are_bitwise_independent_of_the_batch(boxes: str, request: pytest.FixtureRequest) -> None:
    extractor = request.getfixturevalue(boxes)
    photos = [Image.open(GOLDEN / name) for name in PHOTOS]
    alone = [extractor(photo) for photo in photos]
    together = extractor([photos[1], photos[0], photos[1]])
    for one, other in zip([alone[1], alone[0], alone[1]], together, strict=True):
        for name, array in vars(one).items():
            np.testing.assert_array_equal(array, getattr(other, name))


def test_path_bytes_and_image_are_the_same_photo(uniter: BottomUpExtractor) -> None:
    path = GOLDEN / PHOTOS[0]
    expected = uniter(Image.open(path))
    for given in (path, str(path), path.read_bytes(), Image.open(path).convert("RGB")):
        np.testing.assert_array_equal(uniter(given).features, expected.features)


def roi_align(self: MaximumTable, boxes: torch.Tensor) -> torch.Tensor:
    """The later pooling: the mean of interpolated values, four to a bin."""
    cells = self._rows[: self.height * self.width].view(self.height, self.width, -1).permute(2, 0, 1)[None]
    steps = (torch.arange(28) + 0.5) / 28
    x = boxes[:, :1] + (boxes[:, 2:3] - boxes[:, :1]) * steps
    y = boxes[:, 1:2] + (boxes[:, 3:] - boxes[:, 1:2]) * steps
    x, y = x / 16 / (self.width - 1) * 2 - 1, y / 16 / (self.height - 1) * 2 - 1
    places = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=-1)
    sampled = grid_sample(cells.expand(len(boxes), -1, -1, -1), places, align_corners=True, padding_mode="border")
    return torch.nn.functional.avg_pool2d(sampled, 2)


def softmax_with_none(self: BoxPredictor, features: torch.Tensor, class_logits: torch.Tensor) -> torch.Tensor:
    return self.attribute_logits(features, class_logits).softmax(1)[:, :-1]


def swapped(image: Image.Image, *arguments: object) -> torch.Tensor:
    red, green, blue = image.convert("RGB").split()
    return to_input(Image.merge("RGB", (blue, green, red)), *arguments)


def stride_in_the_middle(extractor: BottomUpExtractor) -> None:
    for blocks in (extractor.detector.backbone.res3, extractor.detector.backbone.res4):
        blocks[0].conv1.stride, blocks[0].conv2.stride = (1, 1), (2, 2)


def dilation_in_two_blocks(extractor: BottomUpExtractor) -> None:
    convolution = extractor.detector.roi_heads.res5[0].conv2
    convolution.dilation = convolution.padding = (1, 1)


def padded_stem_pool(extractor: BottomUpExtractor) -> None:
    extractor.detector.backbone.stem.pool = torch.nn.MaxPool2d(3, 2, 1)


PATCHES: dict[str, tuple[object, str, object]] = {
    "RoIAlign": (MaximumTable, "pool", roi_align),
    "half to even": (pooling, "round_half_up", torch.round),
    "RGB": (extractor_module, "to_input", swapped),
    "antialiased resize": (preprocessing, "interpolate", partial(preprocessing.interpolate, antialias=True)),
    "softmax over none too": (BoxPredictor, "attribute_probabilities", softmax_with_none),
}
CHANGES: dict[str, Callable[[BottomUpExtractor], None]] = {
    "dilation in two blocks": dilation_in_two_blocks,
    "stride in the 3x3": stride_in_the_middle,
    "padded stem pool": padded_stem_pool,
}


@pytest.mark.parametrize("mutation", [*PATCHES, *CHANGES])
def test_no_peculiarity_goes_unnoticed(mutation: str, golden: Arrays, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one thing done as it is done elsewhere, what is kept of a photo is not the reference's."""
    extractor = build("reference")
    if mutation in PATCHES:
        monkeypatch.setattr(*PATCHES[mutation])
    else:
        CHANGES[mutation](extractor)
    photos = [Image.open(GOLDEN / name) for name in PHOTOS]
    with pytest.raises(AssertionError):
        compare_all(extractor, photos, golden)
