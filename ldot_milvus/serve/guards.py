"""Who may ask: the host names of the service, pages of other sites, and the token."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection, Sequence
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ldot_milvus.http_server import LOOPBACK, is_loopback
from ldot_milvus.serve.answers import problem

COOKIE = "ldot_session"

OPEN = frozenset({"/", "/runs", "/health/live", "/health/ready", "/v1/session"})
"""Paths that need no token: the pages ask for it. So do the files under ``/assets/``."""

_READS = ("GET", "HEAD", "OPTIONS")


def allowed_hosts(hosts: Sequence[str], bind: str | None) -> frozenset[str] | None:
    """Return the host names that requests may name.

    Args:
        hosts: those of the setting.
        bind: the address that the service listens on; None if it is not known.

    Returns:
        Names in lower case; None for any.
    """
    if hosts:
        return frozenset(host.lower() for host in hosts)
    return frozenset(LOOPBACK) if bind is not None and is_loopback(bind) else None


class KnownHosts:
    """Refuse requests for other host names, and those by which pages of other sites change something.

    A page in a browser can give its own name the address of this machine (DNS rebinding), and can send forms to any
    address.

    Args:
        app: the application.
        hosts: names that requests may name; None for any.
        origins: sites whose pages may send requests.
    """

    def __init__(self, app: ASGIApp, *, hosts: frozenset[str] | None, origins: Sequence[str]) -> None:
        self._app, self._hosts, self._origins = app, hosts, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application, or answer 421 or 403."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        place = headers.get("host", "")
        answer = None
        if self._hosts is not None and _name(place) not in self._hosts:
            answer = problem(421, "host", "the service has no such host name: see LDOT_SERVE_HOSTS")
        elif scope["method"] not in _READS and not self._may_change(headers.get("origin"), place):
            answer = problem(403, "origin", "pages of other sites may not do this: see LDOT_SERVE_ORIGINS")
        await (answer or self._app)(scope, receive, send)

    def _may_change(self, origin: str | None, place: str) -> bool:
        if origin is None or "*" in self._origins or origin in self._origins:  # no browser, or an allowed site
            return True
        return urlsplit(origin).netloc.lower() == place.lower()


class TokenRequired:
    """Refuse requests without the token, in the header ``Authorization`` or as a cookie that stands for it.

    Args:
        app: the application.
        token: the token.
    """

    def __init__(self, app: ASGIApp, *, token: str) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application, or answer 401."""
        path = scope.get("path", "")
        if scope["type"] != "http" or path in OPEN or path.startswith("/assets/") or self._given(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        answer = problem(
            401, "token", "the service needs a token: send the header Authorization: Bearer TOKEN",
            {"WWW-Authenticate": "Bearer"},
        )  # fmt: skip
        await answer(scope, receive, send)

    def _given(self, headers: Headers) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and same_secret(token.strip(), self._token):
            return True
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and same_secret(cookie.value, session_of(self._token))


class FewAtOnce:
    """Refuse uploads while others are being received or computed: each may take much memory, and space for its file.

    Args:
        app: the application.
        paths: where photos are uploaded.
        most: number of such requests at once.
    """

    def __init__(self, app: ASGIApp, *, paths: Collection[str], most: int) -> None:
        self._app, self._paths, self._most = app, paths, most
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application, or answer 429."""
        if scope["type"] != "http" or scope["path"] not in self._paths:
            await self._app(scope, receive, send)
            return
        if self._running >= self._most:
            text = f"{self._most} uploads are in progress: repeat the request"
            headers = {"Retry-After": "2", "connection": "close"}
            await problem(429, "queue_full", text, headers)(scope, receive, send)
            return
        self._running += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._running -= 1


def session_of(token: str) -> str:
    """Return the value of the cookie that stands for a token, from which the token cannot be found."""
    return hmac.new(token.encode(), b"ldot session", hashlib.sha256).hexdigest()


def same_secret(given: str, expected: str) -> bool:
    """Compare two secrets in a time that does not depend on where they differ."""
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), expected.encode())


def _name(place: str) -> str:
    """Return the name in a ``Host`` header, without the port, in lower case."""
    name, _, port = place.rpartition(":")
    return (name if name and (port.isdigit() or not port) and not name.endswith(":") else place).lower()
