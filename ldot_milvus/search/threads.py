"""The threads that search for an event loop.

They are few: each of them may keep the interpreter's lock from the event loop for 5 ms at a time. Further searches wait
in a queue, from which a cancelled one is removed.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any, TypeVar

from ldot_milvus.forks import cores

T = TypeVar("T")

LEAST, MOST = 2, 4
"""Limits of the number of threads; between them, as many as the machine has cores."""


async def in_search_thread(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call a function in one of the threads, with the caller's context variables, and return its result."""
    call = partial(contextvars.copy_context().run, function, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(_threads(os.getpid()), call)


def search_threads() -> int:
    """Return how many threads of a process search at once."""
    return min(max(LEAST, cores()), MOST)


@lru_cache(maxsize=1)  # threads do not exist in a forked child, which needs its own
def _threads(process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(search_threads(), "ldot-search")
