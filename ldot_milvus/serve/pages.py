"""Routes of the pages and their assets, which are the files of ``serve/page`` and nothing else."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import Response

from ldot_milvus.search.page import CARDS_CSS
from ldot_milvus.serve.answers import PROBLEMS, Refused

router = APIRouter(include_in_schema=False, responses={404: PROBLEMS[404]})

FOLDER = Path(__file__).parent / "page"
TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}

POLICY = "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
"""The Content-Security-Policy of the pages: everything comes from this service, and scripts from files only."""


@router.get("/")
async def search_page(request: Request) -> Response:
    """Return the page to search with."""
    return _file(request, "index.html")


@router.get("/runs")
async def runs_page(request: Request) -> Response:
    """Return the page about ingestion."""
    return _file(request, "runs.html")


@router.get("/assets/{name}")
async def asset(request: Request, name: str) -> Response:
    """Return a stylesheet, a script or an icon of the pages."""
    return _file(request, name)


def _file(request: Request, name: str) -> Response:
    path = _files().get(name)
    if path is None:
        raise Refused(404, "not_found", "there is no such page")
    content = path.read_bytes()
    headers = {
        "ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"',
        "Cache-Control": "no-cache",  # asks whether it has changed, for instance by an upgrade
        "Content-Security-Policy": POLICY,
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    if headers["ETag"] in request.headers.get("If-None-Match", ""):
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=TYPES[path.suffix], headers=headers)


@cache
def _files() -> dict[str, Path]:
    return {path.name: path for path in (*FOLDER.iterdir(), CARDS_CSS) if path.suffix in TYPES}
