"""The types of FAISS index, each answering the same questions about its rows.

Whatever the type, a row's place in its index is its place in ``pks``, which only grow; filters and deletions become a
mask over places. Answers that an approximate type cannot give in full are taken from a comparison with every row that
passes, so a filter never costs rows.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldot_milvus.stores.base import Array
from ldot_milvus.stores.index_spec import IndexSpec
from ldot_milvus.stores.local.library import load_faiss, resources

GRAPH_COST = 64  # a step through a graph (one of ``ef``) takes as long as comparing with 30 to 60 rows
DEVICE_MOST = 2048  # neighbours that a GPU index can give, and cells that it can probe

Places = NDArray[np.int64]
Mask = NDArray[np.bool_]
Hits = list[tuple[float, int]]
Vectors = Callable[[Sequence[int]], Array]
"""The vectors of these pks, which ascend, as they were written."""


def build(spec: IndexSpec, dim: int, sample: Array | None = None) -> RowIndex:
    """An empty index.

    Args:
        spec: as :func:`~ldot_milvus.stores.local.collection_index.plan` gave it.
        dim: width of the vectors.
        sample: (n, dim) float32, on which cells are trained; None for a type without cells.
    """
    faiss, metric = load_faiss(), load_faiss().METRIC_INNER_PRODUCT
    params = {name: int(value) for name, value in spec.build_params(dim).items() if isinstance(value, int)}
    if spec.index_type == "FLAT":
        return FlatIndex(spec, faiss.IndexFlatIP(dim))
    if spec.index_type == "HNSW":
        graph = faiss.IndexHNSWFlat(dim, params["M"], metric)
        graph.hnsw.efConstruction = params["efConstruction"]
        # A vector much longer than the rest crowds all others out of every list of links. Filling the lists up again
        # takes the build half as long again or twice as long, and recall where such vectors are from 0.97 to 0.99.
        graph.keep_max_size_level0 = True
        return HnswIndex(spec, graph)
    if spec.index_type.startswith("GPU_"):
        if spec.index_type == "GPU_BRUTE_FORCE":
            return GpuIndex(spec, faiss.IndexFlatIP(dim), faiss.GpuIndexFlatIP(resources(), dim))
        device = faiss.GpuIndexIVFFlat(resources(), dim, params["nlist"], metric)
        device.train(sample)
        return GpuIndex(spec, faiss.IndexFlatIP(dim), device)
    if spec.index_type == "IVF_SQ8":
        cells = faiss.IndexIVFScalarQuantizer(
            faiss.IndexFlatIP(dim), dim, params["nlist"], faiss.ScalarQuantizer.QT_8bit, metric
        )
    else:
        cells = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, params["nlist"], metric)
    cells.train(sample)
    return IvfIndex(spec, cells)


def cells_of(spec: IndexSpec) -> int:
    """How many cells the index type has; 0 for those without."""
    return int(spec.build_params(0).get("nlist", 0)) if "IVF" in spec.index_type else 0


def is_exact(spec: IndexSpec) -> bool:
    """Whether the index type compares with every row."""
    return spec.index_type in ("FLAT", "GPU_BRUTE_FORCE")


@dataclass(frozen=True)
class _Chosen:
    """The places that may be answers; the mask is None where all may."""

    mask: Mask | None
    count: int

    @property
    def selector(self) -> Any:
        if self.mask is None:
            return None
        return load_faiss().IDSelectorBitmap(np.packbits(self.mask, bitorder="little"))


class RowIndex(ABC):
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
        params = None if selector is None else load_faiss().SearchParameters(sel=selector)
        neighbours: tuple[Array, Places] = self._flat.search(queries, fetch, params=params)
        return neighbours

    @property
    def _flat(self) -> Any:
        return self.index


class FlatIndex(RowIndex):
    """Compares with every row."""

    exact = True

    def remove(self, pks: Places) -> None:
        """Forget rows; those behind them move up."""
        places = self._places(pks)
        if places.size:
            self.index.remove_ids(load_faiss().IDSelectorBatch(places))
            self.pks = np.delete(self.pks, places)
            self._alive = np.delete(self._alive, places)

    def _rough(self, queries: Array, k: int, chosen: _Chosen) -> None:
        return None


class HnswIndex(RowIndex):
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
        params = load_faiss().SearchParametersHNSW(efSearch=ef)
        neighbours: tuple[Array, Places] = self.index.search(queries, fetch, params=params)
        return neighbours

    @property
    def _flat(self) -> Any:
        return load_faiss().downcast_index(self.index.storage)


class IvfIndex(RowIndex):
    """IVF: cells around centroids of unit length, of which a search visits those of the nearest direction.

    A vector's length plays no part in its cell, so it suffers where lengths decide: recall at 10 with 16 of 256 cells
    is 1.000 for norms all alike, 0.95 for norms spread over 100x, and 0.23 where one vector in a thousand is 100 times
    as long as the rest. HNSW is the index type for such vectors.
    """

    def __init__(self, spec: IndexSpec, index: Any) -> None:
        super().__init__(spec, index)
        self.rounded = spec.index_type == "IVF_SQ8"

    def _rough(self, queries: Array, k: int, chosen: _Chosen) -> tuple[Array, Places] | None:
        probes = int(self.spec.search_params(k)["nprobe"]) * len(self.pks) // chosen.count
        return None if probes >= self.index.nlist else self._visit(queries, k, chosen.selector, probes)

    def _scan(self, queries: Array, fetch: int, selector: Any) -> tuple[Array, Places]:
        return self._visit(queries, fetch, selector, self.index.nlist)

    def _visit(self, queries: Array, fetch: int, selector: Any, probes: int) -> tuple[Array, Places]:
        params = load_faiss().SearchParametersIVF(nprobe=probes, sel=selector)
        neighbours: tuple[Array, Places] = self.index.search(queries, fetch, params=params)
        return neighbours


class GpuIndex(RowIndex):
    """The rows on a GPU and, for what GPUs refuse (filters, removal, more than 2,048 neighbours), in memory too."""

    def __init__(self, spec: IndexSpec, index: Any, device: Any) -> None:
        super().__init__(spec, index)
        self.exact = is_exact(spec)
        self._device = device
        self._process = os.getpid()

    def add_with_ids(self, vectors: Array, pks: Places) -> None:
        """Add rows newer than all before, to the GPU too."""
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
            self._device.nprobe = min(probes, cells_of(self.spec), DEVICE_MOST)
        neighbours: tuple[Array, Places] = self._device.search(queries, fetch)
        return neighbours


def _scored(query: Array, hits: Hits, vectors: Vectors) -> Hits:
    pks = sorted(pk for _, pk in hits)
    with np.errstate(over="ignore", invalid="ignore"):
        return list(zip((vectors(pks) @ query).tolist(), pks, strict=True))
