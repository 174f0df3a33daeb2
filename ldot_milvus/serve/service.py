"""What the routes share: one model, the collections of one store that it filled, and the batches of searches."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from fastapi import Depends, Request

from ldot_milvus.errors import CollectionNotFound, LdotError
from ldot_milvus.forks import Lock
from ldot_milvus.ingest.clock import Clock
from ldot_milvus.models.background import in_background
from ldot_milvus.models.base import Embedder
from ldot_milvus.models.loading import load_embedder, load_reranker
from ldot_milvus.search.query_vectors import QueryVectors
from ldot_milvus.search.requests import SearchRequest
from ldot_milvus.search.retriever import Retriever, check_model
from ldot_milvus.search.threads import search_threads
from ldot_milvus.serve.answers import Refused
from ldot_milvus.serve.batching import Batches
from ldot_milvus.serve.metrics import Metrics
from ldot_milvus.serve.uploads import Uploads
from ldot_milvus.settings import Settings
from ldot_milvus.stores import VectorStore, open_store
from ldot_milvus.stores.validation import not_found
from ldot_milvus.workers.runs import Runs

log = logging.getLogger(__name__)

QUEUE = 256
"""Searches by texts and rows that wait; one more is refused with 429."""

PHOTO_QUEUE = 16
"""Searches by photos that wait. They have a queue of their own, because a photo takes as long as many texts."""

BATCH = 16
"""Searches in a batch. Larger ones take longer and are no faster a search."""

PHOTO_BATCH = 4
QUERY_VECTORS = 10_000  # 20 MB for vectors of 512


@dataclass(frozen=True)
class Job:
    """A search in a collection; None is the default one."""

    collection: str | None
    request: SearchRequest


class Service:
    """One model, and the collections of one store.

    Args:
        settings: store, default collection, model and re-ranker.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics(lambda: len(self.texts) + len(self.photos), lambda: self._ready)
        self.texts: Batches[Job, bytes] = Batches(
            self._search, threads=search_threads(), size=BATCH, limit=QUEUE, name="ldot-texts"
        )
        self.photos: Batches[Job, bytes] = Batches(
            self._search, threads=1, size=PHOTO_BATCH, limit=PHOTO_QUEUE, name="ldot-photos"
        )
        self.runs = Runs(settings)
        self.uploads = Uploads(settings, self.runs)
        self._models: tuple[Embedder, Any] | None = None
        self._query_vectors = QueryVectors(QUERY_VECTORS)
        self._default: VectorStore | None = None
        self._retrievers: dict[str, Retriever] = {}
        self._lock = Lock()
        self._ready = False
        self._failure: LdotError | None = None

    def load(self) -> None:
        """Load the model and search once, so that the first request finds everything ready. Takes seconds."""
        try:
            with in_background():
                settings = self.settings
                embedder = load_embedder(settings.model, device=settings.device, dtype=settings.dtype)
                self._models = embedder, load_reranker(settings.reranker, embedder) or "none"
            with suppress(CollectionNotFound):  # the first ingestion creates it
                self.retriever(None).search("a photo", k=1)
            embedder.encode_texts(["a photo"])
        except LdotError as error:
            self._failure = error
            log.error("searches are refused: %s", error)
            return
        self._ready = True
        log.info("the model is loaded, and searches are answered")
        self._prepare_photos(embedder)

    def _prepare_photos(self, embedder: Embedder) -> None:
        """Encode a photo, for which torch is imported, while texts are answered already."""
        try:
            with in_background():
                embedder.encode_images([np.zeros((64, 64, 3), np.uint8)])
        except LdotError as error:  # a model of precomputed regions
            log.info("searches by a photo are refused: %s", error)
            return
        log.info("searches by a photo are answered without delay")

    @property
    def ready(self) -> bool:
        """Whether searches are answered."""
        return self._ready

    def check_ready(self) -> None:
        """Refuse a request that needs the model while it is not loaded.

        Raises:
            LdotError: the model is being loaded, or cannot be loaded.
        """
        if self._failure is not None:
            raise Refused(503, self._failure.code, str(self._failure))
        if not self._ready:
            raise Refused(503, "loading", "the model is being loaded: repeat the request", {"Retry-After": "2"})

    def retriever(self, collection: str | None) -> Retriever:
        """Return the retriever of a collection of the store; None for the default one. Called in a thread.

        Raises:
            CollectionNotFound: the store has no such collection.
            ModelMismatch: another model filled it.
        """
        name = collection or self.settings.collection
        known = self._retrievers.get(name)
        if known is not None:
            return known
        assert self._models is not None
        embedder, reranker = self._models
        with self._lock:
            if name not in self._retrievers:
                store = self._opened(name)
                try:
                    if not check_model(store, embedder):
                        raise not_found(store, store.collections())
                except LdotError:
                    if store is not self._default:
                        store.close()
                    raise
                made = Retriever(embedder, store, reranker=reranker, query_vectors=self._query_vectors)
                self._retrievers[name] = made
            return self._retrievers[name]

    @property
    def default(self) -> VectorStore:
        """The default collection, which may not exist yet. Called in a thread."""
        if self._default is None:
            self._default = open_store(self.settings.store, self.settings.collection)
        return self._default

    def _opened(self, name: str) -> VectorStore:
        return self.default if name == self.settings.collection else open_store(self.settings.store, name)

    def retrievers(self) -> dict[str, Retriever]:
        """Return the retrievers of the store's collections that this model filled, by name. Called in a thread."""
        found: dict[str, Retriever] = {}
        for name in self.default.collections():
            with suppress(LdotError):
                found[name] = self.retriever(name)
        return found

    def close(self) -> None:
        """Wait for the searches and the ingestion that run, and close the stores."""
        self.runs.close()
        self.texts.close()
        self.photos.close()
        with ExitStack() as stack:
            for store in {id(one): one for one in [*self._stores(), self._default] if one is not None}.values():
                stack.callback(store.close)

    def _stores(self) -> list[VectorStore]:
        return [retriever.store for retriever in self._retrievers.values()]

    def _search(self, jobs: Sequence[Job], waited: Sequence[float]) -> list[bytes | Exception]:
        """Run a batch of searches in a thread, and write their answers as JSON."""
        seconds: dict[str, float] = {}
        try:
            answers = self._answers(jobs, Clock(seconds))
        except Exception as error:  # a fault of a library that may concern one of them
            if len(jobs) == 1:
                return [error]
            log.warning("a batch of %d searches failed, and each is run alone", len(jobs), exc_info=True)
            return [self._search([job], [wait])[0] for job, wait in zip(jobs, waited, strict=True)]
        self.metrics.batch(len(jobs), seconds)
        written: list[bytes | Exception] = []
        for answer, wait in zip(answers, waited, strict=True):
            self.metrics.queued(wait)
            if isinstance(answer, LdotError):
                written.append(answer)
                continue
            spent = {"queue": wait, **seconds}
            milliseconds = {stage: round(1000 * part, 2) for stage, part in spent.items()}
            content = {"hits": [hit.to_dict() for hit in answer], "milliseconds": milliseconds}
            written.append(json.dumps(content, ensure_ascii=False).encode("utf-8", "backslashreplace"))
        return written

    def _answers(self, jobs: Sequence[Job], clock: Clock) -> list[Any]:
        answers: dict[int, Any] = {}
        for collection in dict.fromkeys(job.collection for job in jobs):
            numbers = [number for number, job in enumerate(jobs) if job.collection == collection]
            try:
                found = self.retriever(collection).search_many([jobs[n].request for n in numbers], stages=clock)
                answers.update(zip(numbers, found, strict=True))
            except LdotError as error:
                answers.update(dict.fromkeys(numbers, error))
        return [answers[number] for number in range(len(jobs))]


async def _service(request: Request) -> Service:  # not in a thread, as FastAPI calls other functions
    service: Service = request.app.state.service
    return service


ServiceOf = Annotated[Service, Depends(_service)]
"""The service, as a parameter of a route."""
