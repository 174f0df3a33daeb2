"""The FastAPI application, made of one router for each group of routes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Scope

import ldot_milvus
from ldot_milvus.http_server import BodyLimits
from ldot_milvus.images.files import MAX_BYTES
from ldot_milvus.serve import health, ingest, pages, pictures, rows, runs, searches, session, words
from ldot_milvus.serve.answers import answer_errors, problem
from ldot_milvus.serve.guards import FewAtOnce, KnownHosts, TokenRequired, allowed_hosts
from ldot_milvus.serve.observing import Observed
from ldot_milvus.serve.service import Service
from ldot_milvus.settings import Settings, split_list

JSON_BYTES = 2**20
UPLOADS = {"/v1/search/image": 33 * 2**20, "/v1/ingest": MAX_BYTES + 2**20}
"""Largest bodies of requests with photos: of one that is searched for, and of those to ingest."""

UPLOADS_AT_ONCE = 16


def create_app(settings: Settings | None = None, *, bind: str | None = None) -> FastAPI:
    """Make the application of ``ldot serve``. The model is loaded when it starts, in a thread.

    Args:
        settings: store, collection, model and what ``docs/serve.md`` lists; None takes those of the environment.
        bind: the address that the server listens on, by which the allowed host names are chosen unless
            ``LDOT_SERVE_HOSTS`` names them; None allows any.
    """
    settings = settings or Settings()
    service = Service(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(asyncio.to_thread(service.load))
        yield
        await loading
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="ldot-milvus", version=ldot_milvus.__version__, lifespan=lifespan,
        docs_url=None, redoc_url=None,  # their assets come from elsewhere
    )  # fmt: skip
    app.state.service = service
    answer_errors(app)
    for module in (searches, rows, words, pictures, ingest, runs, session, health, pages):
        app.include_router(module.router)
    _protect(app, settings, bind, service)
    return app


def _protect(app: FastAPI, settings: Settings, bind: str | None, service: Service) -> None:
    """Add what a request passes before a route; what is added last comes first."""
    origins = split_list(settings.serve_origins)
    app.add_middleware(
        BodyLimits,
        bytes=_largest_body,
        refuse=lambda status, text: problem(
            status, "too_large" if status == 413 else "timeout", text, {"connection": "close"}
        ),
    )
    app.add_middleware(FewAtOnce, paths=UPLOADS, most=UPLOADS_AT_ONCE)
    if settings.serve_secret is not None:
        app.add_middleware(TokenRequired, token=settings.serve_secret)
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-Request-ID"],
            expose_headers=["X-Request-ID", "Retry-After"],
        )
    app.add_middleware(KnownHosts, hosts=allowed_hosts(split_list(settings.serve_hosts), bind), origins=origins)
    app.add_middleware(Observed, metrics=service.metrics)


def _largest_body(scope: Scope) -> int:
    return UPLOADS.get(scope["path"], JSON_BYTES)
