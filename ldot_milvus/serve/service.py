"""What the routes share: one model, and the collections of one store that it filled."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request

from ldot_milvus.errors import LdotError, UsageError
from ldot_milvus.forks import Lock
from ldot_milvus.search.retriever import Retriever
from ldot_milvus.search.shared import shared_retriever
from ldot_milvus.search.threads import in_search_thread
from ldot_milvus.serve.answers import Refused
from ldot_milvus.settings import Settings

log = logging.getLogger(__name__)

T = TypeVar("T")


class Service:
    """One model, and the collections of one store.

    Args:
        settings: store, default collection, model and re-ranker.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._retrievers: dict[str, Retriever] = {}
        self._lock = Lock()
        self._ready = False
        self._failure: LdotError | None = None

    def load(self) -> None:
        """Load the model and search once, so that the first request finds everything ready. Takes seconds."""
        try:
            self._load()
        except LdotError as error:
            self._failure = error
            log.error("the model cannot be loaded: %s", error)
            return
        self._ready = True
        log.info("ready: collection %r of %s", self.settings.collection, self.settings.shown("store"))

    def _load(self) -> None:
        retriever = self.retriever(self.settings.collection)
        if retriever.store.dim is not None:
            retriever.search("a photo", k=1)
        else:
            retriever.embedder.encode_texts(["a photo"])

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
            raise self._failure
        if not self._ready:
            raise Refused(503, "loading", "the model is being loaded: repeat the request", {"Retry-After": "2"})

    def retriever(self, collection: str | None) -> Retriever:
        """Return the retriever of a collection of the store; None for the default one.

        Raises:
            UsageError: no collection can have that name.
        """
        name = collection or self.settings.collection
        with self._lock:
            if name not in self._retrievers:
                settings = self.settings
                made = shared_retriever(settings.store, name, settings.model, settings.reranker)
                self._retrievers[name] = made
            return self._retrievers[name]

    def close(self) -> None:
        """Close the stores."""
        with ExitStack() as stack:
            for retriever in self._retrievers.values():
                stack.callback(retriever.store.close)


async def in_thread(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call a function that reads a store or computes in a thread, without blocking the event loop."""
    return await in_search_thread(function, *args, **kwargs)


def _service(request: Request) -> Service:
    service = request.app.state.service
    if not isinstance(service, Service):
        raise UsageError("the application has no service: make it with create_app")
    return service


ServiceOf = Annotated[Service, Depends(_service)]
"""The service, as a parameter of a route."""
