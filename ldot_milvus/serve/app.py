"""The FastAPI application, made of one router for each group of routes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

import ldot_milvus
from ldot_milvus.serve import health, rows, searches
from ldot_milvus.serve.answers import answer_errors
from ldot_milvus.serve.service import Service
from ldot_milvus.settings import Settings


def create_app(settings: Settings | None = None) -> FastAPI:
    """Make the application of ``ldot serve``. The model is loaded when it starts, in a thread.

    Args:
        settings: store, collection, model and what ``docs/serve.md`` lists; None takes those of the environment.
    """
    service = Service(settings or Settings())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(asyncio.to_thread(service.load))
        yield
        await loading
        service.close()

    app = FastAPI(
        title="ldot-milvus", version=ldot_milvus.__version__, lifespan=lifespan,
        docs_url=None, redoc_url=None,  # their assets come from elsewhere
    )  # fmt: skip
    app.state.service = service
    answer_errors(app)
    for module in (searches, rows, health):
        app.include_router(module.router)
    return app
