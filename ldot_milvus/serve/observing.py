"""Give each request an id, log it, count it, and answer an unexpected exception."""

from __future__ import annotations

import logging
import re
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ldot_milvus.serve.answers import problem
from ldot_milvus.serve.metrics import Metrics

log = logging.getLogger("ldot_milvus.serve.requests")

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Observed:
    """The outermost part of the application.

    Args:
        app: the application.
        metrics: what counts the answers.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application. An id in the header ``X-Request-ID`` is kept if it is of a usual form."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else secrets.token_hex(8)
        started, status = time.perf_counter(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, answer)
        except Exception:
            log.exception("an unexpected error", extra={"request_id": request_id})
            if not status:
                failed = problem(500, "internal", f"the service failed: its log has the reason ({request_id})")
                await failed(scope, receive, answer)
        finally:
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.answered(route, status, seconds)
            level = logging.DEBUG if route in ("/health/live", "/health/ready", "/metrics") else logging.INFO
            about = {
                "request_id": request_id, "method": scope["method"], "path": scope["path"], "route": route,
                "status": status, "milliseconds": round(seconds * 1e3, 2),
            }  # fmt: skip
            outcome = status or "no answer"
            log.log(level, "%s %s %s, %.0f ms", scope["method"], scope["path"], outcome, seconds * 1e3, extra=about)
