"""The perceptual hash, with real photos: near for the same photo in other bytes, far for another photo."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from PIL import Image, ImageOps

from ldot_milvus.images import decode
from ldot_milvus.search.nearness import MAX_DISTANCE
from ldot_milvus.search.perceptual_hash import DECODE_AT, perceptual_hash
from tests.conftest import PHOTOS
from tests.variants import VARIANTS, encoded


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in sorted(PHOTOS.glob("*.jpg"))]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_photo_in_other_bytes_is_near(images: list[Image.Image], variant: str) -> None:
    distances = [perceptual_hash(image).distance(perceptual_hash(VARIANTS[variant](image))) for image in images]
    least = 0.9 if variant == "trimmed by 5 %" else 1.0
    assert np.mean(np.array(distances) <= MAX_DISTANCE) >= least, distances


def test_other_photos_are_far(images: list[Image.Image]) -> None:
    hashes = [perceptual_hash(image) for image in images]
    assert min(a.distance(b) for a, b in combinations(hashes, 2)) > MAX_DISTANCE + 4
    turned = [perceptual_hash(ImageOps.flip(image)) for image in images]
    assert min(a.distance(b) for a, b in zip(hashes, turned, strict=True)) > MAX_DISTANCE  # upside down is another one


def test_both_hashes_belong_to_the_photo_and_its_mirror_image(images: list[Image.Image]) -> None:
    for image in images:
        hash, mirrored = perceptual_hash(image), perceptual_hash(ImageOps.mirror(image))
        assert (hash.bits ^ mirrored.mirrored).bit_count() <= 2
        assert (hash.mirrored ^ mirrored.bits).bit_count() <= 2
        assert hash.distance(mirrored) == mirrored.distance(hash)


def test_decoding_at_a_smaller_size_hardly_changes_it(images: list[Image.Image]) -> None:
    for image in images:
        data = encoded(image.resize((image.width * 2, image.height * 2)))
        small = decode(data, draft_to=DECODE_AT).image
        assert small.width < image.width
        assert perceptual_hash(small).distance(perceptual_hash(image)) <= 2


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (32, 32), (3, 2)])
def test_any_size_has_a_hash(size: tuple[int, int]) -> None:
    plain = [perceptual_hash(Image.new("RGB", size, colour)) for colour in ("black", "white", "navy")]
    assert len(set(plain)) == 1  # nothing but the constant part, which the hash leaves out: vectors must decide
    assert plain[0].bits == 0
