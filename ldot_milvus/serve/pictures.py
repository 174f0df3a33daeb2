"""Routes of pictures: small JPEGs of the photos of a collection, by row id and never by path, made once and cached."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from ldot_milvus.errors import InputError
from ldot_milvus.search.threads import in_search_thread
from ldot_milvus.search.thumbnails import thumbnail
from ldot_milvus.serve.answers import PROBLEMS, Refused
from ldot_milvus.serve.disk_cache import DiskCache, default_folder
from ldot_milvus.serve.rows import CollectionName, RowId, find_row
from ldot_milvus.serve.service import Service, ServiceOf
from ldot_milvus.stores import Record
from ldot_milvus.stores.identity import content_of, is_content_id

router = APIRouter(prefix="/v1/rows", tags=["pictures"], responses=PROBLEMS)

SIDES = (160, 320, 640, 1280)
"""Longer sides of thumbnails in pixels; a request gets the next larger one, so that few are kept of each photo."""

PICTURE = 1600
"""Longer side of a picture in pixels."""

THREADS = 2
"""Photos that are decoded at once: searches need the other cores."""

MAX_WAITING = 256
"""Photos that wait for a thread; further requests are refused."""

_JPEG: Mapping[int | str, dict[str, object]] = {
    200: {"content": {"image/jpeg": {}}},
    304: {"description": "Unchanged."},
}


class Pictures:
    """Makes pictures of rows, a few at a time, each once.

    Args:
        cache: where they are kept.
    """

    def __init__(self, cache: DiskCache) -> None:
        self._cache = cache
        self._threads = ThreadPoolExecutor(THREADS, "ldot-pictures")
        self._making: dict[str, asyncio.Future[bytes]] = {}

    async def get(self, row: Record, key: str, side: int) -> bytes:
        """Return the picture of a row.

        Args:
            row: the row.
            key: key of the picture, from :func:`picture_key`.
            side: length of the longer side in pixels; a smaller photo keeps its size.

        Raises:
            Refused: too many pictures wait, or the photo cannot be read.
        """
        if key not in self._making:
            if len(self._making) >= MAX_WAITING:
                raise Refused(429, "busy", "too many pictures are being made: repeat the request", {"Retry-After": "1"})
            made = asyncio.get_running_loop().run_in_executor(self._threads, self._make, row, key, side)
            self._making[key] = made
            made.add_done_callback(lambda _: self._making.pop(key, None))
        return await asyncio.shield(self._making[key])  # others may wait for it

    def close(self) -> None:
        """Make no more pictures."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _make(self, row: Record, key: str, side: int) -> bytes:
        kept = self._cache.get(key)
        if kept is not None:
            return kept
        content = content_of(row)
        try:
            made = thumbnail(row.source, side, content if is_content_id(content) else None)
        except InputError as error:
            raise Refused(404, "no_picture", f"the photo cannot be shown: {error}") from error
        self._cache.put(key, made)
        return made


def picture_key(row: Record, side: int) -> str:
    """Return the key of a picture, 64 hex digits: pictures with the same key are the same."""
    return hashlib.sha256(f"{content_of(row)}\0{row.source}\0{side}".encode("utf-8", "surrogateescape")).hexdigest()


@router.get("/{id}/thumbnail", response_class=Response, responses={**_JPEG})
async def get_thumbnail(
    request: Request,
    id: RowId,
    service: ServiceOf,
    collection: CollectionName = None,
    size: Annotated[int, Query(ge=1, le=SIDES[-1], description="Least length of the longer side in pixels.")] = 320,
) -> Response:
    """Return a small picture of a photo as JPEG."""
    return await _answer(request, service, id, collection, next(side for side in SIDES if side >= size))


@router.get("/{id}/picture", response_class=Response, responses={**_JPEG})
async def get_picture(request: Request, id: RowId, service: ServiceOf, collection: CollectionName = None) -> Response:
    """Return the picture of a photo as JPEG, scaled down to 1,600 pixels."""
    return await _answer(request, service, id, collection, PICTURE)


async def _answer(request: Request, service: Service, id: str, collection: str | None, side: int) -> Response:
    service.check_ready()
    row = await in_search_thread(find_row, service, id, collection)
    if row.kind != "image":
        raise Refused(404, "no_picture", "the row is a text, which has no picture")
    key = picture_key(row, side)
    headers = {
        "ETag": f'"{key[:32]}"',
        # The picture of a row whose id is its content never changes; others can be asked for again.
        "Cache-Control": "private, max-age=31536000, immutable" if is_content_id(row.id) else "private, no-cache",
        "Content-Security-Policy": "default-src 'none'",
        "X-Content-Type-Options": "nosniff",
    }
    if headers["ETag"] in request.headers.get("If-None-Match", ""):
        return Response(status_code=304, headers=headers)
    content = await _pictures(request).get(row, key, side)
    return Response(content, media_type="image/jpeg", headers=headers)


def _pictures(request: Request) -> Pictures:
    """Return the pictures of the application, made for its first request."""
    state = request.app.state
    if not hasattr(state, "pictures"):
        state.pictures = Pictures(DiskCache(default_folder()))
    pictures: Pictures = state.pictures
    return pictures
