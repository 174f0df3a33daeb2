"""``examples/fastapi_service.py`` with a heartbeat that measures how long its event loop stands still.

Each worker process writes two numbers to ``$LDOT_TEST_STANDSTILL/PID``: the seconds of the longest standstill since its
first request, and those of the longest one without the time in which the machine had no core for the loop's thread.
With ``$LDOT_TEST_NO_SEARCH``, each query is answered after 10 ms without a search: what the web framework alone needs.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path

BEAT = 0.005
_file = Path(os.environ["LDOT_TEST_STANDSTILL"]) / str(os.getpid())
_tasks: set[asyncio.Task[None]] = set()


async def app(scope, receive, send):
    from fastapi_service import app as service  # uvicorn's parent process needs neither service nor model

    if scope["type"] == "http" and not _tasks:
        _tasks.add(asyncio.create_task(heartbeat(_file)))
        if os.environ.get("LDOT_TEST_NO_SEARCH"):
            service.state.retriever = NoSearch()
    await service(scope, receive, send)


class NoSearch:
    async def asearch(self, text, **_):
        await asyncio.sleep(0.01)
        return []


async def heartbeat(file: Path) -> None:
    longest = longest_own = 0.0
    while True:
        file.write_text(f"{longest:.4f} {longest_own:.4f}")
        late = own = 0.0
        while late <= longest and own <= longest_own:
            before, waited = time.monotonic(), _without_core()
            await asyncio.sleep(BEAT)
            late = time.monotonic() - before - BEAT
            own = late - (_without_core() - waited)
        longest, longest_own = max(late, longest), max(own, longest_own)


def _without_core() -> float:
    """Return the seconds in which this thread was ready to run and no core was free (Linux, proc(5))."""
    try:
        text = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat").read_text()
    except FileNotFoundError:
        return 0.0
    return int(text.split()[1]) / 1e9


if __name__ == "__main__":  # how late the machine wakes a process that does nothing else
    asyncio.run(heartbeat(_file))
