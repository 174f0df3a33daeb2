"""FAISS index types behind one interface.

A row has the same position in the index and in ``pks``, which ascend. Filters and deletions become a mask over the
positions. If an approximate index finds too few rows, every row that matches is compared, so that a filter never
reduces the number of results.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from ldot_milvus.stores.base import Array
from ldot_milvus.stores.index_spec import IndexSpec
from ldot_milvus.stores.local.library import load_faiss, resources

GRAPH_COST = 64  # rows compared exactly in the time of one graph step (one of ``ef``): measured 30 to 60
FEW_DEAD = 64  # rows up to which passing them over is faster than asking of every row whether it counts
DEVICE_MOST = 2048  # most neighbours that a GPU index returns, and most cells that it probes

Positions = NDArray[np.int64]
Mask = NDArray[np.bool_]
Hits = list[tuple[float, int]]
Vectors = Callable[[Sequence[int]], Array]
"""Returns the vectors of ascending pks, float32 (n, dim), as written."""


def build(spec: IndexSpec, dim: int, sample: Array | None = None) -> RowIndex:
    """Build an empty index.

    Args:
        spec: index type and parameters, as :func:`~ldot_milvus.stores.local.collection_index.plan` returns them.
        dim: dimension of the vectors.
        sample: float32 (n, dim) on which the cells are trained; None for a type without cells.
    """
    faiss, metric = load_faiss(), load_faiss().METRIC_INNER_PRODUCT
    params = {name: int(value) for name, value in spec.build_params(dim).items() if isinstance(value, int)}
    if spec.index_type == "FLAT":
        return wrap(spec, faiss.IndexFlatIP(dim))
    if spec.index_type == "HNSW":
        graph = faiss.IndexHNSWFlat(dim, params["M"], metric)
        graph.hnsw.efConstruction = params["efConstruction"]
        return wrap(spec, graph)
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
    return wrap(spec, cells)


def wrap(spec: IndexSpec, index: Any, pks: Positions | None = None, alive: Mask | None = None) -> RowIndex:
    """Return the interface to an index of FAISS on the CPU.

    Args:
        spec: its type and parameters.
        index: the FAISS index.
        pks: int64 (rows,), the pk of each row in the index, ascending; None if it is empty.
        alive: bool (rows,), False for removed rows; None if it is empty.
    """
    if spec.index_type == "HNSW":
        # A vector much longer than the rest displaces all others from every list of links. Filling the lists up makes
        # the build 1.5 to 2 times as long, and raises recall with such vectors from 0.97 to 0.99.
        index.keep_max_size_level0 = True
    wrapped = _WRAPPERS[spec.index_type](spec, index)
    if pks is not None and alive is not None:
        wrapped.pks, wrapped.alive, wrapped.dead = pks, alive, int((~alive).sum())
    return wrapped


def cells_of(spec: IndexSpec) -> int:
    """Return the number of cells of an index; 0 for types without cells."""
    return int(spec.build_params(0).get("nlist", 0)) if "IVF" in spec.index_type else 0


@dataclass(frozen=True)
class _Candidates:
    """The rows to search.

    Attributes:
        mask: bool (rows in the index,), True for rows to search; None for all.
        count: number of rows to search.
    """

    mask: Mask | None
    count: int

    @property
    def selector(self) -> Any:
        if self.mask is None:
            return None
        return load_faiss().IDSelectorBitmap(np.packbits(self.mask, bitorder="little"))


class RowIndex(ABC):
    """The rows of one kind in one FAISS index.

    Args:
        spec: index type and parameters.
        index: the FAISS index.

    Attributes:
        exact: whether a search compares with every row.
        rounded: whether the index stores rounded vectors, so that its scores are not exact.
        pks: int64 (rows,), the pk of each row, ascending.
        alive: bool (rows,), False for the removed rows that are still in the index.
        dead: number of removed rows that are still in the index.
        fixed: whether the vectors are a mapped file, which nothing may change.
        can_be_saved: whether FAISS can write the index to a file and map it.
    """

    exact = False
    rounded = False
    fixed = False
    can_be_saved = True

    def __init__(self, spec: IndexSpec, index: Any) -> None:
        self.spec = spec
        self.index = index
        self.pks: Positions = np.zeros(0, np.int64)
        self.dead = 0
        self.alive: Mask = np.zeros(0, np.bool_)

    @property
    def count(self) -> int:
        """Number of rows that are not removed."""
        return len(self.pks) - self.dead

    @property
    def pk_sum(self) -> int:
        """Sum of the pks of the rows that are not removed."""
        return int(self.pks[self.alive].sum())

    @property
    def unsaved(self) -> int:
        """Number of rows that are in no snapshot."""
        return len(self.pks)

    def capture(self) -> Callable[[], RowIndex]:
        """Return a function that returns this index, which must not change before the call."""
        return lambda: self

    def add_with_ids(self, vectors: Array, pks: Positions) -> None:
        """Add rows whose pks are greater than all before.

        Args:
            vectors: float32 (n, dim).
            pks: int64 (n,), ascending.
        """
        self.index.add(vectors)
        self.pks = np.concatenate([self.pks, pks])
        self.alive = np.concatenate([self.alive, np.ones(len(pks), np.bool_)])

    def remove(self, pks: Positions) -> None:
        """Remove rows; unknown pks are ignored."""
        positions = self._positions(pks)
        self.dead += int(self.alive[positions].sum())
        self.alive[positions] = False

    def search(self, queries: Array, k: int, among: Sequence[int] | None, vectors: Vectors) -> list[Hits]:
        """Return the best k rows for each query, see :meth:`LocalIndex.search`."""
        candidates = self._candidates(among)
        if not candidates.count or not len(queries):
            return [[] for _ in queries]
        if not self.rounded:
            return self._search(queries, k, candidates)
        rounded_hits = self._search(queries, 2 * k + 50, candidates)
        return [_scored(query, hits, vectors) for query, hits in zip(queries, rounded_hits, strict=True)]

    def _positions(self, pks: Positions) -> Positions:
        positions = np.searchsorted(self.pks, pks)
        inside = np.flatnonzero(positions < len(self.pks))
        known: Positions = positions[inside[self.pks[positions[inside]] == pks[inside]]]
        return known

    def _candidates(self, among: Sequence[int] | None) -> _Candidates:
        if among is None and not self.dead:
            return _Candidates(None, len(self.pks))
        mask = self.alive
        if among is not None:
            mask = np.zeros(len(self.pks), np.bool_)
            mask[self._positions(np.array(among, np.int64))] = True
            mask &= self.alive
        return _Candidates(mask, int(mask.sum()))

    def _search(self, queries: Array, k: int, candidates: _Candidates) -> list[Hits]:
        results: list[Hits] = [[] for _ in queries]
        pending = np.arange(len(queries))
        rough = self._rough(queries, k, candidates)
        if rough is not None:
            scores, positions = rough
            passing = positions >= 0
            if candidates.mask is not None:
                passing &= candidates.mask[positions]
            complete = np.full(len(queries), False)
            for row in pending:
                kept = np.flatnonzero(passing[row])[: k + 1]
                if self.exact:  # the row after the k-th shows whether rows tied with the k-th are missing
                    complete[row] = len(kept) > k and scores[row, kept[k]] < scores[row, kept[k - 1]]
                else:
                    complete[row] = len(kept) >= min(k, candidates.count)
                if complete[row]:
                    results[row] = self._hits(scores[row, kept[:k]], positions[row, kept[:k]])
            pending = pending[~complete]
        selector = candidates.selector if pending.size else None
        fetch = min(k + 1, candidates.count)
        while pending.size:
            scores, positions = self._scan(queries[pending], fetch, selector)
            all_rows = fetch == candidates.count
            complete = np.full(len(pending), True) if all_rows else scores[:, -1] < scores[:, k - 1]
            for row in np.flatnonzero(complete):
                kept = (positions[row] >= 0) & (scores[row] >= scores[row, min(k, fetch) - 1])
                results[pending[row]] = self._hits(scores[row, kept], positions[row, kept])
            pending = pending[~complete]
            fetch = min(fetch * 4, candidates.count)
        return results

    def _hits(self, scores: Array, positions: Positions) -> Hits:
        return list(zip(scores.tolist(), self.pks[positions].tolist(), strict=True))

    @abstractmethod
    def _rough(self, queries: Array, k: int, candidates: _Candidates) -> tuple[Array, Positions] | None:
        """Return scores and positions, best first, of rows that may include masked ones; None if a scan is faster."""

    def _scan(self, queries: Array, fetch: int, selector: Any) -> tuple[Array, Positions]:
        """Return scores and positions of the best ``fetch`` rows that the selector accepts, by comparing with all."""
        params = None if selector is None else load_faiss().SearchParameters(sel=selector)
        neighbours: tuple[Array, Positions] = self._flat.search(queries, fetch, params=params)
        return neighbours

    @property
    def _flat(self) -> Any:
        return self.index


class FlatIndex(RowIndex):
    """Exact search: compares a query with every row."""

    exact = True

    @override
    def remove(self, pks: Positions) -> None:
        """Remove rows from the index itself, where later rows move up; from a mapped file as other types do."""
        if self.fixed:
            super().remove(pks)
            return
        positions = self._positions(pks)
        if positions.size:
            self.index.remove_ids(load_faiss().IDSelectorBatch(positions))
            self.pks = np.delete(self.pks, positions)
            self.alive = np.delete(self.alive, positions)

    def _rough(self, queries: Array, k: int, candidates: _Candidates) -> tuple[Array, Positions] | None:
        missing = len(self.pks) - candidates.count
        if not 0 < missing <= FEW_DEAD:
            return None
        neighbours: tuple[Array, Positions] = self.index.search(queries, min(k + 1 + missing, len(self.pks)))
        return neighbours


class HnswIndex(RowIndex):
    """HNSW graph over inner products.

    An inner product is not a distance, but the graph works for vectors of any length. Recall at 10, measured with the
    default parameters on 20,000 clustered vectors: 1.000 for equal norms and for norms spread over 100x, 0.99 if one
    vector in a thousand is 100 times as long as the rest (:func:`build` fills up the lists of links for this case).

    Filters that match only short vectors are a problem, since all steps lead to long ones: FAISS's own filtered search
    then found half of the rows, without any sign of it. Therefore the graph is searched without the filter for more
    neighbours, and if fewer than k of them match, every row that matches is compared.
    """

    def _rough(self, queries: Array, k: int, candidates: _Candidates) -> tuple[Array, Positions] | None:
        total = len(self.pks)
        # ef is twice the number of rows used, because the farther half of the rows a search visits has gaps.
        ef, fetch = max(int(self.spec.search_params(k)["ef"]), 2 * k), k
        if candidates.count < total:
            ef = max(ef, 4 * k) * total // candidates.count
            fetch = ef // 2
        if candidates.count <= GRAPH_COST * ef:
            return None
        # Do not pass a selector here with bounded_queue=False: FAISS 1.15 ignores it.
        params = load_faiss().SearchParametersHNSW(efSearch=ef)
        neighbours: tuple[Array, Positions] = self.index.search(queries, fetch, params=params)
        return neighbours

    @property
    def _flat(self) -> Any:
        return load_faiss().downcast_index(self.index.storage)


class IvfIndex(RowIndex):
    """IVF: cells around centroids of unit length; a search visits the cells of the nearest directions.

    The length of a vector does not influence its cell, so recall falls if lengths decide the score: recall at 10 with
    16 of 256 cells is 1.000 for equal norms, 0.95 for norms spread over 100x, and 0.23 if one vector in a thousand is
    100 times as long as the rest. Use HNSW for such vectors.
    """

    def __init__(self, spec: IndexSpec, index: Any) -> None:
        super().__init__(spec, index)
        self.rounded = spec.index_type == "IVF_SQ8"

    def _rough(self, queries: Array, k: int, candidates: _Candidates) -> tuple[Array, Positions] | None:
        probes = int(self.spec.search_params(k)["nprobe"]) * len(self.pks) // candidates.count
        return None if probes >= self.index.nlist else self._visit(queries, k, candidates.selector, probes)

    def _scan(self, queries: Array, fetch: int, selector: Any) -> tuple[Array, Positions]:
        return self._visit(queries, fetch, selector, self.index.nlist)

    def _visit(self, queries: Array, fetch: int, selector: Any, probes: int) -> tuple[Array, Positions]:
        params = load_faiss().SearchParametersIVF(nprobe=probes, sel=selector)
        neighbours: tuple[Array, Positions] = self.index.search(queries, fetch, params=params)
        return neighbours


class GpuIndex(RowIndex):
    """Rows on a GPU, and in memory too for what a GPU index cannot do: filters, removal, more than 2,048 neighbours.

    Args:
        spec: index type and parameters.
        index: FAISS index in memory.
        device: FAISS index on the GPU.
    """

    can_be_saved = False

    def __init__(self, spec: IndexSpec, index: Any, device: Any) -> None:
        super().__init__(spec, index)
        self.exact = spec.exact
        self._device = device
        self._process = os.getpid()

    @override
    def add_with_ids(self, vectors: Array, pks: Positions) -> None:
        super().add_with_ids(vectors, pks)
        if self._usable:
            self._device.add(vectors)

    @property
    def _usable(self) -> bool:
        return self._process == os.getpid()  # CUDA does not survive a fork

    def _rough(self, queries: Array, k: int, candidates: _Candidates) -> tuple[Array, Positions] | None:
        total = len(self.pks)
        fetch = k + 1 if candidates.count == total else 2 * (k + 1) * total // candidates.count
        fetch = min(fetch, total)
        if not self._usable or fetch > DEVICE_MOST:
            return None
        if not self.exact:
            probes = int(self.spec.search_params(k)["nprobe"]) * total // candidates.count
            self._device.nprobe = min(probes, cells_of(self.spec), DEVICE_MOST)
        neighbours: tuple[Array, Positions] = self._device.search(queries, fetch)
        return neighbours


_WRAPPERS: dict[str, Callable[[IndexSpec, Any], RowIndex]] = {
    "FLAT": FlatIndex, "HNSW": HnswIndex, "IVF_FLAT": IvfIndex, "IVF_SQ8": IvfIndex,
}  # fmt: skip


def _scored(query: Array, hits: Hits, vectors: Vectors) -> Hits:
    pks = sorted(pk for _, pk in hits)
    with np.errstate(over="ignore", invalid="ignore"):
        return list(zip((vectors(pks) @ query).tolist(), pks, strict=True))
