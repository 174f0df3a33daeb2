"""The public detector, run on random weights, says what ours must give; and what each of its peculiarities changes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import grid_sample

from ldot_milvus.regions import BottomUpExtractor
from ldot_milvus.regions.bottom_up import extractor as extractor_module
from ldot_milvus.regions.bottom_up import pooling, preprocessing
from ldot_milvus.regions.bottom_up.boxes import grid_anchors
from ldot_milvus.regions.bottom_up.network import BoxPredictor
from ldot_milvus.regions.bottom_up.pooling import MaximumTable
from ldot_milvus.regions.bottom_up.preprocessing import to_input

GOLDEN = Path(__file__).parents[2] / "golden" / "bottom_up"
PHOTOS = ("image0.png", "image1.png")

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


def compare_reference(extractor: BottomUpExtractor, photo: Image.Image, expected: Arrays) -> None:
    """What the reference keeps; its arrays are padded to one length."""
    regions = extractor(photo)
    (n,) = expected["out_preds_per_image"]
    assert len(regions) == n
    np.testing.assert_array_equal(regions.objects, expected["out_obj_ids"][0, :n])
    np.testing.assert_array_equal(regions.attributes, expected["out_attr_ids"][0, :n])
    close(regions.confidence, expected["out_obj_probs"][0, :n], 5e-4)
    close(regions.attribute_confidence, expected["out_attr_probs"][0, :n], 5e-4)
    close(regions.features, expected["out_roi_features"][0, :n], 5e-4)
    close(regions.boxes[:, :4], expected["out_normalized_boxes"][0, :n], 1e-4)
    close(regions.boxes[:, :4] * np.tile(photo.size, 2), expected["out_boxes"][0, :n], 1e-2)


def compare_all(extractor: BottomUpExtractor, photos: list[Image.Image], golden: Arrays) -> None:
    for number, photo in enumerate(photos):
        compare_reference(extractor, photo, part(golden, f"img{number}"))


def compare_uniter(extractor: BottomUpExtractor, photo: Image.Image, expected: Arrays) -> None:
    regions = extractor(photo)
    assert len(regions) == len(expected["rows"])
    close(regions.confidence, expected["conf"], 5e-4)
    close(regions.boxes, expected["norm_bb7"], 1e-4)
    close(regions.features, expected["features"], 5e-4)
    assert regions.soft_labels is not None
    close(np.roll(regions.soft_labels, -1, axis=1), expected["soft_labels_bg_last"], 5e-4)
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
def test_what_is_kept_is_the_references(reference: BottomUpExtractor, golden: Arrays, number: int) -> None:
    compare_reference(reference, Image.open(GOLDEN / PHOTOS[number]), part(golden, f"img{number}"))


@pytest.mark.parametrize("number", [0, 1])
def test_what_is_kept_is_uniters(uniter: BottomUpExtractor, golden: Arrays, number: int) -> None:
    compare_uniter(uniter, Image.open(GOLDEN / PHOTOS[number]), part(golden, f"uniter_img{number}"))


@pytest.mark.parametrize("boxes", ["reference", "uniter"])
def test_a_photos_regions_are_the_same_bits_in_any_company(boxes: str, request: pytest.FixtureRequest) -> None:
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
