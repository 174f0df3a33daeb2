"""Interface of the vector stores, and their rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldot_milvus.stores.index_spec import IndexSpec

Array = NDArray[np.float32]
Filter = dict[str, Any]

SCHEMA_VERSION = 2
"""Version of new collections: rows outside the namespace "default" have ids of their own (``stores/identity.py``)."""

VERSION = "schema_version"
"""Name of the property with the schema version of a collection."""

MODEL_SOURCE = "model_source"
"""Name of the property with the hub id and the commit of the model that filled a collection: ``owner/name@commit``."""

KINDS = ("image", "text")


@dataclass(frozen=True)
class Record:
    """One row of a collection; ``docs/collection.md`` specifies the fields.

    Attributes:
        id: at most 64 bytes of UTF-8: the SHA-256 of the contents in hex unless the caller chose another.
        embedding: float32 (dim,), as the model returned it; None if a read did not ask for it.
        kind: "image" or "text".
        namespace: tenant, at most 64 bytes of UTF-8.
        source: path or URL, at most 4,096 bytes of UTF-8.
        caption: caption of the photo, or the text itself; at most 8,192 bytes of UTF-8.
        width, height: pixels after EXIF rotation; 0 for texts.
        metadata: the caller's own fields, JSON values; at most 65,536 bytes as JSON.
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
    """One row found by a search.

    Attributes:
        record: the row, without its embedding.
        score: inner product of the row's and the query's vectors.
    """

    record: Record
    score: float


class VectorStore(ABC):
    """One collection of vectors, compared by inner product. All stores behave the same.

    All methods raise :class:`~ldot_milvus.errors.StoreError` or a subclass if the store cannot be used, and
    :class:`~ldot_milvus.errors.UsageError` for bad arguments, before anything is written. Filters are dictionaries as
    in ``docs/filters.md``; a bad one raises :class:`~ldot_milvus.errors.FilterError`.

    Attributes:
        address: absolute address of the store, see :mod:`~ldot_milvus.stores.registry`.
        collection: name of the collection.
    """

    address: str
    collection: str

    def check_writable(self) -> None:  # noqa: B027  (stores of others need not have it)
        """Find out whether rows can be written, and leave nothing behind; a store that cannot find out does nothing.

        Raises:
            StoreError: the store or its disk refuses writes.
        """

    @property
    def index(self) -> IndexSpec | None:
        """Index that searches use, never ``AUTO``; None if the collection does not exist or the store does not say."""
        return None

    def collections(self) -> list[str]:
        """Return the names of the collections in this store, sorted; a store that cannot list them knows its own."""
        return [] if self.dim is None else [self.collection]

    def finish_index(self) -> None:  # noqa: B027
        """Wait until the index of a new collection is built, and measure its recall (``stores/recall.py``).

        Below ``LEAST_RECALL``, ``AUTO`` builds another type of index instead, and a warning is logged. A store in which
        each process has its own index does nothing.

        Raises:
            StoreError: the index cannot be built.
        """

    @property
    @abstractmethod
    def model(self) -> str | None:
        """Fingerprint of the model of the vectors; None if the collection does not exist or has no model.

        Read from the store at each access, since another process may bind a model.
        """

    @property
    @abstractmethod
    def dim(self) -> int | None:
        """Dimension of the vectors; None if the collection does not exist. Read from the store at each access."""

    @property
    @abstractmethod
    def properties(self) -> dict[str, str]:
        """Properties of the collection, such as its schema version; empty if it does not exist.

        Read from the store at each access, since another process may set them.
        """

    @abstractmethod
    def set_properties(self, properties: Mapping[str, str]) -> None:
        """Set properties of the collection, together or one after the other; the others keep their values.

        Raises:
            CollectionNotFound: the collection does not exist.
        """

    @property
    def schema_version(self) -> int | None:
        """Version of the schema by which the rows were written; None if the collection does not exist."""
        properties = self.properties
        return int(properties.get(VERSION, 1)) if properties or self.dim is not None else None

    @abstractmethod
    def bind(self, model: str, dim: int) -> None:
        """Create the collection for a model, or check that it belongs to this model.

        A collection without a model becomes this model's if the dimensions agree.

        Args:
            model: fingerprint of the model.
            dim: dimension of its vectors, at least 1.

        Raises:
            ModelMismatch: the collection contains vectors of another model or dimension.
        """

    @abstractmethod
    def upsert(self, records: Sequence[Record]) -> int:
        """Insert or replace rows by id, all or none.

        If the collection does not exist, it is created with the dimension of the vectors and no model.

        Args:
            records: rows with embeddings, float32 (dim,) and finite. The last record of an id wins.

        Returns:
            Number of rows written; an id counts once.

        Raises:
            ModelMismatch: the vectors have another dimension than the collection.
            UsageError: a field cannot be stored; the message names the id and the field.
        """

    @abstractmethod
    def search(self, queries: Array, k: int, *, kind: str = "image", filter: Filter | None = None) -> list[list[Match]]:
        """Return the k rows with the largest inner product for each query, best first, equal scores by id.

        Args:
            queries: float32 (n, dim), finite.
            k: maximum number of rows for each query, from 1 to 16,384.
            kind: kind of the rows, "image" or "text".
            filter: search only rows that match; None searches all.

        Returns:
            n lists of k matches, or of fewer where fewer rows match. The rows have no embeddings.

        Raises:
            CollectionNotFound: the collection does not exist; the message lists the existing ones.
            ModelMismatch: the queries have another dimension than the collection.
        """

    @abstractmethod
    def get(self, ids: Sequence[str], *, with_embeddings: bool = False) -> list[Record]:
        """Return the existing rows of these ids, in the order of ``ids``.

        Args:
            ids: ids, which need not exist; the row of a repeated id is repeated.
            with_embeddings: read the embeddings too, float32 (dim,) as written; else they are None.
        """

    @abstractmethod
    def update(self, records: Sequence[Record]) -> int:
        """Replace namespace, source, caption and metadata of existing rows.

        Args:
            records: new values; embedding, kind, width and height are ignored. The last record of an id wins.

        Returns:
            Number of the ids that exist.
        """

    @abstractmethod
    def delete(self, ids: Sequence[str] | None = None, filter: Filter | None = None) -> int:
        """Delete rows by id or by filter.

        Args:
            ids: ids of the rows to delete; ids that do not exist are ignored.
            filter: delete the rows that match; ``{}`` is refused, because it would delete every row.

        Returns:
            Number of deleted rows.

        Raises:
            UsageError: both or neither of the arguments are given, or the filter is empty.
        """

    @abstractmethod
    def count(self, filter: Filter | None = None) -> int:
        """Return the number of rows that match the filter (None matches all); 0 if the collection does not exist."""

    @abstractmethod
    def iterate(
        self, filter: Filter | None = None, *, batch_size: int = 1000, with_embeddings: bool = False
    ) -> Iterator[Record]:
        """Iterate over all rows that match the filter, in order of id; over none if the collection does not exist.

        Each batch is read when it is needed, so writing while iterating is safe.

        Args:
            filter: only rows that match; None for all.
            batch_size: rows read at a time, from 1 to 16,384.
            with_embeddings: as in :meth:`get`.
        """

    @abstractmethod
    def successor(self) -> VectorStore:
        """Return an empty collection with the same store and index settings, to replace this one.

        Rows in an earlier successor that was abandoned are deleted.

        Raises:
            StoreError: this collection cannot be replaced.
        """

    @abstractmethod
    def replace_by(self, successor: VectorStore) -> None:
        """Replace this collection by its successor, atomically for every process, and delete the old rows.

        Args:
            successor: collection that :meth:`successor` returned, with its rows.
        """

    @abstractmethod
    def close(self) -> None:
        """Release files and connections. Do not use the store afterwards."""

    def __enter__(self) -> VectorStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
