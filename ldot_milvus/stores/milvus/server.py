"""Calls to a Milvus server or to Milvus Lite, with time limits, retries and our own exceptions."""

from __future__ import annotations

import atexit
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from ldot_milvus.errors import CollectionNotFound, StoreError
from ldot_milvus.forks import Lock
from ldot_milvus.stores.milvus.address import LiteAddress, ServerAddress

TIMEOUT = 30.0
"""Time limit of one call, retries included, in seconds."""

_NOT_FOUND = 100
_NOT_LOADED = 101
_LATER = (
    1,  # service not ready
    2,  # service unavailable
    8,  # rate limit
    9,  # quota exceeded for now
    106,  # collection not fully loaded
    500, 503,  # channel lacking, channel not available
    901, 902,  # node not found, node offline
)  # fmt: skip
"""Codes of temporary errors in Milvus 2.3 and later (pkg/merr/errors.go)."""
_LATER_WORDS = ("not ready", "not healthy", "no available shard", "channel not available", "node offline", "recovering")
"""Messages of temporary errors in Milvus 2.3, which reports them with the general code 65535."""
_LOCKED_WORDS = ("locked", "open local milvus failed")
"""Messages of Milvus Lite, and of pymilvus for the same error."""
_TOKEN_WORDS = ("auth check failure", "unauthenticated", "not authenticated", "invalid username or password")
_RIGHTS_WORDS = ("permission deny", "privilegepermissiondenied", "permissiondenied")
_NO_PINGS = {"grpc.keepalive_time_ms": 2**31 - 1}
"""pymilvus pings idle connections every 10 s, which Milvus Lite takes for abuse and disconnects."""
_SILENCE_WORDS = ("deadline", "timeout", "unavailable", "connect")


class CollectionNotLoaded(StoreError):
    """The collection is not in memory, for example after a restart of the server, and must be loaded."""


class Server:
    """A connection to a Milvus server or to Milvus Lite, opened at the first call in each process.

    Args:
        address: ``http://host:19530`` or, for Milvus Lite, a path that ends in ``.db``; made absolute.
        token: ``user:password`` or an API key; None for the one in the address, if there is one.
        timeout: time limit of one call, retries included, in seconds.

    Attributes:
        address: absolute address, without a password.
        lite: whether it is Milvus Lite.
        timeout: time limit of one call, in seconds.
    """

    def __init__(self, address: str, token: str | None = None, timeout: float = TIMEOUT) -> None:
        self.lite = LiteAddress.claims(address)
        parsed = LiteAddress(address) if self.lite else ServerAddress(address)
        self.address = parsed.address
        self.timeout = timeout
        self._token = token or parsed.user
        self._lock = Lock()
        self._connected: tuple[int, Any] | None = None

    def call(self, method: str, *args: Any, timeout: float | None = None, **kwargs: Any) -> Any:
        """Call ``MilvusClient.method(*args, **kwargs)``, and repeat the call after temporary errors.

        Args:
            method: name of the method.
            args: its positional arguments.
            timeout: time limit in seconds; None takes that of the server.
            kwargs: its keyword arguments.

        Returns:
            The result of the method.

        Raises:
            CollectionNotFound: no collection or alias has the name.
            CollectionNotLoaded: the collection must be loaded first.
            StoreError: Milvus refused the call, or did not answer within the time limit.
        """

        def once(remaining: float) -> Any:
            return getattr(self._client(remaining), method)(*args, timeout=remaining, **kwargs)

        return self._persistently(method, once, timeout or self.timeout)

    def read(self, method: str, collection: str, **arguments: Any) -> Any:
        """Call ``search`` or ``query``; load the collection first if a restarted server has not loaded it.

        Raises as :meth:`call`.
        """
        try:
            return self.call(method, collection, **arguments)
        except CollectionNotLoaded:
            self.call("load_collection", collection)
            return self.call(method, collection, **arguments)

    def pages(self, collection: str, expression: str, size: int, fields: list[str]) -> Iterator[list[dict[str, Any]]]:
        """Yield the rows that match an expression in pages, in order of the primary key; raises as :meth:`call`."""
        options: dict[str, Any] = {"output_fields": fields, "consistency_level": "Strong"}
        if self.lite:  # its queries return rows in no particular order
            iterator = self.call("query_iterator", collection, filter=expression, batch_size=size, **options)
            try:
                while page := self._persistently("query_iterator", lambda _: iterator.next(), self.timeout):
                    yield page
            finally:
                iterator.close()
            return
        after = expression  # before 2.4, iterators of servers miss recent rows, because they use the client's clock
        while page := self.read("query", collection, filter=after, limit=size, **options):
            page = sorted(page, key=lambda row: str(row["id"]))
            yield page
            if len(page) < size:
                return
            after = f"({expression}) and id > {json.dumps(page[-1]['id'], ensure_ascii=False)}"

    def _persistently(self, method: str, once: Callable[[float], Any], limit: float) -> Any:
        from pymilvus import MilvusException

        deadline = time.monotonic() + limit
        pause = 0.05
        while True:
            try:
                with _quiet_pymilvus():
                    return once(max(deadline - time.monotonic(), 0.1))
            except MilvusException as error:
                if not _is_temporary(error) or time.monotonic() + pause > deadline:
                    raise self._explained(method, error, limit) from error
            except Exception as error:  # of gRPC, ValueError of pymilvus, DataDirLockedError of Milvus Lite
                raise self._explained(method, error, limit) from error
            time.sleep(pause)
            pause = min(2 * pause, 2.0)

    @cached_property
    def version(self) -> tuple[int, int]:
        """Major and minor version; (99, 0) for Milvus Lite."""
        if self.lite:
            return (99, 0)
        numbers = str(self.call("get_server_version")).lstrip("v").split(".")
        return int(numbers[0]), int(numbers[1])

    def names(self) -> set[str]:
        """Return the names of the collections: their aliases if they have any."""
        found: set[str] = set()
        for name in self.call("list_collections"):
            aliases = self.call("list_aliases", name).get("aliases") or [name]
            found.update(str(alias) for alias in aliases)
        return found

    def close(self) -> None:
        """Close this process's connection; the next call opens another."""
        with self._lock:
            connected, self._connected = self._connected, None
        if connected is not None and connected[0] == os.getpid():
            with _quiet_pymilvus():
                connected[1].close()

    def _client(self, timeout: float) -> Any:
        with self._lock:
            # A gRPC channel does not survive a fork: a child process that used it would hang.
            if self._connected is None or self._connected[0] != os.getpid():
                from pymilvus import MilvusClient

                more: dict[str, Any] = {"token": self._token} if self._token else {}
                if self.lite:
                    Path(self.address).parent.mkdir(parents=True, exist_ok=True)
                    more["grpc_options"] = _NO_PINGS
                client = MilvusClient(self.address, timeout=timeout, dedicated=not self.lite, **more)
                self._connected = os.getpid(), client
            return self._connected[1]

    def _explained(self, method: str, error: Exception, limit: float) -> StoreError:
        code, text = getattr(error, "code", None), str(getattr(error, "message", None) or error)
        lowered = _all_messages(error)
        if code == _NOT_FOUND:
            return CollectionNotFound(f"{self.address} has no such collection ({_first_line(text)})")
        if code == _NOT_LOADED or "collection not loaded" in lowered:
            return CollectionNotLoaded(f"Milvus at {self.address} has not loaded the collection ({_first_line(text)})")
        if _contains(lowered, _TOKEN_WORDS):
            return StoreError(f"Milvus at {self.address} refuses the token: set LDOT_STORE_TOKEN to USER:PASSWORD")
        if _contains(lowered, _RIGHTS_WORDS):
            return StoreError(
                f"Milvus at {self.address}: the user of LDOT_STORE_TOKEN has no right to do this ({method}: "
                f"{_first_line(text)}): grant it, or use another user"
            )
        if self.lite and _contains(lowered, _LOCKED_WORDS):
            return StoreError(
                f"{self.address} is open in another process, and Milvus Lite serves one at a time: stop the other "
                "process, or use a Milvus server or faiss:PATH"
            )
        if not self.lite and _contains(lowered, _SILENCE_WORDS):
            return StoreError(
                f"Milvus at {self.address} does not answer within {limit:.0f} s ({method}: {_first_line(text)}): "
                "check that it runs and that LDOT_STORE has its address"
            )
        return StoreError(f"Milvus at {self.address}: {method} failed: {_first_line(text)}")


def _is_temporary(error: Any) -> bool:
    text = _all_messages(error)
    if _contains(text, (*_LOCKED_WORDS, *_TOKEN_WORDS, "already exist")):
        return False
    return bool(error.retriable) or error.code in _LATER or _contains(text, _LATER_WORDS)


def _all_messages(error: BaseException | None) -> str:
    """Return the messages of an error and its causes: pymilvus hides a refused token behind a failed connection."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:  # pymilvus raises some errors from themselves
        chain.append(error)
        error = error.__cause__ or error.__context__
    return " ".join(f"{getattr(link, 'code', '')} {link}" for link in chain).lower()


def _contains(text: str, words: tuple[str, ...]) -> bool:
    return any(word in text for word in words)


def _first_line(text: str) -> str:
    line = text.strip().splitlines()[0] if text.strip() else "no reason given"
    return line if len(line) <= 300 else line[:297] + "..."


_our_call = threading.local()


class _DropDuringCalls(logging.Filter):
    """Drops the tracebacks that pymilvus logs for calls whose errors we raise ourselves."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not getattr(_our_call, "active", False)


_filter = _DropDuringCalls()


@contextmanager
def _quiet_pymilvus() -> Iterator[None]:
    for name in ("pymilvus.decorators", "pymilvus.milvus_client.milvus_client", "pymilvus.client.connection_manager"):
        logging.getLogger(name).addFilter(_filter)  # once: a second time changes nothing
    _our_call.active = True
    try:
        yield
    finally:
        _our_call.active = False


def _leave_lite_to_parent() -> None:
    """Let a forked child, which uses its parent's server of Milvus Lite, not stop it and write its file at the end."""
    if "milvus_lite.server_manager" in sys.modules:
        atexit.unregister(sys.modules["milvus_lite.server_manager"].server_manager_instance.release_all)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_lite_to_parent)
