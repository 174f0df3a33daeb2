"""Serve searches over HTTP with FastAPI. Run ``make demo`` first, then from the repository's root:

    pip install fastapi 'uvicorn[standard]'
    OMP_NUM_THREADS=1 uvicorn --app-dir examples --workers 4 fastapi_service:app
    curl 'http://127.0.0.1:8000/search?text=a+long+red+bus&k=3'

The ``LDOT_`` settings name store, collection and model. Each worker process loads the model before it takes requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse

from ldot_milvus import CollectionNotFound, InputError, LdotError, Retriever, UsageError


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load the model and search once, in a thread, so that the first request finds everything ready."""
    app.state.retriever = await asyncio.to_thread(Retriever.from_settings)
    with suppress(CollectionNotFound):  # the first ingestion creates it
        await app.state.retriever.asearch("a photo", k=1)
    yield
    app.state.retriever.store.close()


app = FastAPI(title="Photo search", lifespan=lifespan)


@app.get("/search")
async def search(
    request: Request,
    text: Annotated[str, Query(max_length=1000)],
    k: Annotated[int, Query(ge=1, le=100)] = 5,
    rerank: Annotated[int, Query(ge=0, le=100)] = 20,
) -> list[dict[str, Any]]:
    """Return the k best photos for a text."""
    hits = await request.app.state.retriever.asearch(text, k=k, rerank=rerank)
    return [hit.to_dict() for hit in hits]


@app.exception_handler(LdotError)
async def tell(request: Request, error: LdotError) -> JSONResponse:
    """Answer a bad query with status 400, and a store or model that cannot be used with 503."""
    status = 400 if isinstance(error, (UsageError, InputError)) else 503
    return JSONResponse({"code": error.code, "error": str(error)}, status)
