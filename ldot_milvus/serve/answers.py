"""Error answers: a status, and ``{"code", "error"}`` with the code and the one line of an error of the library."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from ldot_milvus.errors import CollectionNotFound, InputError, LdotError, RowNotFound, UsageError, printable
from ldot_milvus.redaction import masked


class Refused(LdotError):
    """A request that the service refuses for a reason of its own.

    Args:
        status: HTTP status.
        code: identifier for programs.
        text: one line that says what to do.
        headers: headers of the answer.
    """

    def __init__(self, status: int, code: str, text: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(text)
        self.status, self.code, self.headers = status, code, headers  # type: ignore[misc]


class Problem(BaseModel):
    """What an error answer contains."""

    code: str = Field(description="Identifier for programs.", examples=["usage"])
    error: str = Field(description="One line for people: what is wrong, and what to do.")


PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": description}
    for status, description in {
        400: "The input cannot be used.",
        401: "The token is missing or wrong.",
        403: "This is not allowed.",
        404: "There is no such row or collection.",
        408: "The request did not arrive in time.",
        413: "The request is too large.",
        421: "The service has no such host name.",
        422: "The request has another shape.",
        429: "The queue is full: repeat the request after the seconds in Retry-After.",
        500: "The service failed.",
        503: "The model or the store cannot be used now.",
    }.items()
}
"""Error answers that the OpenAPI description declares for every route."""


def status_of(error: LdotError) -> int:
    """Return the HTTP status of an error of the library."""
    if isinstance(error, Refused):
        return error.status
    if isinstance(error, (CollectionNotFound, RowNotFound)):
        return 404
    return 400 if isinstance(error, (UsageError, InputError)) else 503


def problem(status: int, code: str, text: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return an error answer."""
    return JSONResponse({"code": code, "error": printable(masked(text))}, status, headers)


def answer_errors(app: FastAPI) -> None:
    """Register the handlers that turn exceptions into error answers."""

    @app.exception_handler(LdotError)
    async def of_library(_: Request, error: LdotError) -> JSONResponse:
        return problem(status_of(error), error.code, str(error), getattr(error, "headers", None))

    @app.exception_handler(RequestValidationError)
    async def of_shape(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        return problem(422, "shape", f"{place or 'the request'}: {first['msg']}")

    @app.exception_handler(HTTPException)
    async def of_route(_: Request, error: HTTPException) -> JSONResponse:
        names = {400: "body", 404: "not_found", 405: "method_not_allowed"}
        headers = dict(error.headers) if error.headers else None
        return problem(error.status_code, names.get(error.status_code, "http"), str(error.detail), headers)
