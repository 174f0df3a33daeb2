"""The Milvus store: a collection on a Milvus server or in a Milvus Lite file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

from typing_extensions import override

from ldot_milvus.batches import batched
from ldot_milvus.errors import CollectionNotFound, StoreError
from ldot_milvus.stores import validation
from ldot_milvus.stores.base import Array, Filter, Match, Record, VectorStore
from ldot_milvus.stores.exact import exactly
from ldot_milvus.stores.filter_look import look
from ldot_milvus.stores.filter_match import predicate
from ldot_milvus.stores.filters import And, Compare, Exists, Field, Node, parse
from ldot_milvus.stores.index_spec import AUTO, IndexSpec
from ldot_milvus.stores.milvus.building import finish
from ldot_milvus.stores.milvus.expressions import Expression, presence, to_milvus
from ldot_milvus.stores.milvus.messages import PAGE, among, page_size, requests
from ldot_milvus.stores.milvus.probing import check_creation, settle_index
from ldot_milvus.stores.milvus.ranking import filtered, ranked
from ldot_milvus.stores.milvus.schema import (
    MODEL,
    PREFIX,
    VECTOR,
    Described,
    creation,
    next_name,
    output_fields,
    read_description,
    record,
)
from ldot_milvus.stores.milvus.server import TIMEOUT, Server
from ldot_milvus.stores.writing import check_folder

IDS_AT_A_TIME = 5000
FIXED = ("embedding", "kind", "width", "height")  # fields that an update keeps


class MilvusStore(VectorStore):
    """A collection of a Milvus server or of Milvus Lite. Threads and forked processes may share a store.

    The collection's name is an alias of the collection that contains the rows, so that another collection can replace
    it without a gap. A search sees everything that this process wrote before. It sees writes of other processes within
    seconds; the first search in a process sees all of them.

    Args:
        address: ``http://host:19530``, or a path that ends in ``.db``; made absolute.
        collection: letters, digits and underscores.
        token: ``user:password`` or an API key.
        index: index to build if this store creates the collection; None for ``AUTO``.
        fallback: if the server cannot build the index, use the nearest CPU type and log a warning; else raise
            StoreError.
        timeout: time limit of one call, retries included, in seconds.
    """

    def __init__(
        self,
        address: str,
        collection: str,
        *,
        token: str | None = None,
        index: IndexSpec | None = None,
        fallback: bool = True,
        timeout: float = TIMEOUT,
    ) -> None:
        self.collection = validation.collection_name(collection)
        self.server = Server(address, token, timeout)
        self.address = self.server.address
        self._index = (index or IndexSpec()).checked()
        self._fallback = fallback
        self._known: Described | None = None
        self._aliased = True
        self._rows_expected = 0
        self._read_before = False
        self._wrote = False

    @override
    def check_writable(self) -> None:
        """Deletes a row that does not exist, or creates and drops a collection if there is none of this name."""
        if self.server.lite:
            remedy = "check its owner, or set LDOT_STORE to another file"
            check_folder(os.path.dirname(self.address), self.address, remedy)
        if self._describe() is not None:
            self.server.call("delete", self.collection, filter=among(["written by ldot doctor"]))
        elif not self.server.lite:  # Milvus Lite would create the file
            check_creation(self.server)

    @override
    def collections(self) -> list[str]:
        return sorted(self.server.names())

    @property
    @override
    def index(self) -> IndexSpec | None:
        described = self._describe()
        return None if described is None else described.index

    @override
    def finish_index(self) -> None:
        """The collection is not searched meanwhile: this is for a :meth:`successor` before it replaces another."""
        described = self._describe()
        if described is not None:
            finish(self, self.server, described, auto=self._index.index_type == AUTO)
            self._known = None

    @property
    @override
    def model(self) -> str | None:
        described = self._describe()
        return None if described is None else described.model

    @property
    @override
    def dim(self) -> int | None:
        described = self._describe()
        return None if described is None else described.dim

    @property
    @override
    def properties(self) -> dict[str, str]:
        described = self._describe()
        return {} if described is None else dict(described.properties)

    @override
    def set_properties(self, properties: Mapping[str, str]) -> None:
        """All of them in one request."""
        described = self._describe()
        if described is None:
            raise validation.not_found(self, self.server.names())
        prefixed = {PREFIX + name: value for name, value in properties.items()}
        self.server.call("alter_collection_properties", described.name, prefixed)
        self._known = None

    @override
    def bind(self, model: str, dim: int) -> None:
        dim = validation.model_and_dim(model, dim)
        described = self._describe() or self._create(dim, model)
        validation.same_model(self, (described.model, described.dim), model, dim, described.properties)
        if described.model is None:
            self.server.call("alter_collection_properties", described.name, {MODEL: model})
            self._known = replace(described, model=model)

    @override
    def upsert(self, records: Sequence[Record]) -> int:
        """Each request of up to 16 MB is atomic, but not the whole call: Milvus has no larger transactions."""
        kept, vectors = validation.records(records)
        if not kept:
            return 0
        described = self._known or self._describe() or self._create(vectors.shape[1], None)
        validation.same_width(self, described.dim, kept, vectors)
        for batch in requests(kept, vectors):
            self.server.call("upsert", self.collection, batch)
            self._wrote = True
        return len(kept)

    @override
    def search(self, queries: Array, k: int, *, kind: str = "image", filter: Filter | None = None) -> list[list[Match]]:
        """If more rows tie with the k-th than fit, the server chooses which of them are returned."""
        k = validation.k(k)
        validation.kind(kind, "search")
        given = parse(filter)
        node = And((Compare(Field("kind"), "$eq", kind), given))
        described = self._describe() if self._known is None else self._known
        if described is None:
            raise validation.not_found(self, self.server.names())
        matrix = validation.queries(queries, described.dim)
        if not len(matrix):
            return []
        self._look(given)
        expression = self._expression(node)
        if not expression.exact:
            found = self._overfetched(described, matrix, k, node, expression.text)
            if found is not None:
                return found
            # The vectors of the rows that match, and not of all that the expression finds.
            ids = (row.id for row in self._records(node, PAGE))
            batches = (self.get(batch, with_embeddings=True) for batch in batched(ids, PAGE))
            return exactly(matrix, k, (row for batch in batches for row in batch))
        results = self._search(described, matrix, k, expression.text)
        if all(len(result) == k for result in results) or described.index.index_type == "FLAT":
            return results
        # An approximate index may find too few rows under a filter, or if k is nearly the number of rows.
        available = min(k, self._count(expression.text))
        if all(len(result) >= available for result in results):
            return results
        return exactly(matrix, k, self._records(node, PAGE, with_embeddings=True))

    @override
    def get(self, ids: Sequence[str], *, with_embeddings: bool = False) -> list[Record]:
        listed = validation.ids(ids)
        described = self._describe() if listed else None
        if described is None:
            return []
        by_id = {}
        size = page_size(described.dim) if with_embeddings else PAGE
        for batch in batched(dict.fromkeys(listed), size):
            for read in self._query(among(batch), len(batch), with_embeddings):
                by_id[read.id] = read
        return [by_id[id] for id in listed if id in by_id]

    @override
    def update(self, records: Sequence[Record]) -> int:
        latest = {given.id: given for given in validation.plain(records)}
        stored = self.get(list(latest), with_embeddings=True)
        new = [replace(latest[old.id], **{name: getattr(old, name) for name in FIXED}) for old in stored]
        self.upsert(new)
        return len(stored)

    @override
    def delete(self, ids: Sequence[str] | None = None, filter: Filter | None = None) -> int:
        validation.ids_or_filter(ids, filter)
        if ids is not None:
            existing_ids = [read.id for read in self.get(list(dict.fromkeys(validation.ids(ids))))]
        else:
            node = parse(filter)
            self._look(node)
            existing_ids = [read.id for read in self._records(node, PAGE)]
        # By id even for a filter: servers count ids that do not exist, and not every server supports every filter.
        for batch in batched(existing_ids, IDS_AT_A_TIME):
            self.server.call("delete", self.collection, filter=among(batch))
            self._wrote = True
        return len(existing_ids)

    @override
    def count(self, filter: Filter | None = None) -> int:
        node = parse(filter)
        if self._describe() is None:
            return 0
        self._look(node)
        expression = self._expression(node)
        return self._count(expression.text) if expression.exact else sum(1 for _ in self._records(node, PAGE))

    @override
    def iterate(
        self, filter: Filter | None = None, *, batch_size: int = 1000, with_embeddings: bool = False
    ) -> Iterator[Record]:
        batch_size = validation.k(batch_size, "batch_size")
        node = parse(filter)
        self._look(node)
        return self._records(node, batch_size, with_embeddings=with_embeddings)

    @override
    def successor(self) -> VectorStore:
        """The successor has the next number; the alias does not point to it yet.

        Raises:
            StoreError: the name is not an alias, because another program created the collection.
        """
        described = self._describe()
        name = next_name(described.name if described else self.collection, self.collection, self.address)
        if self.server.call("has_collection", name):
            self.server.call("drop_collection", name)
        successor = MilvusStore(self.address, name, index=self._index, fallback=self._fallback)
        successor.server, successor._rows_expected = self.server, self.count()
        successor._aliased = False
        return successor

    @override
    def replace_by(self, successor: VectorStore) -> None:
        """The alias is moved, then the old collection is dropped."""
        old = self._describe()
        self.server.call("alter_alias", successor.collection, self.collection)
        self._known = None
        if old is not None:
            self.server.call("drop_collection", old.name)

    @override
    def close(self) -> None:
        self.server.close()

    # ---- the collection

    def _describe(self) -> Described | None:
        """Ask the server for the collection and load it; return None if it does not exist."""
        try:
            answer = self.server.call("describe_collection", self.collection)
        except CollectionNotFound:
            self._known = None
            return None
        index = self.server.call("describe_index", answer["collection_name"], VECTOR) or {}
        described = read_description(answer, index, self.address, self.collection)
        fresh = self._known is None or self._known.name != described.name
        if fresh and "Loaded" not in str(self.server.call("get_load_state", described.name).get("state")):
            self.server.call("load_collection", described.name)
        if self._index.index_type == described.index.index_type:
            described = replace(described, index=self._index)  # with the caller's search parameters
        self._known = described
        return described

    def _create(self, dim: int, model: str | None) -> Described:
        """Create the collection and its alias; concurrent calls in several processes agree on one collection."""
        name = f"{self.collection}__1" if self._aliased else self.collection
        spec = settle_index(self.server, self._index, fallback=self._fallback, rows=self._rows_expected, dim=dim)
        made = creation(dim, model, spec, self.server.version)
        steps = [partial(self.server.call, "create_collection", name, **made)]
        if self._aliased:
            steps.append(partial(self.server.call, "create_alias", name, self.collection))
        for step in steps:
            try:
                step()
            except StoreError:
                described = self._describe()
                if described is None and not self.server.call("has_collection", name):
                    raise
                if described is not None:
                    return described
        described = self._describe()
        if described is None:
            raise StoreError(
                f"Milvus at {self.address} created collection {self.collection!r}, but cannot find it: try again"
            )
        return described

    # ---- filters

    def _expression(self, node: Node) -> Expression:
        return to_milvus(node, self.server.version, lite=self.server.lite)

    def _look(self, node: Node) -> None:
        look(self, node, self._rows_with)

    def _rows_with(self, field: Field, limit: int) -> list[Record]:
        """Return up to ``limit`` rows that have a field of ``metadata``."""
        if self._describe() is None:
            return []
        expression = presence(field, lite=self.server.lite)
        if expression is None:
            return list(islice(self._records(Exists(field), PAGE), limit))
        return self._query(expression, limit)

    def _overfetched(
        self, described: Described, queries: Array, k: int, node: Node, expression: str
    ) -> list[list[Match]] | None:
        """Search among more rows than match, and filter the best of them; None if these do not suffice."""
        limit = PAGE // len(queries)
        if limit < k:
            return None
        found = self._search(described, queries, limit, expression)
        return filtered(found, predicate(node), k, limit, lambda: self._count(expression))

    # ---- records

    def _search(self, described: Described, queries: Array, k: int, expression: str) -> list[list[Match]]:
        try:
            answers = self.server.read(
                "search",
                self.collection,
                data=queries.tolist(),
                anns_field=VECTOR,
                limit=k,
                filter=expression,
                output_fields=output_fields(),
                search_params={"metric_type": "IP", "params": described.index.search_params(k)},
                consistency_level=self._consistency(),
            )
        except StoreError:
            self._known = None  # the collection may have been replaced: the next call asks again
            raise
        self._read_before = True
        return ranked(answers)

    def _consistency(self) -> str:
        """Return the weakest level that fits: all writes at first, then our own (milvus.io/docs/consistency.md)."""
        if not self._read_before:
            return "Strong"
        return "Session" if self._wrote else "Bounded"

    def _query(self, expression: str, limit: int, with_embeddings: bool = False) -> list[Record]:
        fields = output_fields(with_embeddings)
        return [record(entity) for entity in self._strongly(expression, output_fields=fields, limit=limit)]

    def _count(self, expression: str) -> int:
        return int(self._strongly(expression, output_fields=["count(*)"])[0]["count(*)"])

    def _strongly(self, expression: str, **options: Any) -> Any:
        return self.server.read("query", self.collection, filter=expression, consistency_level="Strong", **options)

    def _records(self, node: Node, size: int, *, with_embeddings: bool = False) -> Iterator[Record]:
        """Iterate over the rows that match, by id; rows of an inexact expression are filtered here."""
        described = self._describe()
        if described is None:
            return
        expression, matches = self._expression(node), predicate(node)
        size = min(size, page_size(described.dim)) if with_embeddings else size
        for page in self.server.pages(self.collection, expression.text, size, output_fields(with_embeddings)):
            for read in map(record, page):
                if expression.exact or matches(read):
                    yield read
