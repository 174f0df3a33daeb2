"""Label probabilities: the network against a reference of its layers, its cells, and real weights on real photos."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from ldot_milvus.errors import InputError
from ldot_milvus.regions import Regions
from ldot_milvus.regions.efficientnet import EfficientNetLite, box_means
from ldot_milvus.regions.labels import LabelClassifier, LabelledExtractor
from ldot_milvus.regions.records import decode_record, encode_msgpack, encode_npz
from tests.conftest import PHOTOS
from tests.labelled_models import STAGES, build_classifier

EPS = 1e-3


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_classifier(tmp_path_factory.mktemp("models") / "classifier")


def reference(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """The last feature map, written from TensorFlow's definitions, with nothing fused."""

    def layer(x: Tensor, name: str, kernel: int, stride: int = 1, *, depthwise: bool = False) -> Tensor:
        side = x.shape[-1]
        missing = max(0, (-(-side // stride) - 1) * stride + kernel - side)
        before, after = missing // 2, missing - missing // 2  # "same": the odd pixel lies at the right and bottom
        x = functional.pad(x, (before, after, before, after))
        weight = weights[f"{name}.conv.weight"]
        x = functional.conv2d(x, weight, stride=stride, groups=len(weight) if depthwise else 1)
        mean, var, scale, bias = (
            weights[f"{name}.bn.{part}"].view(1, -1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + EPS).sqrt() * scale + bias

    x = layer(x, "stem", 3, 2).clamp(0, 6)
    number, channels = 0, x.shape[1]
    for stage in STAGES:
        for repeat in range(stage["repeats"]):
            name, stride, y = f"blocks.{number}", stage["stride"] if repeat == 0 else 1, x
            if stage["expand"] > 1:
                y = layer(y, f"{name}.expand", 1).clamp(0, 6)
            y = layer(y, f"{name}.depthwise", stage["kernel"], stride, depthwise=True).clamp(0, 6)
            y = layer(y, f"{name}.project", 1)
            x = x + y if stride == 1 and channels == stage["channels"] else y
            number, channels = number + 1, stage["channels"]
    return layer(x, "head", 1).clamp(0, 6)


@pytest.mark.parametrize("size", [36, 37, 64])
def test_network_equals_its_reference(classifier: Path, size: int) -> None:
    """With padding on one side only, on both sides, and with the batch norms fused or not."""
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    network = EfficientNetLite.from_pretrained(classifier).eval()
    with torch.inference_mode():
        expected = reference(load_file(classifier / "model.safetensors"), x)
        plain = network.feature_map(x)
        fused = network.fused().feature_map(x)
    assert expected.std() > 0.1
    torch.testing.assert_close(plain, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fused, expected, rtol=1e-4, atol=1e-4)


def test_boxes_are_the_means_of_the_positions_in_them() -> None:
    features = torch.arange(162.0).view(1, 2, 9, 9)
    third = 1 / 3
    boxes = torch.tensor(
        [[0, 0, 1, 1], [2 * third, third, 1, 2 * third], [0, 0, 1.5 / 9, 1 / 9], [0.5, 0.25, 0.51, 1.0]]
    )
    means = box_means(features, boxes)
    assert means.shape == (1, 4, 2)
    torch.testing.assert_close(means[0, 0], features[0].mean((1, 2)))
    torch.testing.assert_close(means[0, 1], features[0, :, 3:6, 6:9].mean((1, 2)))
    torch.testing.assert_close(means[0, 2], (features[0, :, 0, 0] + features[0, :, 0, 1] / 2) / 1.5)
    column = features[0, :, 2:, 4] * torch.tensor([0.75, 1, 1, 1, 1, 1, 1])  # a box smaller than a position
    torch.testing.assert_close(means[0, 3], column.sum(1) / 6.75, rtol=1e-4, atol=1e-3)


def test_a_map_of_one_value_has_that_mean_in_every_box() -> None:
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 0.9, (50, 2))
    corners = np.concatenate([low, low + rng.uniform(0.01, 1, (50, 2)) * (1 - low)], axis=1).astype(np.float32)
    corners[:4] = [[0.5, 0.5, 0.5, 0.5], [1, 1, 1, 1], [0, 0, 0, 0], [0.3, 1, 0.6, 1]]  # empty boxes
    for sides in ((9, 9), (8, 5), (1, 1)):
        means = box_means(torch.full((2, 3, *sides), 7.0), torch.from_numpy(corners))
        torch.testing.assert_close(means, torch.full((2, 50, 3), 7.0), rtol=1e-3, atol=0)


@pytest.mark.parametrize("size", [(36, 36), (640, 480), (10, 4000), (1, 1)])
def test_any_photo_gives_probabilities_of_the_whole_and_of_each_cell(classifier: Path, size: tuple[int, int]) -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    (labels,) = LabelClassifier.from_pretrained(str(classifier), temperature=0.7, cells=2)([photo])
    assert labels.shape == (5, 5)
    assert labels.dtype == np.float32
    np.testing.assert_allclose(labels.sum(1), 1, atol=1e-5)


def test_probabilities_are_the_softmax_of_the_networks_logits(classifier: Path) -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (36, 36, 3), dtype=np.uint8))
    network = EfficientNetLite.from_pretrained(classifier).eval()
    pixels = (torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() - 127) / 128
    with torch.inference_mode():
        expected = (network(pixels) / 0.7).softmax(1)[0].numpy()
    (labels,) = LabelClassifier(network, temperature=0.7)([image])
    np.testing.assert_allclose(labels[0], expected, rtol=1e-3, atol=1e-5)


def test_a_photo_does_not_depend_on_its_batch(classifier: Path) -> None:
    rng = np.random.default_rng(2)
    images = [Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)) for _ in range(11)]
    probabilities = LabelClassifier.from_pretrained(str(classifier))
    np.testing.assert_allclose(probabilities(images[9:10])[0], probabilities(images)[9], atol=1e-5)
    assert probabilities([]).shape == (0, 10, 5)


def test_regions_keep_the_photos_labels_through_selection_and_files(tiny, classifier: Path) -> None:
    classify = LabelClassifier.from_pretrained(str(classifier))
    extractor = LabelledExtractor(tiny.bundle.extractor, classify)
    image = Image.fromarray(np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    (plain,), (regions,) = tiny.bundle.extractor([image]), extractor([image])
    np.testing.assert_allclose(regions.features, plain.features, atol=1e-5)
    np.testing.assert_allclose(regions.label_probabilities, classify([image])[0], atol=1e-6)
    assert (extractor.dim, extractor.least_side) == (tiny.bundle.extractor.dim, 128)
    part = regions.select(np.array([2, 0]))
    assert len(part) == 2
    assert part.label_probabilities is regions.label_probabilities
    for record in (encode_npz(regions), encode_msgpack(regions)):
        read = decode_record(record, "record")
        np.testing.assert_allclose(read.label_probabilities, regions.label_probabilities, atol=1e-3)
    assert decode_record(encode_npz(plain), "record").label_probabilities is None
    with pytest.raises(InputError, match="label_probabilities"):
        Regions(plain.features, plain.boxes, plain.confidence, label_probabilities=np.ones(5, np.float32))


def test_features_are_followed_by_what_the_classifier_sees_in_each_region(tiny, classifier: Path) -> None:
    network = EfficientNetLite.from_pretrained(classifier).eval()
    names = np.random.default_rng(4).normal(size=(5, 3)).astype(np.float32)
    classify = LabelClassifier.from_pretrained(str(classifier), cells=2)
    extractor = LabelledExtractor(tiny.bundle.extractor, classify, names)
    rng = np.random.default_rng(5)
    images = [Image.fromarray(rng.integers(0, 256, (36, 36, 3), dtype=np.uint8)) for _ in range(9)]
    plain, extended = tiny.bundle.extractor(images), extractor(images)
    width = tiny.bundle.extractor.dim
    assert extractor.dim == extended[0].features.shape[1] == width + 24 + 2 * 3
    pixels = (torch.from_numpy(np.stack([np.array(image) for image in images])).permute(0, 3, 1, 2).float() - 127) / 128
    with torch.inference_mode():
        maps = network.feature_map(pixels)
    for number in (0, 8):
        regions, labels = extended[number], extended[number].label_probabilities
        parts = np.split(regions.features, [width, width + 24, width + 27], axis=1)
        np.testing.assert_allclose(parts[0], plain[number].features, atol=1e-5)
        expected = box_means(maps[number : number + 1], torch.from_numpy(regions.boxes[:, :4]))[0]
        np.testing.assert_allclose(parts[1], expected, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(parts[2], (labels @ names)[regions.label_places], atol=1e-5)
        np.testing.assert_allclose(parts[3], np.tile(labels[0] @ names, (len(regions), 1)), atol=1e-5)
    assert extractor([]) == []


def test_the_real_network_names_sample_photos(mini) -> None:
    """The packaged weights, as stored, on photos whose subject is one of the 1,000 labels."""
    folder = mini.bundle.files.folder / "labels"
    names = json.loads((folder / "labels.json").read_text())
    assert len(names) == 1000
    expected = {
        "000000519208.jpg": {"African bush elephant", "Asian elephant", "tusker"},
        "000000229997.jpg": {"American black bear", "brown bear"},
        "000000568290.jpg": {"double-decker bus", "trolleybus", "minibus"},
    }
    photos = [Image.open(PHOTOS / name) for name in expected]
    regions = mini.bundle.extractor(photos)
    for right, its in zip(expected.values(), regions, strict=True):
        first = np.argsort(-its.label_probabilities[0])[:2]
        assert right & {names[label] for label in first}
