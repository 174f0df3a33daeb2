"""Values that are made once for many threads."""

from __future__ import annotations

import gc
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ldot_milvus.models.background import in_background
from ldot_milvus.search.shared import Shared


def test_many_threads_make_one_value_of_a_key() -> None:
    shared: Shared[str] = Shared(4)
    made: list[int] = []
    together = threading.Barrier(16)

    def ask(number: int) -> str:
        together.wait()
        key = number % 2

        def make() -> str:
            made.append(key)
            time.sleep(0.05)
            return f"value {key}"

        return shared.get(key, make)

    with ThreadPoolExecutor(16) as threads:
        values = list(threads.map(ask, range(16)))
    assert values == ["value 0", "value 1"] * 8
    assert sorted(made) == [0, 1]


def test_a_slow_value_holds_up_no_other_key() -> None:
    shared: Shared[str] = Shared(4)
    release = threading.Event()
    with ThreadPoolExecutor(1) as thread:
        slow = thread.submit(shared.get, "slow", lambda: "slow" if release.wait(30) else "never")
        assert shared.get("quick", lambda: "quick") == "quick"
        release.set()
        assert slow.result() == "slow"


def test_a_failure_is_not_kept() -> None:
    shared: Shared[str] = Shared(4)
    with pytest.raises(ZeroDivisionError):
        shared.get("key", lambda: str(1 / 0))
    assert shared.get("key", lambda: "made") == "made"


def test_the_value_unused_for_longest_goes_first() -> None:
    shared: Shared[int] = Shared(2)
    for key in (1, 2, 1, 3):
        shared.get(key, lambda key=key: key)
    assert shared.get(1, lambda: -1) == 1
    assert shared.get(2, lambda: -2) == -2


def test_a_fork_while_a_value_is_made_leaves_no_lock_behind() -> None:
    shared: Shared[str] = Shared(4)
    started, release = threading.Event(), threading.Event()

    def make() -> str:
        started.set()
        release.wait(30)
        return "parent's"

    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(shared.get, "key", make)
        started.wait(30)
        child = os.fork()
        if child == 0:
            os._exit(0 if shared.get("key", lambda: "child's") == "child's" else 1)
        release.set()
        assert waiting.result() == "parent's"
    for _ in range(1000):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        time.sleep(0.01)
    else:
        os.kill(child, 9)
        pytest.fail("the child waits for a lock of its parent")
    assert status == 0


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_as_before_after_nested_loads(enabled: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with in_background():
            assert not gc.isenabled()
            with pytest.raises(ValueError, match="load"), in_background():
                raise ValueError("load")
            assert not gc.isenabled()
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()


def test_one_thread_loads_at_a_time() -> None:
    inside, most = 0, 0

    def load(_: int) -> None:
        nonlocal inside, most
        with in_background():
            inside += 1
            most = max(most, inside)
            time.sleep(0.02)
            inside -= 1

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(load, range(4)))
    assert most == 1


def test_what_a_program_froze_stays_frozen() -> None:
    gc.freeze()
    try:
        with in_background():
            pass
        assert gc.get_freeze_count()
    finally:
        gc.unfreeze()
