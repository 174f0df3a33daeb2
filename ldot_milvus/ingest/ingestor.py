"""Ingestion of one chunk of sources into a store; workers and the in-process mode share this code.

The steps for a photo: read, hash, skip known rows, decode, extract regions, encode, write region data, write the row.
Threads read and decode ahead of the model and write behind it, so that the model does not wait for either. Sources with
precomputed regions skip decoding and extraction; texts are read, hashed, encoded and written.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from ldot_milvus.arguments import described, listed
from ldot_milvus.batches import batched, prefetch
from ldot_milvus.errors import UsageError
from ldot_milvus.forks import Lock
from ldot_milvus.ingest.near_duplicates import Hashes, NearDuplicates
from ldot_milvus.ingest.pipeline import Pipeline
from ldot_milvus.ingest.report import Failure as Failure
from ldot_milvus.ingest.report import Report as Report
from ldot_milvus.models.base import Embedder, Reranker
from ldot_milvus.models.loading import load_reranker
from ldot_milvus.models.registry import find_model, find_reranker
from ldot_milvus.sources import Source
from ldot_milvus.stores import Record, VectorStore
from ldot_milvus.stores.base import MODEL_SOURCE
from ldot_milvus.stores.region_place import RegionPlace, region_store_at
from ldot_milvus.stores.upgrade import require_current

CHUNK_SIZE = 64
"""Photos in a chunk, which is one task of a worker."""

PART_SIZE = 32
"""Photos encoded at a time: while the model encodes one part of a chunk, threads read and decode the next."""

READERS = 4
"""Threads that decode photos."""

MAX_REPLACED = 10_000
"""Deleted rows whose descriptions are kept in memory."""


class Ingestor:
    """Writes photos and texts into a store; loads the model when the first new item arrives.

    Args:
        store: collection to write to; it is empty or contains vectors of ``model``.
        model: packaged name, folder or hub id of the embedder, or the embedder itself if it is already loaded.
        reranker: re-ranker whose region data is stored: None for the model's own, "none" for none, else a folder or hub
            id.
        region_store: address of the region data; None takes the setting, else the recorded place, else the default.
        device: torch device such as ``cuda:0``; None chooses one.
        dtype: torch dtype such as ``float16``; None chooses one for the device.

    Raises:
        UsageError: no model or re-ranker of that name.
        ModelError: the files of a model are missing or incomplete.
        ModelMismatch: the collection contains vectors of another model.
        RegionStoreNotFound: the region data of the collection is at another place.

    Attributes:
        store: collection to write to.
        region_store: region data of the collection; None without a re-ranker.
        replaced: the last rows that were deleted because their sources hold other photos, by id. One that a later chunk
            finds elsewhere keeps its description.
    """

    def __init__(
        self,
        store: VectorStore,
        model: str | Embedder = "ldot-mini",
        *,
        reranker: str | None = None,
        region_store: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
    ) -> None:
        files = find_model(model if isinstance(model, str) else model.name)
        kept = find_reranker(reranker, files)
        self.store = store
        self._kept_by, self._place = kept, RegionPlace(store, region_store)
        self.region_store = None if kept is None else self._place.open(kept, to_write=True)
        self._files, self._reranker_name = files, reranker
        self._device, self._dtype = device, dtype
        self._embedder = None if isinstance(model, str) else model
        self._reranker: Reranker | None = None
        self._loading = Lock()
        self.replaced: dict[str, Record] = {}
        self.hashes = Hashes()
        stored = store.model
        # The former fingerprints are compared last, because hashing the weights for them takes time.
        former = stored not in (None, files.fingerprint) and stored in files.former_fingerprints
        store.bind(stored if stored is not None and former else files.fingerprint, files.dim)
        require_current(store)
        if files.source is not None and MODEL_SOURCE not in store.properties:
            store.set_properties({MODEL_SOURCE: files.source})

    @property
    def embedder(self) -> Embedder:
        """The model, loaded on first use; a run that decodes no new photo and has no new text never loads it."""
        with self._loading:  # a worker with a thread pool processes several chunks at once
            if self._embedder is None:
                self._embedder = self._files.load(device=self._device, dtype=self._dtype)
            return self._embedder

    @property
    def reranker(self) -> Reranker | None:
        """The re-ranker that selects the region data to store, loaded on first use; None without one."""
        if self.region_store is None:
            return None
        embedder = self.embedder
        with self._loading:
            if self._reranker is None:
                self._reranker = load_reranker(self._reranker_name, embedder)
            return self._reranker

    def _claim_region_store(self) -> None:
        """Agree with other processes on the place of the region data, before anything is encoded."""
        if self._kept_by is not None:
            address = self._place.claim()
            if self.region_store is None or self.region_store.address != address:
                self.region_store = region_store_at(address, self._kept_by)

    def remember(self, rows: Sequence[Record]) -> None:
        """Add rows to :attr:`replaced`, which keeps the last :data:`MAX_REPLACED`."""
        self.replaced.update((row.id, row) for row in rows)
        for id in list(self.replaced)[:-MAX_REPLACED]:
            del self.replaced[id]

    def ingest(
        self,
        sources: Iterable[Source],
        *,
        skip_near_duplicates: bool = False,
        ids: dict[str, str] | None = None,
    ) -> Report:
        """Ingest one chunk of sources.

        Photos are identified by the SHA-256 of their contents unless the source has an id. The same contents twice, in
        this chunk or an earlier one, give one row. A source that fails is reported and does not stop the others.

        Args:
            sources: photos, texts and precomputed regions; all are held in memory.
            skip_near_duplicates: leave out new photos that show the same as a row of their namespace, or as an earlier
                photo of the chunk, see :mod:`~ldot_milvus.ingest.near_duplicates`.
            ids: receives the ids of the rows, by :attr:`Source.name`; None does not report them.

        Returns:
            Counts, failures and seconds by stage.

        Raises:
            StoreError: a store cannot be used.
            ModelError: the model cannot be loaded.
            UsageError: an entry is not a :class:`~ldot_milvus.Source`.
        """
        sources = list(listed(sources, "sources"))
        for source in sources:
            if not isinstance(source, Source):
                raise UsageError(f"{described(source)} is not a Source: expand(paths) makes them of paths")
        if any(source.kind != "text" for source in sources):
            self._claim_region_store()
        report = Report()
        near = NearDuplicates(self.store, self.hashes, set(self.replaced)) if skip_near_duplicates else None
        least_side = (self._kept_by or self._files).least_side
        chunk = Pipeline(self, report, least_side if near is None else near.least_side(least_side))
        ahead, readers, writer = (ThreadPoolExecutor(count, "ldot") for count in (1, READERS, 1))
        written: Future[None] | None = None
        try:
            prepared = prefetch(ahead, lambda part: chunk.prepare(part, readers), batched(sources, PART_SIZE))
            while True:
                with chunk.clock("wait"):
                    opened = next(prepared, None)
                if opened is None:
                    break
                if opened:
                    records, kept = chunk.encode(opened)
                    if near is not None:
                        with chunk.clock("compare"):
                            records, kept = near.leave_out(opened, records, kept)
                    if written is not None:
                        written.result()
                    written = writer.submit(chunk.write, records, kept)
            if written is not None:
                written.result()
        finally:
            for threads in (ahead, readers, writer):
                # Without waiting: a chunk can be stopped although one of its photos hangs.
                threads.shutdown(wait=False, cancel_futures=True)
        report.failed += chunk.failed_duplicates()
        if near is not None:
            near.count(report, chunk.names)
        chunk.reconcile()
        if ids is not None:
            ids.update((name, id) for id, names in chunk.names.items() for name in names)
        return report
