"""The passes over an image's pixels: one for both stages, or a second one of the re-ranker's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast

from ldot_milvus.models.base import Embedder, ImageFeatures, ImageInput, Reranker, SecondPassReranker
from ldot_milvus.models.inputs import image_inputs


def image_features(
    embedder: Embedder, reranker: Reranker | None, images: Iterable[ImageInput]
) -> tuple[list[ImageFeatures], list[ImageFeatures]]:
    """Compute the features of both stages.

    Args:
        embedder: of the first stage.
        reranker: of the second stage, loaded for ``embedder``; None without one.
        images: n images.

    Returns:
        The input of ``embedder.encode_features`` and the input of ``reranker.keep``: n features each. They are one list
        unless the re-ranker makes its own pass (:class:`~ldot_milvus.models.base.SecondPassReranker`).

    Raises:
        InputError: an image cannot be read, or is given in a form that one of the stages does not read.
        UsageError: the model reads precomputed features only.
    """
    given = list(image_inputs(images))  # once, since an open file cannot always be read twice
    features = embedder.image_features(given)
    second = _second_pass(reranker)
    return features, features if second is None else second.image_features(given)


def least_side(embedder: Embedder, reranker: Reranker | None) -> int | None:
    """Return the minimum length of both sides of a photo that is decoded at a reduced size, for both stages.

    Returns:
        Pixels; None if photos must be decoded at full size.
    """
    sides = [embedder.least_side]
    second = _second_pass(reranker)
    if second is not None:
        sides.append(second.least_side)
    known = [side for side in sides if side is not None]
    return max(known) if len(known) == len(sides) else None


def _second_pass(reranker: Reranker | None) -> SecondPassReranker | None:
    # Not isinstance: a protocol's check would evaluate the properties, and the fingerprint reads all weights.
    own: Callable[..., object] | None = getattr(reranker, "image_features", None)
    return None if own is None else cast(SecondPassReranker, reranker)
