"""Fetch photos by HTTP and HTTPS from public addresses only, in bounded time and memory.

A host name is resolved once per connection, all its addresses are checked, and the connection uses a checked address,
so that DNS rebinding has no effect. Each redirect is checked like a new URL.
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
from typing_extensions import override

from ldot_milvus.errors import InputError, printable
from ldot_milvus.settings import current

SCHEMES = ("http", "https")
MAX_URL = 4096
"""Longest URL, in bytes: the size of a collection's field ``source``."""

_REDIRECTS = (301, 302, 303, 307, 308)
_TRANSIENT = (429, 500, 502, 503, 504)
_HEADERS = [("User-Agent", "ldot-milvus"), ("Accept", "image/*"), ("Accept-Encoding", "identity")]

# Networks that registries or some versions of Python count as global although they can lead to an internal service:
# Azure's metadata service; a block with that of Oracle; Teredo and 6to4, whose addresses embed any IPv4 address; the
# former 6to4 relay; and documentation addresses.
_NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in ("168.63.129.16/32", "192.0.0.0/24", "192.88.99.0/24", "2001::/23", "2002::/16", "3fff::/20")
)
_UNICAST6 = ipaddress.ip_network("2000::/3")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True)
class Limits:
    """Limits for one photo.

    Attributes:
        connect: time to connect, in seconds.
        read: time between two parts of an answer, in seconds.
        total: time for all redirects and attempts, in seconds.
        bytes: size of the body, in bytes.
        redirects: number of redirects.
        attempts: number of attempts after transient errors.
        pause: time before the second attempt, in seconds; it doubles before each further one.
    """

    connect: float = 5.0
    read: float = 10.0
    total: float = 60.0
    bytes: int = 64 * 2**20
    redirects: int = 5
    attempts: int = 3
    pause: float = 0.5


def is_public(address: str) -> bool:
    """Return whether an IP address is public: not private, local, reserved, multicast, or of a metadata service."""
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
    """Fetches photos by URL.

    Args:
        limits: None takes the defaults of :class:`Limits`.
        resolve: resolves host names, with the signature of :func:`socket.getaddrinfo`.
        is_allowed: returns whether connections to an IP address are allowed.
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
        """Fetch the body of a URL, retrying after transient errors.

        Raises:
            InputError: the URL or one of its redirects is not allowed, does not answer in time, or does not answer
                with a body within the limits. The message starts with the URL.
        """
        deadline = time.monotonic() + self.limits.total
        attempt = 1
        while True:
            try:
                return self._attempt(url, deadline)
            except _TransientError as error:
                pause = self.limits.pause * 2 ** (attempt - 1)
                if attempt == self.limits.attempts or time.monotonic() + pause > deadline:
                    attempts = f" ({attempt} attempts)" if attempt > 1 else ""
                    raise InputError(f"{printable(url)}: {error}{attempts}") from error
                attempt += 1
                time.sleep(pause)
            except _PermanentError as error:
                raise InputError(f"{printable(url)}: {error}") from error

    def _attempt(self, url: str, deadline: float) -> bytes:
        limits = self.limits
        timeout = {"connect": limits.connect, "read": limits.read, "write": limits.read, "pool": limits.connect}
        backend = _CheckedBackend(self._addresses, deadline)
        try:
            with httpcore.ConnectionPool(ssl_context=_tls(), network_backend=backend) as pool:
                for _ in range(limits.redirects + 1):
                    target, host = _parse(url)
                    headers = [("Host", host), *_HEADERS]
                    with pool.stream("GET", target, headers=headers, extensions={"timeout": timeout}) as response:
                        if response.status not in _REDIRECTS:
                            return self._body(response)
                        url = _redirect_target(url, _header(response, b"location"))
        except httpcore.TimeoutException as error:
            raise _PermanentError(
                f"the server does not answer in time ({limits.connect:g} s to connect, {limits.read:g} s between two "
                f"parts, {limits.total:g} s in all)"
            ) from error
        except (httpcore.NetworkError, httpcore.ProtocolError, ssl.SSLError) as error:
            raise _TransientError(f"the connection failed: {str(error) or type(error).__name__}") from error
        raise _PermanentError(f"more than {limits.redirects} redirects")

    def _body(self, response: httpcore.Response) -> bytes:
        if response.status in _TRANSIENT:
            raise _TransientError(f"the server answers {response.status}")
        if response.status != 200:
            raise _PermanentError(f"the server answers {response.status}")
        if (encoding := _header(response, b"content-encoding")) not in (None, "identity"):
            raise _PermanentError(f"the answer is compressed ({encoding})")
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
        raise _PermanentError(f"the answer has more than the limit of {limit:,} bytes")

    def _addresses(self, host: str, port: int) -> list[str]:
        """Resolve a host to its addresses; raise :class:`_PermanentError` if one of them is not allowed."""
        try:
            entries = self._resolve(host, port, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            error_class = _TransientError if error.errno == socket.EAI_AGAIN else _PermanentError
            raise error_class(f"the name {host} cannot be resolved ({error.strerror})") from error
        except (UnicodeError, ValueError) as error:
            raise _PermanentError(f"{host!r} is not a valid host name") from error
        addresses = list(dict.fromkeys(entry[4][0] for entry in entries))
        for address in addresses:
            if not self._is_allowed(address):
                subject = address if host == address else f"{host} resolves to {address}, which"
                raise _PermanentError(f"{subject} is not a public address")
        return addresses


_fetcher = Fetcher()


def fetch(url: str) -> bytes:
    """Fetch a photo if the setting ``LDOT_ALLOW_URLS`` of this process allows it.

    Raises:
        InputError: URLs are not allowed, or :meth:`Fetcher.fetch` fails. The message starts with the URL.
    """
    if not current("allow_urls"):
        raise InputError(f"{printable(url)}: URLs are fetched only with LDOT_ALLOW_URLS=true: set it for this process")
    return _fetcher.fetch(url)


class _PermanentError(Exception):
    """An error that another attempt would not change."""


class _TransientError(Exception):
    """An error that may not occur at the next attempt."""


class _CheckedBackend(httpcore.NetworkBackend):
    """Connects only to checked addresses, and only until the deadline."""

    def __init__(self, addresses: Callable[[str, int], list[str]], deadline: float) -> None:
        self._addresses = addresses
        self._deadline = deadline
        self._inner = httpcore.SyncBackend()

    @override
    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        last_error: Exception | None = None
        for address in self._addresses(host, port):
            try:
                remaining = _remaining(timeout, self._deadline)
                stream = self._inner.connect_tcp(address, port, remaining, local_address, socket_options)
                return _DeadlineStream(stream, self._deadline)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                last_error = error
        raise last_error or httpcore.ConnectError(f"{host} has no address")


class _DeadlineStream(httpcore.NetworkStream):
    """A connection that ends at the deadline. The time-outs of httpcore alone restart with each received byte."""

    def __init__(self, inner: httpcore.NetworkStream, deadline: float) -> None:
        self._inner = inner
        self._deadline = deadline

    @override
    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, _remaining(timeout, self._deadline))

    @override
    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, _remaining(timeout, self._deadline))

    @override
    def close(self) -> None:
        self._inner.close()

    @override
    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        stream = self._inner.start_tls(ssl_context, server_hostname, _remaining(timeout, self._deadline))
        return _DeadlineStream(stream, self._deadline)

    @override
    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


def _remaining(timeout: float | None, deadline: float) -> float:
    """Return the seconds until the deadline, at most ``timeout``; raise httpcore.ReadTimeout after the deadline."""
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise httpcore.ReadTimeout("the time limit of this photo has expired")
    return remaining if timeout is None else min(timeout, remaining)


def _redirect_target(url: str, location: str | None) -> str:
    try:
        return urljoin(url, location or "")
    except ValueError as error:
        raise _PermanentError(f"its redirect is not a URL ({error})") from error


def _parse(url: str) -> tuple[httpcore.URL, str]:
    """Parse a URL once, so that the checked host is the one that is connected to.

    Returns:
        The URL for httpcore, and the ``Host`` header.
    """
    if len(url.encode("utf-8", "surrogatepass")) > MAX_URL:
        raise _PermanentError(f"the URL is longer than {MAX_URL:,} bytes")
    if not url.isprintable():
        raise _PermanentError("the URL contains control characters")
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna").decode() if parts.netloc else ""
        port = parts.port
    except ValueError as error:
        raise _PermanentError(f"not a URL ({error})") from error
    if parts.scheme not in SCHEMES or not host:
        raise _PermanentError(f"{url if len(url) < 200 else url[:200] + '...'} is not a URL of http or https")
    if "@" in parts.netloc:
        raise _PermanentError("the URL contains a user name: remove it")
    # Quote spaces and characters beyond ASCII; keep percent-encoded ones.
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
    return httpcore.default_ssl_context()  # cached: loading the certificates of all authorities takes time
