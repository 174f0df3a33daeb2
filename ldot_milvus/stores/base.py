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

    All methods raise :class:`~ldot_milvus.errors.StoreError` or a subclass where the store cannot be used, and
    :class:`~ldot_milvus.errors.UsageError` for bad arguments, before anything is written. A filter is a dictionary as
    ``docs/filters.md`` describes it; a bad one is a :class:`~ldot_milvus.errors.FilterError`.

    Attributes:
        address: of the store, absolute: :mod:`~ldot_milvus.stores.registry`.
        collection: name of the collection.
    """

    address: str
    collection: str

    @property
    @abstractmethod
    def model(self) -> str | None:
        """Fingerprint of the model whose vectors are here; None while there is no collection, or none is bound.

        Looked up each time: another process may bind one.
        """

    @property
    @abstractmethod
    def dim(self) -> int | None:
        """Width of the vectors; None while there is no collection. Looked up each time."""

    @abstractmethod
    def bind(self, model: str, dim: int) -> None:
        """Create the collection for a model, or check that it was made with this one.

        A collection without a model adopts this one if the width agrees.

        Args:
            model: the model's fingerprint.
            dim: width of its vectors, at least 1.

        Raises:
            ModelMismatch: it holds vectors of another model or another dimension.
        """

    @abstractmethod
    def upsert(self, records: Sequence[Record]) -> int:
        """Insert or replace by id, all or nothing.

        A collection that does not exist yet is created with the vectors' width and no model.

        Args:
            records: each with its embedding, (dim,) float32 and finite. Where an id comes twice the last one wins.

        Returns:
            How many rows were written; an id that came twice counts once.

        Raises:
            ModelMismatch: vectors of another width than the collection's.
            UsageError: names the id and the field that cannot be kept.
        """

    @abstractmethod
    def search(self, queries: Array, k: int, *, kind: str = "image", filter: Filter | None = None) -> list[list[Match]]:
        """The k rows of largest inner product for each query, best first, equal scores by id.

        Args:
            queries: (n, dim) float32, finite.
            k: from 1 to 16,384; fewer rows come back where the collection (after the filter) has fewer.
            kind: kind of the rows, "image" or "text".
            filter: only rows that pass; None for all.

        Returns:
            n lists of at most k matches, without their embeddings.

        Raises:
            CollectionNotFound: nothing was ever written; the message names the collections that there are.
            ModelMismatch: queries of another width than the collection's.
        """

    @abstractmethod
    def get(self, ids: Sequence[str], *, with_embeddings: bool = False) -> list[Record]:
        """The rows of these ids that exist, in the order asked for; an id asked for twice comes twice.

        Args:
            ids: any strings.
            with_embeddings: fill ``embedding``, (dim,) float32 as it was written; else it is None.
        """

    @abstractmethod
    def update(self, records: Sequence[Record]) -> int:
        """Replace namespace, source, caption and metadata of existing rows, keeping everything else.

        Args:
            records: their embedding, kind, width and height are ignored. Where an id comes twice the last one wins.

        Returns:
            How many of the ids exist.
        """

    @abstractmethod
    def delete(self, ids: Sequence[str] | None = None, filter: Filter | None = None) -> int:
        """Delete by id or by filter.

        Args:
            ids: rows to delete; those that do not exist are no error.
            filter: delete what passes; ``{}`` is refused, because it would delete everything.

        Returns:
            How many rows went.

        Raises:
            UsageError: both or neither of them given, or an empty filter.
        """

    @abstractmethod
    def count(self, filter: Filter | None = None) -> int:
        """How many rows there are (that pass the filter); 0 while there is no collection."""

    @abstractmethod
    def iterate(
        self, filter: Filter | None = None, *, batch_size: int = 1000, with_embeddings: bool = False
    ) -> Iterator[Record]:
        """All rows (that pass the filter), in order of id, without a limit; none while there is no collection.

        Each batch sees the store as it is then, so writing while iterating is safe.

        Args:
            filter: only rows that pass; None for all.
            batch_size: rows read at a time, from 1 to 16,384.
            with_embeddings: as in :meth:`get`.
        """

    @abstractmethod
    def successor(self) -> VectorStore:
        """An empty collection of the same store and index settings, to be filled and put in this one's place.

        An earlier successor that was left half filled is emptied.

        Raises:
            StoreError: no other collection can take this one's place.
        """

    @abstractmethod
    def replace_by(self, successor: VectorStore) -> None:
        """Make this collection's name mean ``successor``'s rows, at once for every process; the old rows go.

        Args:
            successor: what :meth:`successor` gave, filled.
        """

    @abstractmethod
    def close(self) -> None:
        """Release files and connections; a closed store is not used again."""

    def __enter__(self) -> VectorStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
