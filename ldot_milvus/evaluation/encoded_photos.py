"""Encoded photos in a folder: a later evaluation of the same model reads them instead of encoding them again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ldot_milvus.models.base import Array, Embedder, KeptImage, Reranker
from ldot_milvus.stores.regions import RegionStore

if TYPE_CHECKING:
    from ldot_milvus.stores.regions import Arrays

VECTOR = "vector"
"""Name of a photo's vector among the arrays of its region data."""


class EncodedPhotos:
    """Vectors and region data of photos, by the SHA-256 of a photo's contents.

    Args:
        folder: the folder; photos of other models and precisions may be in it too.
        embedder: the first stage.
        reranker: the second stage; None without one.
        precision: device and dtype of the models.
    """

    def __init__(self, folder: str | Path, embedder: Embedder, reranker: Reranker | None, precision: str = "") -> None:
        parts = [embedder.fingerprint, "" if reranker is None else reranker.fingerprint, precision]
        self._files = RegionStore(str(folder), hashlib.sha256("\0".join(parts).encode()).hexdigest())

    def read(self, ids: Sequence[str]) -> dict[str, tuple[Array, KeptImage]]:
        """Return vector and region data of the photos that are in the folder, by id."""
        return {
            id: (arrays[VECTOR], {name: array for name, array in arrays.items() if name != VECTOR})
            for id, arrays in self._files.get(ids).items()
        }

    def write(self, ids: Sequence[str], vectors: Array, kept: Sequence[KeptImage]) -> None:
        """Add photos: vectors (n, dim), and region data, which are empty without a re-ranker."""
        photos: Mapping[str, Arrays] = {
            id: {VECTOR: np.ascontiguousarray(vector), **(kept[row] if kept else {})}
            for row, (id, vector) in enumerate(zip(ids, vectors, strict=True))
        }
        self._files.put(photos)
