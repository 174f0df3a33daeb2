"""Routes of searches."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Form, Request, Response, UploadFile
from pydantic import ValidationError

from ldot_milvus.errors import UsageError
from ldot_milvus.search.query import RowId
from ldot_milvus.search.requests import SearchRequest
from ldot_milvus.serve.answers import PROBLEMS, Refused
from ldot_milvus.serve.schemas import Found, Options, QueryPart, Search
from ldot_milvus.serve.service import Job, ServiceOf

router = APIRouter(prefix="/v1/search", tags=["search"], responses=PROBLEMS)

T = TypeVar("T")


@router.post("", response_model=Found)
async def search(query: Search, service: ServiceOf, request: Request) -> Response:
    """Search by text, by texts and rows with weights, or by a row (more like this)."""
    service.check_ready()
    if sum(given is not None for given in (query.text, query.parts, query.id)) != 1:
        raise UsageError("give exactly one of text, parts and id")
    text: Any = query.text
    if query.parts is not None:
        text = [(weight, _content(part)) for weight, part in query.parts]
    job = Job(query.collection, SearchRequest(text=text, id=query.id, **_options(query)))
    return _json(await unless_gone(request, service.texts.submit(job)))


@router.post("/image", response_model=Found)
async def search_by_photo(
    file: UploadFile, service: ServiceOf, request: Request, options: Annotated[str, Form(max_length=65_536)] = "{}"
) -> Response:
    """Search by a photo; ``options`` is JSON with the fields of a search but the query."""
    service.check_ready()
    try:
        parsed = Options.model_validate_json(options)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(["options", *map(str, problem["loc"])])
        raise Refused(422, "shape", f"{place}: {problem['msg']}") from error
    job = Job(parsed.collection, SearchRequest(image=await file.read(), **_options(parsed)))
    return _json(await unless_gone(request, service.photos.submit(job)))


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of ``work``, which is cancelled when the client closes its connection."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Refused(499, "gone", "the client has closed the connection")
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _content(part: QueryPart) -> str | RowId:
    if (part.text is None) == (part.id is None):
        raise UsageError("give each part either a text or an id")
    return RowId(part.id) if part.text is None and part.id is not None else str(part.text)


def _options(options: Options) -> dict[str, Any]:
    return {name: getattr(options, name) for name in Options.model_fields if name != "collection"}


def _json(content: bytes) -> Response:
    return Response(content, media_type="application/json")
