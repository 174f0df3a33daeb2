"""An index in two segments: a mapped snapshot, which nothing changes, and the rows written since, in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ldot_milvus.stores.base import Array
from ldot_milvus.stores.index_spec import IndexSpec
from ldot_milvus.stores.local.indexes import Hits, Positions, RowIndex, Vectors, build
from ldot_milvus.stores.local.snapshot_file import Busy, read


class Segments:
    """A mapped index and a flat index of newer rows, with the interface of a :class:`RowIndex`.

    Args:
        path: file of the snapshot.
        base: its index, mapped.
    """

    can_be_saved = True

    def __init__(self, path: Path, base: RowIndex) -> None:
        base.fixed = True
        self._path = path
        self._base = base
        self._tail = build(IndexSpec("FLAT"), base.index.d)
        self.spec = base.spec
        self.exact = base.exact

    @property
    def count(self) -> int:
        """Number of rows that are not removed."""
        return self._base.count + self._tail.count

    @property
    def dead(self) -> int:
        """Number of removed rows that are still in the index."""
        return self._base.dead

    @property
    def pk_sum(self) -> int:
        """Sum of the pks of the rows that are not removed."""
        return self._base.pk_sum + self._tail.pk_sum

    @property
    def unsaved(self) -> int:
        """Number of rows that are not in the snapshot."""
        return self._tail.count

    def add_with_ids(self, vectors: Array, pks: Positions) -> None:
        """Add rows, see :meth:`RowIndex.add_with_ids`."""
        self._tail.add_with_ids(vectors, pks)

    def remove(self, pks: Positions) -> None:
        """Remove rows; unknown pks are ignored."""
        self._base.remove(pks)
        self._tail.remove(pks)

    def search(self, queries: Array, k: int, among: Sequence[int] | None, vectors: Vectors) -> list[Hits]:
        """Return the best k rows of each segment, see :meth:`LocalIndex.search`."""
        both = (part.search(queries, k, among, vectors) for part in (self._base, self._tail))
        return [old + new for old, new in zip(*both, strict=True)]

    def capture(self) -> Callable[[], RowIndex]:
        """Return a function that returns the present rows, whatever changes afterwards, in one index in memory.

        The function raises an OSError or a ValueError if the snapshot cannot be read, and :class:`Busy` if another
        process has written it again.
        """
        pks, dead = self._base.pks, self._base.pks[~self._base.alive]
        newer, count = self._tail.pks, self._tail.count
        vectors = self._tail.index.reconstruct_n(0, count) if count else None

        def load() -> RowIndex:
            whole = read(self._path, self.spec, mapped=False)
            if not np.array_equal(whole.pks, pks):
                raise Busy
            whole.remove(dead)
            if vectors is not None:
                whole.add_with_ids(vectors, newer)
            return whole

        return load
