"""Image features of families with a vision transformer: the states of its last layer, one per token.

Re-rankers that read tokens, whatever model computed them, go through :func:`tokens_of`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ldot_milvus.errors import InputError
from ldot_milvus.models.base import Array, ImageFeatures
from ldot_milvus.regions.base import Regions

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class PatchFeatures:
    """Output of one pass of a vision transformer over one image.

    Attributes:
        states: last hidden states (tokens, width), on the embedder's device and in its dtype.
        vector: the embedder's vector of the image, float32 (dim,).
    """

    states: torch.Tensor
    vector: Array


def tokens_of(features: Sequence[ImageFeatures]) -> list[torch.Tensor]:
    """Return the tokens of images, each (tokens, width): the states of a vision transformer, or the regions' features.

    Raises:
        InputError: the features are of neither kind.
    """
    import torch

    tokens = []
    for one in features:
        if isinstance(one, PatchFeatures):
            tokens.append(one.states)
        elif isinstance(one, Regions):
            tokens.append(torch.from_numpy(one.features))
        else:
            raise InputError(f"a {type(one).__name__} has no tokens: use a re-ranker of the same model family")
    return tokens
