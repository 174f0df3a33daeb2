"""Routes of searches."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Form, UploadFile
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from ldot_milvus.errors import UsageError
from ldot_milvus.search.hits import Hit
from ldot_milvus.serve.answers import PROBLEMS, RowNotFound
from ldot_milvus.serve.schemas import Found, Options, Search
from ldot_milvus.serve.service import ServiceOf, in_thread

router = APIRouter(prefix="/v1/search", tags=["search"], responses=PROBLEMS)


@router.post("", response_model=Found)
async def search(request: Search, service: ServiceOf) -> JSONResponse:
    """Search by text, by texts and rows with weights, or by a row (more like this)."""
    service.check_ready()
    if sum(given is not None for given in (request.text, request.parts, request.id)) != 1:
        raise UsageError("give exactly one of text, parts and id")
    started = time.perf_counter()
    hits = await in_thread(_search, service, request)
    return _answer(hits, started)


@router.post("/image", response_model=Found)
async def search_by_photo(
    service: ServiceOf, file: UploadFile, options: Annotated[str, Form(max_length=65_536)] = "{}"
) -> JSONResponse:
    """Search by a photo; ``options`` is JSON with the fields of a search but the query."""
    service.check_ready()
    try:
        parsed = Options.model_validate_json(options)
    except ValidationError as error:
        raise UsageError(f"options: {error.errors()[0]['msg']}") from error
    data = await run_in_threadpool(file.file.read)
    started = time.perf_counter()
    retriever = await in_thread(service.retriever, parsed.collection)
    hits = await in_thread(retriever.search, image=data, **_arguments(parsed))
    return _answer(hits[parsed.offset :], started)


def _search(service: ServiceOf, request: Search) -> list[Hit]:
    retriever = service.retriever(request.collection)
    if request.id is not None:
        for row in retriever.store.get([request.id], with_embeddings=True):
            assert row.embedding is not None
            hits = retriever.nearest(
                row.embedding, k=request.k + request.offset + 1, filter=request.filter, kind=request.kind,
                namespace=request.namespace,
            )  # fmt: skip
            return [hit for hit in hits if hit.id != row.id][request.offset :][: request.k]
        raise RowNotFound(request.id)
    query: Any = request.text
    if request.parts is not None:
        query = [(weight, part.text) for weight, part in request.parts]
    return retriever.search(query, **_arguments(request))[request.offset :]


def _arguments(options: Options) -> dict[str, Any]:
    return {
        "k": options.k + options.offset, "rerank": options.rerank, "filter": options.filter, "kind": options.kind,
        "namespace": options.namespace, "min_probability": options.min_probability,
    }  # fmt: skip


def _answer(hits: list[Hit], started: float) -> JSONResponse:
    total = round(1000 * (time.perf_counter() - started), 2)
    return JSONResponse({"hits": [hit.to_dict() for hit in hits], "milliseconds": {"total": total}})
