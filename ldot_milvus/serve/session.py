"""The session of the page: a cookie that stands for the token, since a page cannot send it with every picture."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from pydantic import Field

from ldot_milvus.serve.answers import PROBLEMS, Refused
from ldot_milvus.serve.guards import COOKIE, same_secret, session_of
from ldot_milvus.serve.schemas import Strict
from ldot_milvus.serve.service import ServiceOf

router = APIRouter(prefix="/v1/session", tags=["session"], responses=PROBLEMS)


class Token(Strict):
    """The token of the service."""

    token: str = Field(min_length=1, max_length=4096)


@router.post("", status_code=204)
async def begin(given: Token, service: ServiceOf, request: Request) -> Response:
    """Set the cookie of the page, which lasts until the browser is closed. Without a token nothing is checked."""
    answer = Response(status_code=204)
    token = service.settings.serve_secret
    if token is None:
        return answer
    if not same_secret(given.token, token):
        raise Refused(401, "token", "the token is wrong: ask whoever runs the service")
    answer.set_cookie(COOKIE, session_of(token), httponly=True, samesite="strict", secure=request.url.scheme == "https")
    return answer
