"""What was made or used before a fork works in the child, or says in one line what to do; nothing hangs."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ldot_milvus import forks
from ldot_milvus.errors import UsageError
from ldot_milvus.forks import Computation, Lock, computation
from ldot_milvus.ingest.ingestor import Ingestor
from ldot_milvus.sources import expand
from ldot_milvus.stores import open_store
from tests.conftest import PHOTOS, ROOT

SECONDS = 120

PRELUDE = """
import multiprocessing, os, sys, threading, time
from multiprocessing import TimeoutError

def in_children(*calls):
    '''Return what each call returns in a child of its own; a child that hangs is killed, and fails the test.'''
    context = multiprocessing.get_context("fork")
    pairs = [context.Pipe(duplex=False) for _ in calls]
    targets = [lambda call=call, end=end: end.send(call()) for call, (_, end) in zip(calls, pairs)]
    children = [context.Process(target=target) for target in targets]
    for child in children:
        child.start()
    try:
        return [start.recv() if start.poll(90) else "hangs" for start, _ in pairs]
    finally:
        for child in children:
            child.join(20)
            if child.is_alive():
                print("a child does not end", flush=True)
                child.kill()
"""


def script(code: str, *arguments: str, **env: str) -> str:
    """Run a script with two OpenMP threads; return its output."""
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": paths, **env},
        capture_output=True, text=True, timeout=SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def store(tmp_path: Path, tiny_model: str) -> str:
    """Address of a collection with a few photos."""
    address = f"faiss:{tmp_path / 'store'}"
    with open_store(address) as opened:
        Ingestor(opened, tiny_model).ingest(
            list(expand([str(PHOTOS / "00000056*.jpg"), str(PHOTOS / "00000022*.jpg")]))
        )
    return address


RETRIEVER = """
import torch
from ldot_milvus import LightningDOTEmbedder, Retriever, open_store
address, model, photo = sys.argv[1:4]
retriever = Retriever(LightningDOTEmbedder(model, device="cpu"), open_store(address))

def use():
    by_text = [hit.id for hit in retriever.search("a bus", k=3)]  # re-ranked
    by_photo = [hit.id for hit in retriever.search(image=photo, k=3)]
    # Enough work for all OpenMP threads, of torch and of FAISS.
    torch.nn.functional.gelu(torch.zeros(2000, 768))
    retriever.store.search(retriever.embedder.encode_texts(["a bus", "a bear"] * 50), 3)
    return by_text, by_photo

def use_in_threads():
    results = []
    threads = [threading.Thread(target=lambda: results.append(use())) for _ in range(3)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert len(results) == 3
    return results[0] if all(result == results[0] for result in results) else results
"""


def test_a_used_retriever_works_in_children_and_in_the_parent(store: str, tiny_model: str) -> None:
    code = """
expected = use()
started = len(os.listdir("/proc/self/task")) if sys.platform == "linux" else 2
assert started > 1, "OpenMP started no thread: the test shows nothing"
print(in_children(use, use_in_threads, lambda: in_grandchild()) == [expected] * 3, use() == expected)
print(in_children(torch.get_num_threads))
"""
    grandchild = "\ndef in_grandchild():\n    return in_children(use)[0]\n"
    photo = str(PHOTOS / "000000568290.jpg")
    output = script(RETRIEVER + grandchild + code, store, tiny_model, photo)
    assert output.splitlines()[0] == "True True"
    if sys.platform == "linux":
        assert output.splitlines()[1] == "[2]"  # as in the parent


@pytest.mark.slow
def test_a_retriever_that_threads_use_during_the_fork(store: str, tiny_model: str) -> None:
    code = """
expected, stop = use(), False

def work():
    while not stop:
        use()

threads = [threading.Thread(target=work, daemon=True) for _ in range(3)]
for thread in threads: thread.start()
print([in_children(use)[0] == expected for _ in range(5)])
stop = True
for thread in threads: thread.join()
"""
    output = script(RETRIEVER + code, store, tiny_model, str(PHOTOS / "000000568290.jpg"))
    assert output == str([True] * 5)


@pytest.mark.slow
def test_one_thread_where_openmp_cannot_be_paused(store: str, tiny_model: str) -> None:
    """As with GNU's library before GCC 9, or where another program forks in C."""
    code = """
from ldot_milvus import forks
forks._pause_openmp = lambda: False
expected = use()
print(in_children(use, use_in_threads) == [expected] * 2, in_children(lambda: (use(), torch.get_num_threads())[1]))
"""
    output = script(RETRIEVER + code, store, tiny_model, str(PHOTOS / "000000568290.jpg"))
    assert output == "True [1]"


def test_an_asynchronous_search_works_in_a_child(store: str, tiny_model: str) -> None:
    code = """
import asyncio
ask = lambda: [hit.id for hit in asyncio.run(retriever.asearch("a bus", k=3))]
expected = ask()
print(in_children(ask, ask) == [expected] * 2)
"""
    assert script(RETRIEVER + code, store, tiny_model, "") == "True"


def test_a_region_store_on_s3_works_in_a_child(bucket: str) -> None:
    code = """
import numpy as np
from ldot_milvus.stores.regions import RegionStore
store = RegionStore(f"s3://{sys.argv[1]}/regions", "a" * 32)
store.put({"parent": {"features": np.ones((2, 3), np.float16)}})

def use():
    store.put({str(os.getpid()): {"features": np.ones((2, 3), np.float16)}})
    return sorted(store.get(["parent", str(os.getpid()), "none"])) == sorted(["parent", str(os.getpid())])

print(use(), in_children(use, use), use())
"""
    assert script(code, bucket) == "True [True, True] True"


def test_milvus_lite_that_the_parent_opened(tmp_path: Path) -> None:
    """A child uses its parent's server, and leaves it running and its file alone at its end."""
    code = """
import numpy as np
from ldot_milvus.stores import Record, open_store
store = open_store(sys.argv[1], "photos")
store.bind("model-a", 8)
store.upsert([Record("parent", np.ones(8, np.float32))])

def use():
    store.upsert([Record("child", np.ones(8, np.float32))])
    return store.count()

child = os.fork()
if child == 0:
    print(use(), flush=True)
    sys.exit()  # runs what is registered with atexit, as in a worker of gunicorn
deadline = time.monotonic() + 60
while not (ended := os.waitpid(child, os.WNOHANG))[0]:
    assert time.monotonic() < deadline, "the child hangs"
    time.sleep(0.05)
print(ended[1], store.count())
"""
    assert script(code, str(tmp_path / "x.db")).split() == ["2", "0", "2"]


def test_an_lmdb_of_region_features_works_in_a_child(tmp_path: Path) -> None:
    pytest.importorskip("lmdb", reason="lmdb is not installed")
    code = """
import numpy as np
from pathlib import Path
from ldot_milvus.regions import Regions
from ldot_milvus.regions.files import LmdbRegions, write_lmdb
folder = Path(sys.argv[1])
boxes = np.tile(np.array([0, 0, 1, 1, 1, 1, 1], np.float32), (2, 1))
write_lmdb(folder, [("a", Regions(np.ones((2, 4), np.float32), boxes, np.ones(2, np.float32)))])
file = LmdbRegions(folder)
use = lambda: file.read("a").features.shape
print(use() == (2, 4), in_children(use, use) == [(2, 4)] * 2)
"""
    assert script(code, str(tmp_path / "lmdb")) == "True True"


# ---- the parts


def in_child(call: Callable[[], bool], seconds: float = 20) -> str:
    """Fork while this process has other threads; return "True", "False", the child's error, or "hangs"."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, str(call()).encode())
        except BaseException as error:
            os.write(write, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(write)
    deadline = time.monotonic() + seconds
    while not os.waitpid(child, os.WNOHANG)[0]:
        if time.monotonic() > deadline:
            os.kill(child, 9)
            os.waitpid(child, 0)
            os.close(read)
            return "hangs"
        time.sleep(0.01)
    with os.fdopen(read) as pipe:
        return pipe.read()


def held(lock: Lock | Computation) -> tuple[threading.Event, threading.Thread]:
    """Hold a lock in another thread until the event is set."""
    taken, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            taken.set()
            let_go.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert taken.wait(10)
    return let_go, thread


def take(lock: Lock | Computation) -> bool:
    with lock:
        return True


def test_a_lock_that_another_thread_holds_is_free_in_the_child() -> None:
    lock = Lock()
    let_go, thread = held(lock)
    assert in_child(lambda: take(lock)) == "True"
    let_go.set()
    thread.join()
    assert take(lock)


def test_a_lock_that_the_forking_thread_holds_is_held_in_both_processes() -> None:
    lock = Lock()

    def others_wait() -> bool:
        got = threading.Event()
        thread = threading.Thread(target=lambda: (take(lock), got.set()), daemon=True)
        thread.start()
        waits = not got.wait(0.2)
        lock.__exit__()
        return waits and got.wait(5)

    with lock:
        assert in_child(others_wait) == "True"
    assert take(lock)


def test_a_fork_waits_for_a_computation() -> None:
    let_go, thread = held(computation)
    threading.Timer(0.5, let_go.set).start()
    started = time.monotonic()
    assert in_child(lambda: take(computation)) == "True"
    assert time.monotonic() - started > 0.4
    thread.join()
    assert take(computation)


def test_a_fork_in_the_middle_of_a_computation_is_told_in_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "FORK_SECONDS", 0.2)
    let_go, thread = held(computation)
    message = in_child(lambda: take(computation))
    assert message.startswith("UsageError: this process was forked while another thread used a model")
    assert "'spawn'" in message
    assert len(message.splitlines()) == 1
    let_go.set()
    thread.join()
    assert take(computation)
    assert in_child(lambda: take(computation)) == "True"


def test_computations_are_bounded_and_may_be_nested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "_turns", lambda: 3)
    running, most, lock = 0, 0, threading.Lock()

    def compute() -> None:
        nonlocal running, most
        for _ in range(5):
            with computation:
                with lock:
                    running += 1
                    most = max(most, running)
                with computation:
                    time.sleep(0.002)
                with lock:
                    running -= 1

    threads = [threading.Thread(target=compute) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (running, most) == (0, 3)


def test_a_gpu_that_the_parent_used_is_told() -> None:
    with pytest.raises(UsageError, match=r"GPU was used before this process was forked.*'spawn'"), computation:
        # torch.cuda._lazy_init, which no machine without a GPU reaches
        raise RuntimeError(
            "Cannot re-initialize CUDA in forked subprocess. To use CUDA with multiprocessing, you must use the "
            "'spawn' start method"
        )
    assert take(computation)
