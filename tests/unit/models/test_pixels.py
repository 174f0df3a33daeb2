"""Photos are prepared as by transformers' image processors of the same configuration."""

from __future__ import annotations

import io

import numpy as np
import pytest
import transformers
from PIL import Image

from ldot_milvus.errors import InputError
from ldot_milvus.models.blip.files import BlipFiles
from ldot_milvus.models.contrastive.files import ClipFiles, SiglipFiles
from ldot_milvus.models.pixels import prepare_photos, read_preparation
from ldot_milvus.regions import Regions

PROCESSORS = {
    "siglip": (transformers.SiglipImageProcessorPil, SiglipFiles, {"size": {"height": 48, "width": 48}}),
    "siglip-defaults": (transformers.SiglipImageProcessorPil, SiglipFiles, {}),
    "siglip-bilinear": (transformers.SiglipImageProcessorPil, SiglipFiles,
                        {"size": {"height": 32, "width": 32}, "resample": 2}),
    "clip": (transformers.CLIPImageProcessorPil, ClipFiles, {"size": {"shortest_edge": 40}, "crop_size": 33}),
    "clip-defaults": (transformers.CLIPImageProcessorPil, ClipFiles, {}),
    "clip-numbers": (transformers.CLIPImageProcessorPil, ClipFiles, {"size": 64, "crop_size": 64}),
    "blip": (transformers.BlipImageProcessorPil, BlipFiles, {"size": {"height": 64, "width": 64}}),
    "blip-defaults": (transformers.BlipImageProcessorPil, BlipFiles, {}),
    "blip-number": (transformers.BlipImageProcessorPil, BlipFiles, {"size": 64}),
    "blip-own-colours": (transformers.BlipImageProcessorPil, BlipFiles,
                         {"size": 64, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}),
    "not-normalised": (transformers.BlipImageProcessorPil, BlipFiles,
                       {"size": 64, "do_normalize": False, "do_rescale": False}),
}  # fmt: skip


def jpeg(width: int, height: int, seed: int = 0) -> bytes:
    """A photo with smooth and sharp parts."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (6, 7, 3), dtype=np.uint8)).resize((width, height))
    image.paste(Image.fromarray(rng.integers(0, 256, (height // 3, width // 3, 3), dtype=np.uint8)), (width // 4, 3))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("size", [(80, 60), (61, 97), (300, 40), (20, 20)])
def test_equal_to_transformers(name: str, size: tuple[int, int]) -> None:
    processor, family, config = PROCESSORS[name]
    data = jpeg(*size)
    reference = processor(**config)
    expected = reference(Image.open(io.BytesIO(data)), return_tensors="np")["pixel_values"]
    prepared = prepare_photos("m", read_preparation(config, family.image_defaults), [data, data])
    assert prepared.shape == (2, *expected.shape[1:])
    assert prepared.dtype == np.float32
    grey_level = 1.0 if name == "not-normalised" else 1 / 255 / float(np.max(reference.image_std))
    np.testing.assert_allclose(prepared[1], expected[0], atol=grey_level * 1.001)
    # The resampling is Pillow's in both, so that nothing but the rounding of float32 differs.
    np.testing.assert_allclose(prepared[0], expected[0], atol=1e-5)


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"do_pad": True}, "do_pad"),
        ({"do_resize": False}, "do_resize"),
        ({"size": {"longest_edge": 32}}, "longest_edge"),
        ({"do_center_crop": False}, "do_center_crop"),
    ],
)
def test_what_is_not_supported_is_refused(config: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        read_preparation(config, ClipFiles.image_defaults)


def test_region_features_are_refused() -> None:
    regions = Regions(np.zeros((2, 8), np.float32), np.zeros((2, 7), np.float32), np.ones(2, np.float32))
    with pytest.raises(InputError, match="'m' reads photos"):
        prepare_photos("m", read_preparation({}, ClipFiles.image_defaults), [regions])
