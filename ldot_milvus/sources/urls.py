"""Photos by http and https, from public addresses only, in bounded time and memory.

A name is resolved once for a connection, every address that it has is checked, and the connection goes to a checked
one: what the name means a moment later does not matter. Redirects are followed by hand, each like a new URL.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import httpcore

from ldot_milvus.errors import InputError, printable

SCHEMES = ("http", "https")
MAX_URL = 4096  # bytes, what a collection keeps of it

_REDIRECTS = (301, 302, 303, 307, 308)
_TRY_AGAIN = (429, 500, 502, 503, 504)
_HEADERS = [("User-Agent", "ldot-milvus"), ("Accept", "image/*"), ("Accept-Encoding", "identity")]

# Public by the registries or by some versions of Python, and still somebody's inside: Azure's metadata service, a block
# with Oracle's, 6to4 and Teredo, whose addresses carry any IPv4 address, the old 6to4 relay, addresses of examples.
_NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in ("168.63.129.16/32", "192.0.0.0/24", "192.88.99.0/24", "2001::/23", "2002::/16", "3fff::/20")
)
_UNICAST6 = ipaddress.ip_network("2000::/3")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True)
class Limits:
    """What one photo may cost: seconds (``total`` with all redirects and attempts), bytes, redirects, attempts."""

    connect: float = 5.0
    read: float = 10.0
    total: float = 60.0
    bytes: int = 64 * 2**20
    redirects: int = 5
    attempts: int = 3
    pause: float = 0.5  # seconds before the second attempt, twice as many before each further one


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open internet: not private, local, reserved, multicast or metadata."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        elif ip in _NAT64:
            ip = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        elif ip not in _UNICAST6:
            return False
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _NOT_PUBLIC)


class Fetcher:
    """Fetches photos.

    Args:
        resolve: as :func:`socket.getaddrinfo`.
        is_allowed: tells of an IP address whether it may be connected to.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        resolve: Callable[..., Iterable[Any]] = socket.getaddrinfo,
        is_allowed: Callable[[str], bool] = is_public,
    ) -> None:
        self.limits = limits or Limits()
        self._resolve = resolve
        self._is_allowed = is_allowed

    def fetch(self, url: str) -> bytes:
        """The body that a URL answers with; trouble that may pass is met by trying again.

        Raises:
            InputError: beginning with the URL; it is not allowed, does not answer in time, answers with something
                else than a body of bounded size, or its redirects lead to such a place.
        """
        deadline = time.monotonic() + self.limits.total
        attempt = 1
        while True:
            try:
                return self._attempt(url, deadline)
            except _Passing as error:
                pause = self.limits.pause * 2 ** (attempt - 1)
                if attempt == self.limits.attempts or time.monotonic() + pause > deadline:
                    tried = f" ({attempt} attempts)" if attempt > 1 else ""
                    raise InputError(f"{printable(url)}: {error}{tried}") from error
                attempt += 1
                time.sleep(pause)
            except _Refused as error:
                raise InputError(f"{printable(url)}: {error}") from error

    def _attempt(self, url: str, deadline: float) -> bytes:
        limits = self.limits
        timeout = {"connect": limits.connect, "read": limits.read, "write": limits.read, "pool": limits.connect}
        backend = _Checked(self._addresses, deadline)
        try:
            with httpcore.ConnectionPool(ssl_context=_tls(), network_backend=backend) as pool:
                for _ in range(limits.redirects + 1):
                    target, host = _parsed(url)
                    headers = [("Host", host), *_HEADERS]
                    with pool.stream("GET", target, headers=headers, extensions={"timeout": timeout}) as response:
                        if response.status not in _REDIRECTS:
                            return self._body(response)
                        url = _redirected(url, _header(response, b"location"))
        except httpcore.TimeoutException as error:
            raise _Refused(
                f"the server does not answer in time ({limits.connect:g} s to connect, {limits.read:g} s between two "
                f"parts, {limits.total:g} s in all)"
            ) from error
        except (httpcore.NetworkError, httpcore.ProtocolError, ssl.SSLError) as error:
            raise _Passing(f"the connection failed: {str(error) or type(error).__name__}") from error
        raise _Refused(f"more than {limits.redirects} redirects")

    def _body(self, response: httpcore.Response) -> bytes:
        if response.status in _TRY_AGAIN:
            raise _Passing(f"the server answers {response.status}")
        if response.status != 200:
            raise _Refused(f"the server answers {response.status}")
        if (encoding := _header(response, b"content-encoding")) not in (None, "identity"):
            raise _Refused(f"the answer is compressed ({encoding})")
        limit = self.limits.bytes
        promised = _header(response, b"content-length") or ""
        body = bytearray()
        if not promised.isdecimal() or int(promised) <= limit:
            for part in response.iter_stream():
                body += part
                if len(body) > limit:
                    break
            else:
                return bytes(body)
        raise _Refused(f"the answer has more than the limit of {limit:,} bytes")

    def _addresses(self, host: str, port: int) -> list[str]:
        """The addresses of a host, all of them allowed."""
        try:
            found = self._resolve(host, port, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            kind = _Passing if error.errno == socket.EAI_AGAIN else _Refused
            raise kind(f"the name {host} cannot be resolved ({error.strerror})") from error
        except (UnicodeError, ValueError) as error:
            raise _Refused(f"{host!r} is not the name of a host") from error
        addresses = list(dict.fromkeys(entry[4][0] for entry in found))
        for address in addresses:
            if not self._is_allowed(address):
                what = address if host == address else f"{host} is at {address}, which"
                raise _Refused(f"{what} is not a public address")
        return addresses


class _Refused(Exception):
    """A reason that another attempt would not change."""


class _Passing(Exception):
    """A reason that may be gone at the next attempt."""


class _Checked(httpcore.NetworkBackend):
    """Connects to the checked addresses of a host, and no longer than until the deadline."""

    def __init__(self, addresses: Callable[[str, int], list[str]], deadline: float) -> None:
        self._addresses = addresses
        self._deadline = deadline
        self._inner = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        failed: Exception | None = None
        for address in self._addresses(host, port):
            try:
                left = _left(timeout, self._deadline)
                stream = self._inner.connect_tcp(address, port, left, local_address, socket_options)
                return _Bounded(stream, self._deadline)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failed = error
        raise failed or httpcore.ConnectError(f"{host} has no address")


class _Bounded(httpcore.NetworkStream):
    """A connection that ends at the deadline: httpcore's own time-outs start anew with each byte that drips in."""

    def __init__(self, inner: httpcore.NetworkStream, deadline: float) -> None:
        self._inner = inner
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, _left(timeout, self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, _left(timeout, self._deadline))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        stream = self._inner.start_tls(ssl_context, server_hostname, _left(timeout, self._deadline))
        return _Bounded(stream, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


def _left(timeout: float | None, deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("the time for this photo is over")
    return left if timeout is None else min(timeout, left)


def _redirected(url: str, location: str | None) -> str:
    try:
        return urljoin(url, location or "")
    except ValueError as error:
        raise _Refused(f"its redirect is not a URL ({error})") from error


def _parsed(url: str) -> tuple[httpcore.URL, str]:
    """The URL, taken apart once: what is checked is what is connected to. Also the ``Host`` header."""
    if len(url.encode("utf-8", "surrogatepass")) > MAX_URL:
        raise _Refused(f"the URL is longer than {MAX_URL:,} bytes")
    if not url.isprintable():
        raise _Refused("a URL has no control characters")
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna").decode() if parts.netloc else ""
        port = parts.port
    except ValueError as error:
        raise _Refused(f"not a URL ({error})") from error
    if parts.scheme not in SCHEMES or not host:
        raise _Refused(f"{url if len(url) < 200 else url[:200] + '...'} is not a URL of http or https")
    if "@" in parts.netloc:
        raise _Refused("a user name in a URL is not sent")
    # Letters beyond ASCII and spaces are quoted, what is quoted stays.
    target = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe="%/:?#[]@!$&'()*+,;=~")
    name = f"[{host}]" if ":" in host else host
    return (
        httpcore.URL(scheme=parts.scheme, host=host, port=port, target=target),
        name if port is None else f"{name}:{port}",
    )


def _header(response: httpcore.Response, name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in response.headers if key.lower() == name), None)


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    return httpcore.default_ssl_context()  # reads the certificates of all authorities
