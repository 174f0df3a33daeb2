"""Collect searches that wait, and run them together in a few threads.

A search that arrives while nothing runs starts at once. While a batch computes, those that arrive form the next one.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from ldot_milvus.serve.answers import Refused

T = TypeVar("T")
R = TypeVar("R")

COLLECT_SECONDS = 0.003
"""How long the first of a batch waits for others while another batch computes."""


@dataclass(eq=False)
class _Waiting(Generic[T]):
    request: T
    answer: asyncio.Future[Any]
    since: float = field(default_factory=time.perf_counter)


class Batches(Generic[T, R]):
    """Runs requests in batches. All methods are called in the event loop.

    Args:
        run: computes a batch in a thread: takes the requests and their seconds in the queue, and returns an answer or
            an error for each.
        threads: number of batches that compute at once.
        size: largest number of requests in a batch.
        limit: largest number of requests that wait.
        name: name of the threads.
    """

    def __init__(
        self,
        run: Callable[[Sequence[T], Sequence[float]], Sequence[R | Exception]],
        *,
        threads: int,
        size: int,
        limit: int,
        name: str,
    ) -> None:
        self._run, self._threads, self._size, self._limit = run, threads, size, limit
        self._executor = ThreadPoolExecutor(threads, name)
        self._queue: deque[_Waiting[T]] = deque()
        self._busy = 0
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Return the number of requests that wait."""
        return len(self._queue)

    async def submit(self, request: T) -> R:
        """Return the answer to a request. A request that is cancelled while it waits leaves the queue.

        Raises:
            Refused: the queue is full; the status is 429.
            Exception: the error of this request.
        """
        if len(self._queue) >= self._limit:
            raise Refused(
                429, "queue_full", f"{self._limit} searches wait already: repeat the request", {"Retry-After": "1"}
            )
        waiting = _Waiting(request, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        self._start()
        try:
            answer: R | Exception = await waiting.answer
        except asyncio.CancelledError:
            if waiting in self._queue:
                self._queue.remove(waiting)
            raise
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        """Wait for the batches that compute."""
        self._executor.shutdown()

    def _start(self) -> None:
        """Give waiting requests to idle threads, or wait a moment for more of them."""
        if not self._queue or self._busy == self._threads or self._timer is not None:
            return
        loop = asyncio.get_running_loop()
        due = self._queue[0].since + COLLECT_SECONDS - time.perf_counter()
        if self._busy and len(self._queue) < self._size and due > 0:
            self._timer = loop.call_later(due, self._due)
            return
        self._begin(loop)
        self._start()

    def _due(self) -> None:
        self._timer = None
        self._start()

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        idle = self._threads - self._busy
        share = -(-len(self._queue) // idle)  # rounded up
        batch = [self._queue.popleft() for _ in range(min(self._size, share))]
        self._busy += 1
        began = time.perf_counter()
        call = loop.run_in_executor(
            self._executor, self._run, [one.request for one in batch], [began - one.since for one in batch]
        )
        call.add_done_callback(lambda done: self._finish(batch, done))

    def _finish(self, batch: Sequence[_Waiting[T]], done: asyncio.Future[Sequence[R | Exception]]) -> None:
        self._busy -= 1
        error = done.exception()
        for number, one in enumerate(batch):
            if one.answer.cancelled():
                continue
            if error is not None:
                one.answer.set_exception(error)
            else:
                one.answer.set_result(done.result()[number])
        self._start()
