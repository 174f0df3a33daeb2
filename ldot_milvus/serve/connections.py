"""Connections with the limits that uvicorn lacks: on idle ones, and on clients that send or read too slowly."""

from __future__ import annotations

import asyncio
import sys

from uvicorn.protocols.http.h11_impl import H11Protocol

MOST = 512
"""Connections at once; one more takes the place of the one that has been idle for longest."""

SECONDS = 5.0
"""How long a connection may make no progress: a request's head that is incomplete, or an answer that is not read."""

LEAST_BYTES = 16 * 2**10
"""What counts as progress of a client that reads, within :data:`SECONDS`."""


class BoundedConnection(H11Protocol):
    """An HTTP/1.1 connection. A request that is being answered has no limit; its body has those of ``BodyLimits``."""

    _timer: asyncio.TimerHandle | None = None
    _resumed = False  # whether the client has read since the last look
    _unread = 0  # bytes at the last look
    _requests = _looked = 0  # requests so far, and at the last look

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to watch the connection, and close another one if there are too many."""
        super().connection_made(transport)
        self._opened = self.loop.time()
        self._timer = self.loop.call_later(SECONDS, self._look)
        if len(self.connections) > most():
            idle = [one for one in self.connections if isinstance(one, BoundedConnection) and one._is_idle()]
            min(idle, key=lambda one: one._opened).transport.abort()  # at least this one is idle

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop watching."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Note that the connection was of use."""
        self._requests += 1
        self._opened = self.loop.time()
        super().on_response_complete()

    def resume_writing(self) -> None:
        """Note that the client reads."""
        self._resumed = True
        super().resume_writing()

    def _is_idle(self) -> bool:
        return self.cycle is None or bool(self.cycle.response_complete)

    def _look(self) -> None:
        unread = self.transport.get_write_buffer_size()
        if unread:
            stuck = 0 < self._unread < unread + LEAST_BYTES and not self._resumed
        else:
            stuck = self._is_idle() and self._requests == self._looked
        if stuck:
            self.transport.abort()
            return
        self._unread, self._resumed, self._looked = unread, False, self._requests
        self._timer = self.loop.call_later(SECONDS, self._look)


def most() -> int:
    """Return the number of connections for which there are file descriptors, at most :data:`MOST`."""
    if sys.platform == "win32":
        return MOST
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if soft == resource.RLIM_INFINITY else max(16, min(MOST, soft // 2))
