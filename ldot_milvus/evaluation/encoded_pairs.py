"""Encoded pairs, and a folder that keeps them: a later evaluation of the same model reads what this one encoded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ldot_milvus.models.base import Array, Embedder, KeptImage, Reranker
from ldot_milvus.stores.regions import RegionStore

if TYPE_CHECKING:
    from ldot_milvus.evaluation.photos import Pair
    from ldot_milvus.regions import Regions

IMAGE, TEXTS = "image vector", "text vectors"
"""Names of the vectors among the arrays of the region data."""

LoadedPair = tuple["Pair", "bytes | Regions"]
"""A pair, and its photo as loaded."""


@dataclass(frozen=True)
class EncodedPair:
    """A photo and its n captions, encoded.

    Attributes:
        image: float32 (dim,), the vector of the photo.
        texts: float32 (n, dim), the vectors of the captions.
        kept: the region data of the photo; None without a re-ranker.
    """

    image: Array
    texts: Array
    kept: KeptImage | None


class PairCache:
    """A folder of encoded pairs, by the SHA-256 of the photo's contents and of the captions.

    Args:
        folder: the folder; pairs of other models and precisions may be in it too.
        embedder: the first stage.
        reranker: the second stage; None without one.
        precision: device and dtype of the models.
    """

    def __init__(self, folder: str | Path, embedder: Embedder, reranker: Reranker | None, precision: str = "") -> None:
        parts = [embedder.fingerprint, "" if reranker is None else reranker.fingerprint, precision]
        self._files = RegionStore(str(folder), hashlib.sha256("\0".join(parts).encode()).hexdigest())
        self._keeps_regions = reranker is not None

    def encoded(
        self, pairs: Sequence[LoadedPair], encode: Callable[[Sequence[LoadedPair]], list[EncodedPair]]
    ) -> list[EncodedPair]:
        """Read pairs, and encode and add those that are missing. Pairs with regions instead of photos are not kept."""
        ids = [_id(pair, loaded) for pair, loaded in pairs if isinstance(loaded, bytes)]
        if len(ids) < len(pairs):
            return encode(pairs)
        known = {id: self._from_arrays(dict(arrays)) for id, arrays in self._files.get(ids).items()}
        missing = {id: pair for id, pair in zip(ids, pairs, strict=True) if id not in known}
        if missing:
            fresh = dict(zip(missing, encode(list(missing.values())), strict=True))
            self._files.put({id: {IMAGE: one.image, TEXTS: one.texts, **(one.kept or {})} for id, one in fresh.items()})
            known |= fresh
        return [known[id] for id in ids]

    def _from_arrays(self, arrays: dict[str, Array]) -> EncodedPair:
        image, texts = arrays.pop(IMAGE), arrays.pop(TEXTS)
        return EncodedPair(image, texts, arrays if self._keeps_regions else None)


def _id(pair: Pair, photo: bytes) -> str:
    return hashlib.sha256(json.dumps(list(pair.captions)).encode() + b"\0" + photo).hexdigest()
