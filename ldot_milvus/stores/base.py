"""The interface of every vector store, and the rows that it holds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Filter = dict[str, Any]

SCHEMA_VERSION = 1
KINDS = ("image", "text")


@dataclass(frozen=True)
class Record:
    """One row of a collection (the fields are a contract: ``docs/collection.md``).

    Attributes:
        id: at most 64 characters; the SHA-256 of the content in hex unless the caller has his own.
        embedding: (dim,) float32, as the model gave it; None where a read did not ask for it.
        kind: "image" or "text".
        width, height: pixels after EXIF rotation; 0 for texts.
        metadata: the caller's own fields, JSON values.
    """

    id: str
    embedding: Array | None = None
    kind: str = "image"
    namespace: str = "default"
    source: str = ""
    caption: str = ""
    width: int = 0
    height: int = 0
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Match:
    """One answer of a search: the row (without its embedding) and its inner product with the query."""

    record: Record
    score: float


class VectorStore(ABC):
    """One collection of vectors, compared by inner product. Every store does the same with the same calls.

    All methods raise :class:`~ldot_milvus.errors.StoreError` or a subclass, and
    :class:`~ldot_milvus.errors.UsageError` for bad arguments.
    """

    address: str
    collection: str

    @property
    @abstractmethod
    def model(self) -> str | None:
        """Fingerprint of the model whose vectors are here; None while the collection does not exist."""

    @property
    @abstractmethod
    def dim(self) -> int | None:
        """Width of the vectors; None while the collection does not exist."""

    @abstractmethod
    def bind(self, model: str, dim: int) -> None:
        """Create the collection for a model, or check that it was made with this one.

        Raises:
            ModelMismatch: it holds vectors of another model or another dimension.
        """

    @abstractmethod
    def upsert(self, records: Sequence[Record]) -> int:
        """Insert or replace by id, all or nothing; returns how many rows were written.

        A collection that does not exist yet is created with the vectors' width and no model.
        """

    @abstractmethod
    def search(self, queries: Array, k: int, *, kind: str = "image", filter: Filter | None = None) -> list[list[Match]]:
        """The k rows of largest inner product for each query, best first, equal scores by id.

        Args:
            queries: (n, dim) float32, finite.
            k: at least 1; fewer rows come back where the collection (after the filter) has fewer.
        """

    @abstractmethod
    def get(self, ids: Sequence[str], *, with_embeddings: bool = False) -> list[Record]:
        """The rows of these ids that exist, in the order asked for."""

    @abstractmethod
    def update(self, records: Sequence[Record]) -> int:
        """Replace namespace, source, caption and metadata of existing rows, keeping their vectors."""

    @abstractmethod
    def delete(self, ids: Sequence[str] | None = None, filter: Filter | None = None) -> int:
        """Delete by id or by filter (exactly one of them); returns how many rows went."""

    @abstractmethod
    def count(self, filter: Filter | None = None) -> int:
        """How many rows there are (that pass the filter)."""

    @abstractmethod
    def iterate(
        self, filter: Filter | None = None, *, batch_size: int = 1000, with_embeddings: bool = False
    ) -> Iterator[Record]:
        """All rows (that pass the filter), in order of id, without a limit."""

    @abstractmethod
    def successor(self) -> VectorStore:
        """An empty collection of the same store and index settings, to be filled and put in this one's place."""

    @abstractmethod
    def replace_by(self, successor: VectorStore) -> None:
        """Make this collection's name mean ``successor``'s rows, at once for every process; the old rows go."""

    @abstractmethod
    def close(self) -> None:
        """Release files and connections; a closed store is not used again."""

    def __enter__(self) -> VectorStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
