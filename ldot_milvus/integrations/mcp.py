"""MCP: a server with the tool ``search_photos``, by which agents search a collection and see its photos.

A client reaches the rows of one collection and scaled-down copies of their photos, and nothing else: a photo that it
gives is either an id, which is looked up in the collection, or the encoded photo itself, and never a path or a URL.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, TypeVar

import anyio
import anyio.to_thread
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

import ldot_milvus
from ldot_milvus.errors import InputError, LdotError, UsageError, printable
from ldot_milvus.images.inputs import of_data_url
from ldot_milvus.integrations.arguments import refuse_unknown
from ldot_milvus.search.hits import Hit
from ldot_milvus.search.probability import check_minimum
from ldot_milvus.search.retriever import Retriever
from ldot_milvus.search.shared import shared_retriever
from ldot_milvus.search.thumbnails import thumbnail
from ldot_milvus.stores.validation import MAX_ID

try:
    from mcp.server import Server, ServerRequestContext
    from mcp.shared.exceptions import MCPError
    from mcp.types import (
        INVALID_PARAMS,
        CallToolRequestParams,
        CallToolResult,
        ContentBlock,
        ImageContent,
        ListToolsResult,
        PaginatedRequestParams,
        TextContent,
        Tool,
        ToolAnnotations,
    )
except ImportError as error:
    raise ImportError("the MCP server needs the package mcp, version 2: pip install 'ldot-milvus[mcp]'") from error

MAX_PHOTOS = 50
"""Largest ``k``: an answer with so many thumbnails has 1 to 2 MB."""

MAX_PHOTO = 24 * 2**20
"""Largest photo in a query, in bytes."""

_THUMBNAIL = 480  # pixels of the longer side
_SEARCHES = 4  # that run at once; torch uses all processors for each of them
_REQUESTS = 64  # that wait in a thread for their turn

T = TypeVar("T")


def _parsed(value: object) -> object:
    """Parse a filter that is given as a text: some models write objects as strings."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except ValueError as error:
        raise ValueError(f"this is not JSON ({error})") from error


class SearchArguments(BaseModel):
    """Arguments of search_photos."""

    model_config = ConfigDict(extra="forbid")

    text: Annotated[
        str | None,
        Field(description='What the photos show, such as "two dogs in the snow". Give either text or photo.'),
    ] = None
    photo: Annotated[
        str | None,
        Field(
            description="Find photos that resemble this one: the id of a photo in the collection, or an encoded photo "
            "(JPEG, PNG, WebP, ...) in base64 or as a data URL. Not a path and not the URL of a page."
        ),
    ] = None
    filter: Annotated[
        dict[str, Any] | None,
        BeforeValidator(_parsed),
        Field(
            description="Search only photos whose fields match. Fields: id, namespace, source, caption, width, height, "
            "metadata.KEY. Operators: $eq $ne $gt $gte $lt $lte $in $nin $and $or $not. "
            'Example: {"width": {"$gte": 640}, "metadata.album": {"$in": ["Rome", "Oslo"]}}'
        ),
    ] = None
    k: Annotated[int, Field(ge=1, le=MAX_PHOTOS, description="Maximum number of photos.")] = 5
    min_probability: Annotated[
        float | None,
        Field(
            ge=0,
            le=1,
            description="Return only photos that match the text with at least this probability, perhaps none.",
        ),
    ] = None


class SearchResult(BaseModel):
    """The photos that were found, best first."""

    photos: list[Hit]


SEARCH_PHOTOS = Tool(
    name="search_photos",
    title="Search photos",
    description="Find photos in a collection by describing them, or by an example. The answer has, for each photo and "
    "best first, its fields (id, scores, source, caption, size, the owner's metadata) and a thumbnail. A negative or "
    "low score is no sign of a bad match: compare the scores of one answer with each other.",
    input_schema=SearchArguments.model_json_schema(),
    output_schema=SearchResult.model_json_schema(),
    annotations=ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False),
)


def photo_server(retriever: Callable[[], Retriever] = shared_retriever) -> Server:
    """Make an MCP server with the tool ``search_photos``.

    Args:
        retriever: returns the retriever. It is called in a thread at each search, and loads the model at the first one.
            The default is the retriever of the settings.

    Returns:
        A server of the MCP SDK, to be run with one of the SDK's transports.
    """
    in_thread = _Threads().run

    async def list_tools(_: ServerRequestContext, params: PaginatedRequestParams | None) -> ListToolsResult:
        return ListToolsResult(tools=[SEARCH_PHOTOS])

    async def call_tool(_: ServerRequestContext, params: CallToolRequestParams) -> CallToolResult:
        if params.name != SEARCH_PHOTOS.name:
            raise MCPError(INVALID_PARAMS, f"unknown tool {params.name!r}: there is {SEARCH_PHOTOS.name}")
        try:
            arguments = _checked(params.arguments or {})
            hits = await in_thread(lambda: _search(retriever(), arguments))
        except LdotError as error:
            return CallToolResult(content=[TextContent(text=printable(str(error)))], is_error=True)
        content: list[ContentBlock] = []
        for hit in hits:
            content += [
                TextContent(text=json.dumps(hit.to_dict(), ensure_ascii=False)),
                await in_thread(partial(_picture, hit)),
            ]
        return CallToolResult(
            content=content or [TextContent(text="No photo was found.")],
            structured_content={"photos": [hit.to_dict() for hit in hits]},
        )

    return Server(
        "ldot-milvus",
        title="Photos",
        version=ldot_milvus.__version__,
        instructions="search_photos finds photos of one collection by text or by example, and shows them.",
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )


class _GivenUp(Exception):
    """Nobody waits for the result any more."""


class _Threads:
    """Run a few functions at once in threads. A function that is cancelled while it waits for its turn never runs.

    A function that runs cannot be interrupted. Its caller does not wait for it after a cancellation, so that the server
    can end, but it keeps its turn.
    """

    def __init__(self) -> None:
        self._turns = threading.Semaphore(_SEARCHES)
        self._limiter = anyio.CapacityLimiter(_REQUESTS)

    async def run(self, function: Callable[[], T]) -> T:
        given_up = threading.Event()

        def call() -> T:
            with self._turns:
                if given_up.is_set():
                    raise _GivenUp
                return function()

        try:
            return await anyio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._limiter)
        finally:
            given_up.set()


def _checked(values: dict[str, Any]) -> SearchArguments:
    """Return the arguments of a call; raise UsageError with one line if one of them is invalid."""
    refuse_unknown(values, SearchArguments.model_fields, SEARCH_PHOTOS.name)
    given = {name: value for name, value in values.items() if value not in ("", None)}  # models fill in both
    try:
        return SearchArguments.model_validate(given)
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(map(str, problem["loc"]))
        reason = problem["msg"].removeprefix("Value error, ").replace("Input should", "it should")
        raise UsageError(f"{name}: {reason}") from error


def _search(retriever: Retriever, arguments: SearchArguments) -> list[Hit]:
    if (arguments.text is None) == (arguments.photo is None):
        raise UsageError("search_photos takes a text or a photo: give exactly one of them")
    options: dict[str, Any] = {
        "k": arguments.k, "filter": arguments.filter, "min_probability": arguments.min_probability,
    }  # fmt: skip
    if arguments.photo is None:
        return retriever.search(arguments.text, **options)
    if len(arguments.photo) > MAX_ID or _is_data_url(arguments.photo):
        return retriever.search(image=_encoded(arguments.photo), **options)
    for row in retriever.store.get([arguments.photo], with_embeddings=True):
        if row.kind == "image" and row.embedding is not None:
            check_minimum(arguments.min_probability, retriever.embedder, None, crosses=False)
            return retriever.nearest(row.embedding, k=arguments.k, filter=arguments.filter)
    raise UsageError(
        f"photo: the collection has no photo with the id {arguments.photo!r}: give the id of an earlier answer, or the "
        "encoded photo"
    )


def _is_data_url(photo: str) -> bool:
    return photo[:5].lower() == "data:"


def _encoded(photo: str) -> bytes:
    """Decode base64 or a data URL. The result is bytes in every case, so nothing can take it for a path."""
    url = photo if _is_data_url(photo) else f"data:;base64,{photo}"
    try:
        data = of_data_url(url, "photo")
    except InputError as error:
        raise InputError(
            "photo: this is neither an id nor base64 nor a data URL: paths and other URLs are not read"
        ) from error
    if len(data) > MAX_PHOTO:
        raise InputError(f"photo: {len(data):,} bytes are more than the limit of {MAX_PHOTO:,} bytes: scale it down")
    return data


def _picture(hit: Hit) -> ContentBlock:
    try:
        data = base64.b64encode(thumbnail(hit.source, _THUMBNAIL)).decode()
    except InputError:
        return TextContent(text="(The server cannot read this photo now.)")
    return ImageContent(data=data, mime_type="image/jpeg")
