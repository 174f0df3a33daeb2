"""The FAISS indexes of one collection, in this process's memory: one for images, one for texts.

Whatever the kind, a row's place in its index is its place in ``pks``, which only grow; filters and deletions become a
mask over places. Answers that an approximate kind cannot give in full are taken from a comparison with every row that
passes, so a filter never costs rows.
"""

from __future__ import annotations

import logging
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldot_milvus.errors import StoreError
from ldot_milvus.stores.base import KINDS, Array
from ldot_milvus.stores.index import AUTO, IndexSpec, choose
from ldot_milvus.stores.rows import Collection, Transaction

log = logging.getLogger(__name__)

CHUNK = 8192  # rows read from the file at a time
DEAD_SHARE = 0.2  # of its rows dead, an index that cannot forget is built anew
CELL_ROWS = 64  # at least, to train one cell on (FAISS asks for 39)
FEWEST_CELLS = 16  # with fewer, comparing with everything is as fast
GROWTH = 4  # times as many cells wanted as there are: trained anew
GRAPH_COST = 64  # a step through a graph (one of ``ef``) takes as long as comparing with 30 to 60 rows
DEVICE_MOST = 2048  # neighbours that a GPU index can give, and cells that it can probe

Places = NDArray[np.int64]
Mask = NDArray[np.bool_]
Hits = list[tuple[float, int]]
Vectors = Callable[[Sequence[int]], Array]
"""The vectors of these pks, which ascend, as they were written."""


class LocalIndex:
    """What a process keeps in memory of one collection; only as new as the last :meth:`catch_up`."""

    def __init__(self, rows: Transaction, found: Collection, spec: IndexSpec) -> None:
        self.collection = found.id
        self._spec = spec
        self._kinds = {kind: self._empty(rows, found, kind, _count(rows, found, kind)) for kind in KINDS}
        self._last_pk = 0
        # What was removed before the first row is read was never in the index.
        self._last_tombstone = rows.last_tombstone(found)

    def catch_up(self, rows: Transaction, found: Collection) -> None:
        """Take in what was written and removed since the last time; now and then this builds an index anew."""
        newest = rows.last_tombstone(found)
        if newest > self._last_tombstone:
            gone = np.array(rows.removed(found, self._last_tombstone), np.int64)
            for part in self._kinds.values():
                part.remove(gone)
            self._last_tombstone = newest
        self._last_pk = self._read(rows, found, self._last_pk, KINDS)
        for kind in KINDS:
            part = self._kinds[kind]
            if self._outgrown(part):
                count = part.count
                del part, self._kinds[kind]  # its memory before the next one's
                self._kinds[kind] = self._empty(rows, found, kind, count)
                log.info("building a %s index over %d rows", self._kinds[kind].spec, count)
                self._read(rows, found, 0, (kind,))

    def search(self, queries: Array, k: int, kind: str, among: Sequence[int] | None, vectors: Vectors) -> list[Hits]:
        """The best k of the rows ``among`` (all where None) for each query, in an exact kind with all ties of the k-th.

        Returns:
            For each query (score, pk) pairs, at least k of them where there are as many, in no promised order.
        """
        return self._kinds[kind].search(queries, k, among, vectors)

    def _read(self, rows: Transaction, found: Collection, after: int, kinds: Iterable[str]) -> int:
        while True:
            pks, of_kinds, vectors = rows.added(found, after, CHUNK)
            if not pks:
                return after
            for kind in kinds:
                of_kind = np.array([value == kind for value in of_kinds])
                if of_kind.any():
                    self._kinds[kind].add_with_ids(vectors[of_kind], np.array(pks, np.int64)[of_kind])
            after = pks[-1]

    def _empty(self, rows: Transaction, found: Collection, kind: str, count: int) -> Part:
        spec = plan(self._spec, count)
        sample = None
        if cells := _cells(spec):
            pks = np.array(rows.pks(found, kind, ("1", [])), np.int64)
            picked = np.random.default_rng(0).permutation(len(pks))[: cells * CELL_ROWS]
            sample = rows.vectors(found, np.sort(pks[picked]).tolist())
        return build(spec, found.dim, sample)

    def _outgrown(self, part: Part) -> bool:
        if part.dead > DEAD_SHARE * len(part.pks):
            return True
        wanted = plan(self._spec, part.count)
        # Never back to comparing with everything for a few rows less: that waits until a fifth is gone.
        return (part.exact and not _is_exact(wanted)) or _cells(wanted) >= GROWTH * _cells(part.spec) > 0


def available(spec: IndexSpec) -> IndexSpec:
    """What FAISS on this machine takes for the kind that was asked for, said aloud where it is another."""
    taken = _on_this_machine(spec)
    if taken.kind != spec.kind:
        why = "FAISS has no such kind" if _gpus() else "FAISS sees no GPU here"
        log.warning("index %s was asked for, but %s: this local store uses %s", spec.kind, why, taken.kind)
    return taken


def plan(spec: IndexSpec, count: int) -> IndexSpec:
    """The kind to build over so many rows of this spec: never ``AUTO``, and no more cells than can be trained."""
    spec = _on_this_machine(choose(count, gpu=_gpus() > 0) if spec.kind == AUTO else spec)
    if cells := _cells(spec):
        if count < FEWEST_CELLS * CELL_ROWS:
            return IndexSpec("GPU_BRUTE_FORCE" if spec.needs_gpu else "FLAT")
        return replace(spec, params={**spec.params, "nlist": min(cells, count // CELL_ROWS)})
    return spec


def build(spec: IndexSpec, dim: int, sample: Array | None = None) -> Part:
    """An empty index of a kind that :func:`plan` gave, its cells trained on the sample."""
    faiss, metric = _faiss(), _faiss().METRIC_INNER_PRODUCT
    params = {name: int(value) for name, value in spec.build_params(dim).items() if isinstance(value, int)}
    if spec.kind == "FLAT":
        return _Flat(spec, faiss.IndexFlatIP(dim))
    if spec.kind == "HNSW":
        graph = faiss.IndexHNSWFlat(dim, params["M"], metric)
        graph.hnsw.efConstruction = params["efConstruction"]
        # A vector much longer than the rest crowds all others out of every list of links. Filling the lists up again
        # takes the build half as long again or twice as long, and recall where such vectors are from 0.97 to 0.99.
        graph.keep_max_size_level0 = True
        return _Graph(spec, graph)
    if spec.kind.startswith("GPU_"):
        resources = _resources()
        if spec.kind == "GPU_BRUTE_FORCE":
            return _Device(spec, faiss.IndexFlatIP(dim), faiss.GpuIndexFlatIP(resources, dim))
        device = faiss.GpuIndexIVFFlat(resources, dim, params["nlist"], metric)
        device.train(sample)
        return _Device(spec, faiss.IndexFlatIP(dim), device)
    if spec.kind == "IVF_SQ8":
        cells = faiss.IndexIVFScalarQuantizer(
            faiss.IndexFlatIP(dim), dim, params["nlist"], faiss.ScalarQuantizer.QT_8bit, metric
        )
    else:
        cells = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, params["nlist"], metric)
    cells.train(sample)
    return _Cells(spec, cells)


@dataclass(frozen=True)
class _Chosen:
    """The places that may be answers; the mask is None where all may."""

    mask: Mask | None
    count: int

    @property
    def selector(self) -> Any:
        if self.mask is None:
            return None
        return _faiss().IDSelectorBitmap(np.packbits(self.mask, bitorder="little"))


class Part(ABC):
    """The rows of one kind in one FAISS index."""

    exact = False
    rounded = False  # scores of the index are not the vectors' own

    def __init__(self, spec: IndexSpec, index: Any) -> None:
        self.spec = spec
        self.index = index
        self.pks: Places = np.zeros(0, np.int64)
        self.dead = 0
        self._alive: Mask = np.zeros(0, np.bool_)

    @property
    def count(self) -> int:
        """How many rows are alive."""
        return len(self.pks) - self.dead

    def add_with_ids(self, vectors: Array, pks: Places) -> None:
        """Add rows newer than all before."""
        self.index.add(vectors)
        self.pks = np.concatenate([self.pks, pks])
        self._alive = np.concatenate([self._alive, np.ones(len(pks), np.bool_)])

    def remove(self, pks: Places) -> None:
        """Forget rows; those that are not here are ignored."""
        places = self._places(pks)
        self.dead += int(self._alive[places].sum())
        self._alive[places] = False

    def search(self, queries: Array, k: int, among: Sequence[int] | None, vectors: Vectors) -> list[Hits]:
        """As :meth:`LocalIndex.search`."""
        chosen = self._choose(among)
        if not chosen.count or not len(queries):
            return [[] for _ in queries]
        if not self.rounded:
            return self._search(queries, k, chosen)
        candidates = self._search(queries, 2 * k + 50, chosen)
        return [_scored(query, hits, vectors) for query, hits in zip(queries, candidates, strict=True)]

    def _places(self, pks: Places) -> Places:
        places = np.searchsorted(self.pks, pks)
        inside = np.flatnonzero(places < len(self.pks))
        here: Places = places[inside[self.pks[places[inside]] == pks[inside]]]
        return here

    def _choose(self, among: Sequence[int] | None) -> _Chosen:
        if among is None and not self.dead:
            return _Chosen(None, len(self.pks))
        mask = self._alive
        if among is not None:
            mask = np.zeros(len(self.pks), np.bool_)
            mask[self._places(np.array(among, np.int64))] = True
            mask &= self._alive
        return _Chosen(mask, int(mask.sum()))

    def _search(self, queries: Array, k: int, chosen: _Chosen) -> list[Hits]:
        results: list[Hits] = [[] for _ in queries]
        pending = np.arange(len(queries))
        rough = self._rough(queries, k, chosen)
        if rough is not None:
            scores, places = rough
            passing = places >= 0
            if chosen.mask is not None:
                passing &= chosen.mask[places]
            complete = np.full(len(queries), False)
            for row in pending:
                kept = np.flatnonzero(passing[row])[: k + 1]
                if self.exact:  # one more than asked for shows whether the k-th has a tie outside
                    complete[row] = len(kept) > k and scores[row, kept[k]] < scores[row, kept[k - 1]]
                else:
                    complete[row] = len(kept) >= min(k, chosen.count)
                if complete[row]:
                    results[row] = self._hits(scores[row, kept[:k]], places[row, kept[:k]])
            pending = pending[~complete]
        selector = chosen.selector if pending.size else None
        fetch = min(k + 1, chosen.count)
        while pending.size:
            scores, places = self._scan(queries[pending], fetch, selector)
            whole = fetch == chosen.count
            complete = np.full(len(pending), True) if whole else scores[:, -1] < scores[:, k - 1]
            for row in np.flatnonzero(complete):
                kept = (places[row] >= 0) & (scores[row] >= scores[row, min(k, fetch) - 1])
                results[pending[row]] = self._hits(scores[row, kept], places[row, kept])
            pending = pending[~complete]
            fetch = min(fetch * 4, chosen.count)
        return results

    def _hits(self, scores: Array, places: Places) -> Hits:
        return list(zip(scores.tolist(), self.pks[places].tolist(), strict=True))

    @abstractmethod
    def _rough(self, queries: Array, k: int, chosen: _Chosen) -> tuple[Array, Places] | None:
        """Scores and places, best first, among them some that may not be answers; None where a scan is better."""

    def _scan(self, queries: Array, fetch: int, selector: Any) -> tuple[Array, Places]:
        """The best of everything that the selector lets through."""
        params = None if selector is None else _faiss().SearchParameters(sel=selector)
        found: tuple[Array, Places] = self._flat.search(queries, fetch, params=params)
        return found

    @property
    def _flat(self) -> Any:
        return self.index


class _Flat(Part):
    """Compares with every row."""

    exact = True

    def remove(self, pks: Places) -> None:
        places = self._places(pks)
        if places.size:
            self.index.remove_ids(_faiss().IDSelectorBatch(places))  # the rows behind them move up, in order
            self.pks = np.delete(self.pks, places)
            self._alive = np.delete(self._alive, places)

    def _rough(self, queries: Array, k: int, chosen: _Chosen) -> None:
        return None


class _Graph(Part):
    """HNSW over inner products as they are.

    An inner product is no distance, and still the graph works for vectors of any length. Measured with the default
    parameters on 20,000 clustered vectors, recall at 10: 1.000 for norms all alike and for norms spread over 100x,
    0.99 where one vector in a thousand is 100 times as long as the rest (:func:`build` says what that takes).

    What fails are filters that let only short vectors through, since all steps lead to the long ones: FAISS's own
    filtered search then found half of the answers, without a sign of it. So the search goes without a filter, for more
    neighbours, and where fewer than k of them pass, every row that passes is compared.
    """

    def _rough(self, queries: Array, k: int, chosen: _Chosen) -> tuple[Array, Places] | None:
        total = len(self.pks)
        # Twice as many as are taken: the farther half of what a search has seen has gaps.
        ef, fetch = max(int(self.spec.search_params(k)["ef"]), 2 * k), k
        if chosen.count < total:
            ef = max(ef, 4 * k) * total // chosen.count
            fetch = ef // 2
        if chosen.count <= GRAPH_COST * ef:
            return None
        # Should a selector ever be given here: with bounded_queue=False FAISS 1.15 ignores it.
        params = _faiss().SearchParametersHNSW(efSearch=ef)
        found: tuple[Array, Places] = self.index.search(queries, fetch, params=params)
        return found

    @property
    def _flat(self) -> Any:
        return _faiss().downcast_index(self.index.storage)


class _Cells(Part):
    """IVF: cells around centroids of unit length, of which a search visits those of the nearest direction.

    A vector's length plays no part in its cell, so it suffers where lengths decide: recall at 10 with 16 of 256 cells
    is 1.000 for norms all alike, 0.95 for norms spread over 100x, and 0.23 where one vector in a thousand is 100 times
    as long as the rest. HNSW is the kind for such vectors.
    """

    def __init__(self, spec: IndexSpec, index: Any) -> None:
        super().__init__(spec, index)
        self.rounded = spec.kind == "IVF_SQ8"

    def _rough(self, queries: Array, k: int, chosen: _Chosen) -> tuple[Array, Places] | None:
        probes = int(self.spec.search_params(k)["nprobe"]) * len(self.pks) // chosen.count
        return None if probes >= self.index.nlist else self._visit(queries, k, chosen.selector, probes)

    def _scan(self, queries: Array, fetch: int, selector: Any) -> tuple[Array, Places]:
        return self._visit(queries, fetch, selector, self.index.nlist)

    def _visit(self, queries: Array, fetch: int, selector: Any, probes: int) -> tuple[Array, Places]:
        params = _faiss().SearchParametersIVF(nprobe=probes, sel=selector)
        found: tuple[Array, Places] = self.index.search(queries, fetch, params=params)
        return found


class _Device(Part):
    """The rows on a GPU and, for what GPUs refuse (filters, removal, more than 2,048 neighbours), in memory too."""

    def __init__(self, spec: IndexSpec, index: Any, device: Any) -> None:
        super().__init__(spec, index)
        self.exact = _is_exact(spec)
        self._device = device
        self._process = os.getpid()

    def add_with_ids(self, vectors: Array, pks: Places) -> None:
        super().add_with_ids(vectors, pks)
        if self._usable:
            self._device.add(vectors)

    @property
    def _usable(self) -> bool:
        return self._process == os.getpid()  # CUDA does not survive a fork

    def _rough(self, queries: Array, k: int, chosen: _Chosen) -> tuple[Array, Places] | None:
        total = len(self.pks)
        fetch = k + 1 if chosen.count == total else 2 * (k + 1) * total // chosen.count
        fetch = min(fetch, total)
        if not self._usable or fetch > DEVICE_MOST:
            return None
        if not self.exact:
            probes = int(self.spec.search_params(k)["nprobe"]) * total // chosen.count
            self._device.nprobe = min(probes, _cells(self.spec), DEVICE_MOST)
        found: tuple[Array, Places] = self._device.search(queries, fetch)
        return found


def _scored(query: Array, hits: Hits, vectors: Vectors) -> Hits:
    pks = sorted(pk for _, pk in hits)
    with np.errstate(over="ignore", invalid="ignore"):
        return list(zip((vectors(pks) @ query).tolist(), pks, strict=True))


def _count(rows: Transaction, found: Collection, kind: str) -> int:
    return rows.count(found, ("kind = ?", [kind]))


def _cells(spec: IndexSpec) -> int:
    """How many cells the kind has; 0 for those without."""
    return int(spec.build_params(0).get("nlist", 0)) if "IVF" in spec.kind else 0


def _is_exact(spec: IndexSpec) -> bool:
    return spec.kind in ("FLAT", "GPU_BRUTE_FORCE")


def _on_this_machine(spec: IndexSpec) -> IndexSpec:
    if not spec.needs_gpu:
        return spec
    if not _gpus():
        return spec.on_cpu()
    # FAISS has CAGRA in some builds only and adds no rows to it, and its PQ wants parameters that fit the card.
    nearest = {"GPU_CAGRA": "GPU_BRUTE_FORCE", "GPU_IVF_PQ": "GPU_IVF_FLAT"}
    return IndexSpec(nearest[spec.kind]) if spec.kind in nearest else spec


_forked = False


def _gpus() -> int:
    faiss = _faiss()
    return int(faiss.get_num_gpus()) if hasattr(faiss, "StandardGpuResources") and not _forked else 0


@cache
def _resources() -> Any:
    # Once for all indexes of this process: it keeps working memory on the card.
    return _faiss().StandardGpuResources()


def _faiss() -> Any:
    """FAISS, imported at the first search: reading and writing rows does not need it."""
    try:
        import faiss
    except ImportError as error:
        raise StoreError(f"searching a local store needs FAISS: pip install faiss-cpu ({error})") from error
    return faiss


def _one_thread_after_fork() -> None:
    # OpenMP's threads do not survive a fork, and a child that counts on them hangs for ever in its first search.
    global _forked
    if "faiss" in sys.modules:
        sys.modules["faiss"].omp_set_num_threads(1)
        _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_one_thread_after_fork)
