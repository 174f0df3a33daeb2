"""New photos that show the same as a row of their namespace, or as an earlier photo of their chunk, are left out.

The rules are those of ``ldot duplicates``: near vectors, and perceptual hashes that agree. A row counts only if its
source still holds its content. A photo is never left out if its id has a row, if it has taken the place of a row's
photo, or if it has lost its row in this run.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from ldot_milvus.batches import batched
from ldot_milvus.errors import InputError
from ldot_milvus.images import content_id, decode
from ldot_milvus.ingest.report import NearDuplicate, Report
from ldot_milvus.models.base import KeptImage
from ldot_milvus.regions.base import Regions
from ldot_milvus.search.nearness import THRESHOLD, look_the_same, neighbours, unit, vectors_of
from ldot_milvus.search.perceptual_hash import DECODE_AT, PerceptualHash, perceptual_hash
from ldot_milvus.sources import locate, read
from ldot_milvus.sources.reading import holds, present
from ldot_milvus.stores.base import Array, Filter, Record, VectorStore
from ldot_milvus.stores.identity import content_of

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_HASHES = 100_000
"""Hashes of contents that are kept in memory, so that the same rows are not read for every new photo."""

_SAMPLE = 512  # rows whose vectors' lengths are looked at
_VECTORS = 512  # vectors of neighbours in memory at a time


class Hashes:
    """Perceptual hashes by content, the last :data:`MAX_HASHES` of them. Threads may share them."""

    def __init__(self) -> None:
        self._known: dict[str, PerceptualHash] = {}

    def get(self, content: str) -> PerceptualHash | None:
        """Return the hash of a content; None if it is not known."""
        return self._known.get(content)

    def add(self, content: str, hash: PerceptualHash) -> None:
        """Keep the hash of a content."""
        self._known[content] = hash
        if len(self._known) > MAX_HASHES:
            self._known.pop(next(iter(self._known)), None)


@dataclass(frozen=True)
class _Kept:
    row: Record
    hash: PerceptualHash


class NearDuplicates:
    """The near-duplicates of one chunk.

    Args:
        store: the collection, which exists.
        hashes: hashes of contents, which are used and added to.
        returning: ids of rows that were deleted in this run; their photos are not new.

    Attributes:
        of: the source of the photo that shows the same, by the id of the photo that was left out.
    """

    def __init__(self, store: VectorStore, hashes: Hashes, returning: Collection[str]) -> None:
        self.of: dict[str, str] = {}
        self._store, self._hashes, self._returning = store, hashes, returning
        self._kept: list[_Kept] = []  # photos of this chunk; those of the last part may not be written yet
        self._kept_units: Array | None = None  # their vectors, of length 1
        self._lost: set[str] = set()  # ids of rows whose photos cannot be compared
        self._namespaces: dict[str, tuple[Filter | None, float]] = {}

    def least_side(self, of_model: int | None) -> int | None:
        """Return the ``least_side`` of photos that are encoded by a model and compared."""
        return None if of_model is None else max(of_model, DECODE_AT)

    def leave_out(
        self, opened: Sequence[tuple[Record, Image | Regions | None]], records: list[Record], kept: dict[str, KeptImage]
    ) -> tuple[list[Record], dict[str, KeptImage]]:
        """Return the rows and the region data of one part without near-duplicates, and note these in :attr:`of`.

        Args:
            opened: the decoded photos. What is not a photo is never left out.
            records: their rows with their vectors, in the order of reading.
            kept: their region data, by id.
        """
        photos = {row.id: photo for row, photo in opened if photo is not None and not isinstance(photo, Regions)}
        rows = [row for row in records if row.id in photos]
        if rows:
            self._compare(rows, [perceptual_hash(photos[row.id]) for row in rows])
        left = [row for row in records if row.id not in self.of]
        return left, {id: image for id, image in kept.items() if id not in self.of}

    def count(self, report: Report, names: Mapping[str, Sequence[str]]) -> None:
        """Count what was left out in the report of the chunk, under all names of each id."""
        for id, source in self.of.items():
            report.near_duplicates += [NearDuplicate(name, source) for name in names[id]]
            report.unchanged -= len(names[id]) - 1  # files with equal contents

    def _compare(self, rows: Sequence[Record], hashes: Sequence[PerceptualHash]) -> None:
        units = unit(vectors_of(rows))
        compared = units if self._kept_units is None else np.concatenate([self._kept_units, units])
        near = (units @ compared.T).round(6) >= THRESHOLD
        stored = self._near_rows(rows, units)
        earlier: list[_Kept | None] = [*self._kept]
        for i, (row, hash) in enumerate(zip(rows, hashes, strict=True)):
            before = [kept for j in np.flatnonzero(near[i, : len(earlier)]) if (kept := earlier[j]) is not None]
            same = self._among(before, row.namespace, hash) or self._among_stored(stored[i], hash)
            if same is not None and not self._is_needed(row):
                self.of[row.id] = same
                earlier.append(None)
            else:
                self._hashes.add(content_of(row), hash)
                earlier.append(_Kept(replace(row, embedding=None), hash))
        self._kept_units = compared[[kept is not None for kept in earlier]]
        self._kept = [kept for kept in earlier if kept is not None]

    def _among(self, earlier: Sequence[_Kept], namespace: str, hash: PerceptualHash) -> str | None:
        for kept in earlier:
            if kept.row.namespace == namespace and look_the_same(kept.hash, hash):
                return kept.row.source
        return None

    def _among_stored(self, rows: Sequence[Record], hash: PerceptualHash) -> str | None:
        return next((row.source for row in rows if self._shows(row, hash)), None)

    def _shows(self, row: Record, hash: PerceptualHash) -> bool:
        """Whether the row's source holds its content, and this looks like the photo of the hash."""
        content = content_of(row)
        known = self._hashes.get(content)
        if row.id in self._lost or (known is not None and not look_the_same(known, hash)):
            return False
        data = _held(row, content)
        if data is not None and known is None:
            try:
                known = perceptual_hash(decode(data, name=row.source, draft_to=DECODE_AT).image)
                self._hashes.add(content, known)
            except InputError:  # region features, or a format that only the machine that ingested it can read
                pass
        if data is None or known is None:
            self._lost.add(row.id)
            return False
        return look_the_same(known, hash)

    def _near_rows(self, rows: Sequence[Record], units: Array) -> list[list[Record]]:
        """Return the stored rows near each photo, the nearest first; rows that this chunk writes are left out."""
        found: list[list[tuple[float, Record]]] = [[] for _ in rows]
        written = {row.id for row in rows} | {kept.row.id for kept in self._kept}
        for namespace in sorted({row.namespace for row in rows}):
            of = [i for i, row in enumerate(rows) if row.namespace == namespace]
            queries = vectors_of([rows[i] for i in of])
            lengths = np.linalg.norm(queries, axis=1)
            filter, shortest = self._about(namespace)
            ids = neighbours(self._store, queries, THRESHOLD * lengths * np.minimum(lengths, shortest), filter)
            for some in batched(sorted(set[str]().union(*ids) - written), _VECTORS):
                others = [row for row in self._store.get(some, with_embeddings=True) if row.namespace == namespace]
                if not others:  # deleted meanwhile
                    continue
                cosines = units[of] @ unit(vectors_of(others)).T
                for i, j in np.argwhere(cosines.round(6) >= THRESHOLD):
                    found[of[i]].append((float(cosines[i, j]), replace(others[j], embedding=None)))
        return [[row for _, row in sorted(pairs, key=lambda pair: (-pair[0], pair[1].id))] for pairs in found]

    def _about(self, namespace: str) -> tuple[Filter | None, float]:
        """Return the filter of a namespace, and the length of its shortest vectors.

        Stores rank by inner product, so the length of the shortest vectors decides how far a near row may be behind. It
        is taken from some rows; ids, in whose order they come, are hashes.
        """
        if namespace not in self._namespaces:
            own: Filter = {"kind": "image", "namespace": namespace}
            sample = list(islice(self._store.iterate(own, batch_size=_SAMPLE, with_embeddings=True), _SAMPLE))
            lengths = np.linalg.norm(vectors_of(sample), axis=1) if sample else np.zeros(0)
            shortest = float(lengths[lengths > 0].min(initial=np.inf))
            # A filter costs time, and most collections have one namespace.
            alone = self._store.count(own) == self._store.count({"kind": "image"})
            self._namespaces[namespace] = None if alone else {"namespace": namespace}, shortest
        return self._namespaces[namespace]

    def _is_needed(self, row: Record) -> bool:
        """Whether a photo has or had a row, or its source is that of a row which has lost its photo."""
        if row.id in self._returning or self._store.get([row.id]):
            return True
        at_source = self._store.iterate({"source": {"$in": [row.source]}})
        return any(other.kind == "image" and not holds(other.source, content_of(other)) for other in at_source)


def _held(row: Record, content: str) -> bytes | None:
    """Return the content of a row from its source; None if the source does not hold it, or cannot be read."""
    try:
        sources = present(row.source)
        sources = [locate(row.source)] if sources is None else sources
    except InputError:
        return None
    for source in sources:  # a tar may have several members of a name
        try:
            data = read(source)
        except InputError:
            continue
        if content_id(data) == content:
            return data
    return None
