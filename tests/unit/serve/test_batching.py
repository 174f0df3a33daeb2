"""Batches of a service: who waits for whom, what leaves the queue, and what is refused."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from ldot_milvus.errors import UsageError

pytest.importorskip("fastapi", reason="fastapi is in the extra serve")

from ldot_milvus.serve.answers import Refused
from ldot_milvus.serve.batching import Batches


class Computation:
    """Computes batches when it may, and remembers them."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.may = threading.Event()
        self.begun = threading.Semaphore(0)

    def __call__(self, requests: Sequence[int], waited: Sequence[float]) -> list[int | Exception]:
        assert len(requests) == len(waited)
        assert min(waited) >= 0
        self.batches.append(list(requests))
        self.begun.release()
        assert self.may.wait(20)
        return [UsageError(f"{request} is negative") if request < 0 else 10 * request for request in requests]

    async def wait_begun(self) -> None:
        assert await asyncio.to_thread(self.begun.acquire, timeout=20)


@pytest.fixture
def computation() -> Computation:
    return Computation()


def batches(computation: Computation, threads: int = 1, size: int = 4, limit: int = 8) -> Batches[int, int]:
    return Batches(computation, threads=threads, size=size, limit=limit, name="test")


async def test_the_first_starts_at_once_and_the_others_collect(computation: Computation) -> None:
    queue = batches(computation)
    first = asyncio.ensure_future(queue.submit(1))
    await computation.wait_begun()
    others = [asyncio.ensure_future(queue.submit(number)) for number in range(2, 8)]
    await asyncio.sleep(0)
    assert len(queue) == 6
    computation.may.set()
    assert await asyncio.gather(first, *others) == [10, 20, 30, 40, 50, 60, 70]
    assert computation.batches == [[1], [2, 3, 4, 5], [6, 7]]
    queue.close()


async def test_idle_threads_share_what_waits(computation: Computation) -> None:
    computation.may.set()
    queue = batches(computation, threads=2, size=16, limit=100)
    answers = await asyncio.gather(*(queue.submit(number) for number in range(21)))
    assert answers == [10 * number for number in range(21)]
    assert computation.batches[0] == [0]
    assert sorted(number for batch in computation.batches for number in batch) == list(range(21))
    assert max(map(len, computation.batches)) <= 16
    queue.close()


async def test_an_error_is_that_of_its_request(computation: Computation) -> None:
    computation.may.set()
    queue = batches(computation)
    answers = await asyncio.gather(*(queue.submit(number) for number in (1, -2, 3, -4)), return_exceptions=True)
    assert [str(answer) for answer in answers] == ["10", "-2 is negative", "30", "-4 is negative"]
    queue.close()


async def test_a_full_queue_refuses_and_recovers(computation: Computation) -> None:
    queue = batches(computation, limit=3)
    running = asyncio.ensure_future(queue.submit(1))
    await computation.wait_begun()
    waiting = [asyncio.ensure_future(queue.submit(number)) for number in (2, 3, 4)]
    await asyncio.sleep(0)
    with pytest.raises(Refused) as refused:
        await queue.submit(5)
    assert refused.value.status == 429
    assert refused.value.headers == {"Retry-After": "1"}
    computation.may.set()
    assert await asyncio.gather(running, *waiting) == [10, 20, 30, 40]
    assert await queue.submit(6) == 60
    queue.close()


async def test_a_cancelled_request_leaves_the_queue(computation: Computation) -> None:
    queue = batches(computation, limit=2)
    running = asyncio.ensure_future(queue.submit(1))
    await computation.wait_begun()
    given_up, kept = (asyncio.ensure_future(queue.submit(number)) for number in (2, 3))
    await asyncio.sleep(0)
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    assert len(queue) == 1
    running.cancel()  # computes, and its answer is for nobody
    computation.may.set()
    assert await kept == 30
    assert computation.batches == [[1], [3]]
    queue.close()
