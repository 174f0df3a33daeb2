"""Grid regions: features and boxes of the cells, for photos of any shape."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ldot_milvus import LightningDOTEmbedder
from ldot_milvus.errors import InputError
from ldot_milvus.regions import Regions
from ldot_milvus.regions.grid import GridBackbone, GridExtractor, grid_boxes


def test_boxes_tile_the_photo_row_by_row() -> None:
    boxes = grid_boxes(7)
    assert boxes.shape == (49, 7)
    np.testing.assert_allclose(boxes[0], [0, 0, 1 / 7, 1 / 7, 1 / 7, 1 / 7, 1 / 49], atol=1e-6)
    np.testing.assert_allclose(boxes[8, :4], [1 / 7, 1 / 7, 2 / 7, 2 / 7], atol=1e-6)
    np.testing.assert_allclose(boxes[:, 6].sum(), 1, atol=1e-5)


@pytest.mark.parametrize("size", [(224, 224), (640, 480), (10, 4000), (1, 1), (3000, 50)])
def test_any_shape_gives_49_regions(mini, size: tuple[int, int]) -> None:
    (regions,) = mini.bundle.extractor([Image.new("RGB", size, (200, 30, 30))])
    assert regions.features.shape == (49, 3580)  # with those of the classifier and of the label names
    assert regions.features.dtype == np.float32
    assert np.isfinite(regions.features).all()
    assert (regions.features[:, :2048] >= 0).all()  # after the last ReLU


def test_a_region_depends_on_its_own_cell(mini) -> None:
    """An object in the lower right corner changes the lower right cells most."""
    plain = Image.new("RGB", (224, 224), (90, 140, 200))
    marked = plain.copy()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    marked.paste(Image.fromarray(pixels), (160, 160))
    before, after = (r.features for r in mini.bundle.extractor([plain, marked]))
    change = np.abs(after - before).sum(1).reshape(7, 7)
    row, column = np.unravel_index(change.argmax(), change.shape)
    assert row >= 5
    assert column >= 5
    assert change[:3, :3].max() < change.max() / 3


def test_fused_batch_norms_change_nothing(tiny_model: str) -> None:
    import torch

    backbone = GridBackbone.from_pretrained(f"{tiny_model}/regions").eval()
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    pixels = torch.from_numpy(np.array(image))[None].permute(0, 3, 1, 2).float()
    with torch.inference_mode():
        plain = backbone(pixels - torch.tensor([123.68, 116.779, 103.939]).view(1, 3, 1, 1)).last_hidden_state
    (regions,) = GridExtractor(backbone, size=64)([image])
    np.testing.assert_allclose(regions.features, plain[0].flatten(1).T.numpy(), rtol=1e-4, atol=1e-3)


def test_mirrored_average_is_that_of_both_photos(tiny_model: str) -> None:
    from PIL import ImageOps

    backbone = f"{tiny_model}/regions"
    image = Image.fromarray(np.random.default_rng(3).integers(0, 256, (128, 128, 3), dtype=np.uint8))
    plain = GridExtractor.from_pretrained(backbone, size=128)
    straight, turned = (regions.features.reshape(4, 4, -1) for regions in plain([image, ImageOps.mirror(image)]))
    (both,) = GridExtractor.from_pretrained(backbone, size=128, mirror=True)([image])
    np.testing.assert_allclose(both.features.reshape(4, 4, -1), (straight + turned[:, ::-1]) / 2, rtol=1e-4, atol=1e-3)


def test_a_photo_does_not_depend_on_its_batch() -> None:
    """In float32: with bfloat16, which is chosen where the processor has it, sums differ by their order."""
    extractor = LightningDOTEmbedder("ldot-mini", device="cpu", dtype="float32").bundle.extractor
    rng = np.random.default_rng(2)
    images = [Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)) for _ in range(3)]
    together = extractor(images)
    (alone,) = extractor(images[1:2])
    np.testing.assert_allclose(alone.features, together[1].features, atol=1e-3)


def test_arrays_of_unequal_length_are_refused() -> None:
    with pytest.raises(InputError, match="boxes"):
        Regions(np.zeros((3, 8), np.float32), np.zeros((2, 7), np.float32), np.ones(3, np.float32))
