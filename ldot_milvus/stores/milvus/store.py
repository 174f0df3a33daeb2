"""The Milvus store: a collection on a server, or in a file of Milvus Lite."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ldot_milvus.batches import batched
from ldot_milvus.errors import CollectionNotFound, ModelMismatch, StoreError, UsageError
from ldot_milvus.stores import validation
from ldot_milvus.stores.base import Array, Filter, Match, Record, VectorStore
from ldot_milvus.stores.filters import And, Compare, Field, Node, matches, parse
from ldot_milvus.stores.index_spec import IndexSpec
from ldot_milvus.stores.milvus.expressions import to_milvus
from ldot_milvus.stores.milvus.messages import PAGE, among, page_size, requests
from ldot_milvus.stores.milvus.probing import settle_index
from ldot_milvus.stores.milvus.schema import (
    FIELDS,
    MODEL,
    VECTOR,
    Described,
    described,
    index_params,
    record,
    schema,
)
from ldot_milvus.stores.milvus.server import TIMEOUT, CollectionNotLoaded, Server

log = logging.getLogger(__name__)

IDS_AT_A_TIME = 5000


class MilvusStore(VectorStore):
    """A collection of a Milvus server, or of Milvus Lite. Threads and forked processes may share a store.

    The collection's name is an alias of the collection that holds the rows, so that another one can be put in its
    place without a gap. A search sees what this process wrote before it; what others wrote, within seconds, and the
    first search of a process all of it.

    Args:
        token: ``user:password`` or an API key.
        index: asked for when the collection is made here.
        fallback: take the nearest index without a GPU where the server has none, with a warning; else refuse.
        timeout: seconds that one call may take, retries included.
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
        self.address = address
        self.collection = validation.collection_name(collection)
        self.server = Server(address, token, timeout)
        self._index = (index or IndexSpec()).checked()
        self._fallback = fallback
        self._known: Described | None = None
        self._aliased = True
        self._rows_expected = 0
        self._read_before = False
        self._wrote = False

    @property
    def model(self) -> str | None:
        """Asked of the server each time: another process may bind it."""
        found = self._find()
        return None if found is None else found.model

    @property
    def dim(self) -> int | None:
        """Asked of the server each time: another process may make the collection."""
        found = self._find()
        return None if found is None else found.dim

    def bind(self, model: str, dim: int) -> None:
        """As the interface says. A collection without a model adopts this one if the width agrees."""
        validation.model_and_dim(model, dim)
        found = self._find() or self._create(dim, model)
        if found.dim != dim or found.model not in (None, model):
            raise ModelMismatch(
                f"collection {self.collection!r} of {self.address} holds vectors of model "
                f"{found.model or 'unknown'} ({found.dim} dimensions), not of {model} ({dim}): choose another "
                "collection name, or ingest again with the new model into a new collection"
            )
        if found.model is None:
            self.server.call("alter_collection_properties", found.name, {MODEL: model})
            self._known = replace(found, model=model)

    def upsert(self, records: Sequence[Record]) -> int:
        """As the interface says, except that only each request of up to 16 MB is written as a whole or not at all."""
        kept, vectors = validation.records(records)
        if not kept:
            return 0
        found = self._known or self._find() or self._create(vectors.shape[1], None)
        if found.dim != vectors.shape[1]:
            raise ModelMismatch(
                f"record {kept[0].id!r} has {vectors.shape[1]} dimensions and collection {self.collection!r} of "
                f"{self.address} {found.dim}: use the model that it was made with, or another collection name"
            )
        for batch in requests(kept, vectors):
            self.server.call("upsert", self.collection, batch)
            self._wrote = True
        return len(kept)

    def search(self, queries: Array, k: int, *, kind: str = "image", filter: Filter | None = None) -> list[list[Match]]:
        """As the interface says; which rows of equal score come last among the first k is the server's choice."""
        validation.k(k)
        validation.kind(kind, "search")
        node = And((Compare(Field("kind"), "$eq", kind), parse(filter)))
        found = self._find() if self._known is None else self._known
        if found is None:
            there = ", ".join(sorted(self._names()))
            raise CollectionNotFound(
                f"{self.address} has no collection {self.collection!r} yet: ingest into it first"
                + (f" (there are: {there})" if there else "")
            )
        matrix = validation.queries(queries, found.dim)
        if not len(matrix):
            return []
        expression = to_milvus(node, lite=self.server.lite)
        if expression.exact:
            results = self._search(found, matrix, k, expression.text)
            if all(len(result) == k for result in results) or found.index.index_type == "FLAT":
                return results
            # An approximate index under a filter, or asked for nearly everything, may find less than there is.
            available = min(k, self._count(expression.text))
            if all(len(result) >= available for result in results):
                return results
        return _exactly(matrix, k, self._rows(node, PAGE, with_embeddings=True))

    def get(self, ids: Sequence[str], *, with_embeddings: bool = False) -> list[Record]:
        """As the interface says. An id asked for twice comes twice."""
        listed = validation.ids(ids)
        found = self._find() if listed else None
        if found is None:
            return []
        by_id = {}
        size = page_size(found.dim) if with_embeddings else PAGE
        for part in batched(dict.fromkeys(listed), size):
            for read in self._query(among(part), len(part), with_embeddings):
                by_id[read.id] = read
        return [by_id[id] for id in listed if id in by_id]

    def update(self, records: Sequence[Record]) -> int:
        """As the interface says; returns how many of the ids exist. Embedding, kind, width and height are ignored."""
        for given in records:
            validation.fields(given)
        latest = {given.id: given for given in records}
        stored = self.get(list(latest), with_embeddings=True)
        self.upsert(
            [
                replace(old, namespace=new.namespace, source=new.source, caption=new.caption, metadata=new.metadata)
                for old in stored
                for new in (latest[old.id],)
            ]
        )
        return len(stored)

    def delete(self, ids: Sequence[str] | None = None, filter: Filter | None = None) -> int:
        """As the interface says. ``filter={}`` is refused, because it would delete everything."""
        if (ids is None) == (filter is None):
            raise UsageError("delete takes either ids or a filter")
        if filter == {}:
            raise UsageError(
                "an empty filter would delete every row: if that is meant, say so with {'id': {'$ne': ''}}"
            )
        if ids is not None:
            going = [read.id for read in self.get(list(dict.fromkeys(validation.ids(ids))))]
        else:
            going = [read.id for read in self._rows(parse(filter), PAGE)]
        # By id even for a filter: a server counts ids that it does not have, and not every one takes every filter.
        for part in batched(going, IDS_AT_A_TIME):
            self.server.call("delete", self.collection, filter=among(part))
            self._wrote = True
        return len(going)

    def count(self, filter: Filter | None = None) -> int:
        """As the interface says."""
        node = parse(filter)
        if self._find() is None:
            return 0
        expression = to_milvus(node, lite=self.server.lite)
        return self._count(expression.text) if expression.exact else sum(1 for _ in self._rows(node, PAGE))

    def iterate(
        self, filter: Filter | None = None, *, batch_size: int = 1000, with_embeddings: bool = False
    ) -> Iterator[Record]:
        """As the interface says. Each batch sees the store as it is then, so writing while iterating is safe."""
        validation.k(batch_size, "batch_size")
        return self._rows(parse(filter), batch_size, with_embeddings=with_embeddings)

    def successor(self) -> VectorStore:
        """As the interface says. An earlier one that was left half filled is dropped."""
        found = self._find()
        head, _, number = (found.name if found else self.collection).rpartition("__")
        if not (head == self.collection and number.isdigit()):
            raise StoreError(
                f"{self.collection!r} of {self.address} is a collection and not an alias, so another one cannot take "
                f"its place at once: migrate it into a collection that ldot-milvus makes"
            )
        name = f"{head}__{int(number) + 1}"
        if self.server.call("has_collection", name):
            self.server.call("drop_collection", name)
        made = MilvusStore(self.address, name, index=self._index, fallback=self._fallback)
        made.server, made._rows_expected = self.server, self.count()
        made._aliased = False
        return made

    def replace_by(self, successor: VectorStore) -> None:
        """As the interface says: the alias moves, then the old collection is dropped."""
        old = self._find()
        self.server.call("alter_alias", successor.collection, self.collection)
        self._known = None
        if old is not None:
            self.server.call("drop_collection", old.name)

    def close(self) -> None:
        """As the interface says."""
        self.server.close()

    # ---- the collection

    def _find(self) -> Described | None:
        """The collection as the server describes it now, loaded; None where there is none."""
        try:
            answer = self.server.call("describe_collection", self.collection)
        except CollectionNotFound:
            self._known = None
            return None
        index = self.server.call("describe_index", answer["collection_name"], VECTOR) or {}
        found = described(answer, index, self.address, self.collection)
        if self._known is None or self._known.name != found.name:
            self._load(found.name)
        if self._index.index_type == found.index.index_type:
            found = replace(found, index=self._index)  # with the caller's parameters for searching
        self._known = found
        return found

    def _load(self, name: str) -> None:
        state = self.server.call("get_load_state", name)
        if "Loaded" not in str(state.get("state")):
            self.server.call("load_collection", name)

    def _create(self, dim: int, model: str | None) -> Described:
        """Make the collection and its alias; whoever does so at the same time ends up with the same ones."""
        name = f"{self.collection}__1" if self._aliased else self.collection
        spec = settle_index(self.server, self._index, fallback=self._fallback, rows=self._rows_expected)
        options: dict[str, Any] = {"properties": {MODEL: model}} if model else {}
        if self.server.version < (2, 4):
            # Upserts of Milvus 2.3 put rows into other partitions than those that filters on the key look at.
            options["num_partitions"] = 1
        made = partial(self.server.call, "create_collection", name, schema=schema(dim, model))
        steps = [partial(made, index_params=index_params(spec, dim), consistency_level="Bounded", **options)]
        if self._aliased:
            steps.append(partial(self.server.call, "create_alias", name, self.collection))
        for step in steps:
            try:
                step()
            except StoreError:
                found = self._find()
                if found is None and not self.server.call("has_collection", name):
                    raise
                if found is not None:
                    return found
        found = self._find()
        if found is None:
            raise StoreError(f"Milvus at {self.address} made collection {self.collection!r}, but does not show it")
        return found

    def _names(self) -> set[str]:
        """Collections as users call them: by their alias where they have one."""
        names: set[str] = set()
        for name in self.server.call("list_collections"):
            aliases = self.server.call("list_aliases", name).get("aliases") or [name]
            names.update(str(alias) for alias in aliases)
        return names

    # ---- rows

    def _search(self, found: Described, queries: Array, k: int, expression: str) -> list[list[Match]]:
        try:
            answers = self._read(
                "search",
                data=queries.tolist(),
                anns_field=VECTOR,
                limit=k,
                filter=expression,
                output_fields=list(FIELDS),
                search_params={"metric_type": "IP", "params": found.index.search_params(k)},
                consistency_level=self._consistency(),
            )
        except StoreError:
            self._known = None  # perhaps another collection took its place: the next call looks
            raise
        self._read_before = True
        return [
            sorted((Match(record(hit["entity"]), float(hit["distance"])) for hit in answer), key=_best_first)
            for answer in answers
        ]

    def _read(self, method: str, **arguments: Any) -> Any:
        """A search or a query; a server that was killed may have forgotten that the collection was loaded."""
        try:
            return self.server.call(method, self.collection, **arguments)
        except CollectionNotLoaded:
            self.server.call("load_collection", self.collection)
            return self.server.call(method, self.collection, **arguments)

    def _consistency(self) -> str:
        """The least waiting with which nobody misses what he knows to be there (milvus.io/docs/consistency.md)."""
        if not self._read_before:
            return "Strong"
        return "Session" if self._wrote else "Bounded"

    def _query(self, expression: str, limit: int, with_embeddings: bool = False) -> list[Record]:
        fields = [*FIELDS, VECTOR] if with_embeddings else list(FIELDS)
        rows = self._read("query", filter=expression, limit=limit, output_fields=fields, consistency_level="Strong")
        return [record(row) for row in rows]

    def _count(self, expression: str) -> int:
        answer = self._read("query", filter=expression, output_fields=["count(*)"], consistency_level="Strong")
        return int(answer[0]["count(*)"])

    def _rows(self, node: Node, size: int, *, with_embeddings: bool = False) -> Iterator[Record]:
        """All rows that pass, by id: pages of a query for what the server can tell, the rest looked at here."""
        found = self._find()
        if found is None:
            return
        expression = to_milvus(node, lite=self.server.lite)
        size = min(size, page_size(found.dim)) if with_embeddings else size
        fields = [*FIELDS, VECTOR] if with_embeddings else list(FIELDS)
        options = {"output_fields": fields, "consistency_level": "Strong"}
        if self.server.lite:  # whose queries come in no order
            pages = self.server.pages(self.collection, filter=expression.text, batch_size=size, **options)
        else:  # whose iterators, before 2.4, read the past: their time is the client's clock
            pages = self._pages(expression.text, size, options)
        for page in pages:
            for read in map(record, page):
                if expression.exact or matches(node, read):
                    yield read

    def _pages(self, expression: str, size: int, options: dict[str, Any]) -> Iterator[list[dict[str, Any]]]:
        after = expression
        while page := self._read("query", filter=after, limit=size, **options):
            page = sorted(page, key=lambda row: str(row["id"]))
            yield page
            if len(page) < size:
                return
            after = f"({expression}) and id > {json.dumps(page[-1]['id'], ensure_ascii=False)}"


def _exactly(queries: Array, k: int, rows: Iterator[Record]) -> list[list[Match]]:
    """The best k of some rows, compared here; a page at a time."""
    best: list[list[Match]] = [[] for _ in queries]
    for page in batched(rows, PAGE):
        scores = queries @ np.stack([read.embedding for read in page if read.embedding is not None]).T
        for number, line in enumerate(scores.tolist()):
            fresh = [Match(replace(read, embedding=None), score) for read, score in zip(page, line, strict=True)]
            best[number] = sorted(best[number] + fresh, key=_best_first)[:k]
    return best


def _best_first(match: Match) -> tuple[float, str]:
    return -match.score, match.record.id
