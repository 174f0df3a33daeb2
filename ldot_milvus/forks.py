"""Locks and native computation that work in a forked child.

A forked child has one thread: the one that forked. A lock that another thread held stays locked in the child for ever,
and so does a native library in which another thread was working. A pool of OpenMP threads waits for threads that the
child does not have. Hence a fork waits for running computations and ends the forking thread's OpenMP threads; both
processes start them again when they need them.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import weakref
from contextlib import ContextDecorator
from typing import TYPE_CHECKING, Any

from ldot_milvus.errors import UsageError

if TYPE_CHECKING:
    from types import TracebackType

FORK_SECONDS = 30.0
"""How long a fork waits for running computations."""

LEAST_TURNS = 2
"""Number of threads that may compute at once on any machine, so that a search need not wait for an ingestion."""

_PAUSE_HARD = 2  # omp_pause_hard of OpenMP 5.0


class Lock:
    """A lock for one thread at a time, which is free in a forked child.

    What it protects must be usable if its holder is interrupted at any moment.

    Args:
        reentrant: whether its holder may enter it again.
    """

    def __init__(self, *, reentrant: bool = False) -> None:
        self._new = threading.RLock if reentrant else threading.Lock
        self._lock: Any = self._new()
        self._holder: int | None = None
        self._depth = 0
        _locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()
        self._holder = threading.get_ident()
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if not self._depth:
            self._holder = None
        self._lock.release()

    def after_in_child(self) -> None:
        """Release the lock if its holder does not exist in this process."""
        if self._holder != threading.get_ident():
            self._lock, self._holder, self._depth = self._new(), None, 0


_locks: weakref.WeakSet[Lock] = weakref.WeakSet()


class _OfThread(threading.local):
    """What a thread knows of itself."""

    depth = 0  # of nested computations
    waited_in_vain = False  # whether others still computed when it forked
    paused = True  # whether it had no OpenMP threads when it forked


class Computation(ContextDecorator):
    """Bounds the number of threads that compute, and makes forks wait for them; a decorator and a context manager.

    Every pass through a network and every call of a tokenizer is a computation. More threads than cores would slow each
    other down, and would keep the interpreter's lock from an event loop. A computation must not wait for a lock that a
    thread holds while it waits for its turn.

    Raises:
        UsageError: this process was forked in a way after which it cannot compute.
    """

    def __init__(self) -> None:
        self._own = _OfThread()
        self._forks = 0
        self._running = 0
        self._interrupted = False
        self._paused: bool | None = None  # None: this process is no child, or has computed
        self._new_lock()

    def _new_lock(self) -> None:
        lock = threading.Lock()
        self._turn, self._idle = threading.Condition(lock), threading.Condition(lock)

    def __enter__(self) -> None:
        if not self._own.depth:
            with self._turn:
                if self._interrupted:
                    raise UsageError(
                        "this process was forked while another thread used a model, and cannot use one: fork before "
                        "threads use a model, or start the process with multiprocessing's 'spawn'"
                    )
                self._turn.wait_for(lambda: not self._forks and self._running < _turns())
                if self._paused is not None:
                    # Before several threads compute: torch renews its other pool at the first use, without a lock.
                    _renew_torch(threads=None if self._paused else 1)
                    self._paused = None
                self._running += 1
        self._own.depth += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._own.depth -= 1
        if not self._own.depth:
            with self._turn:
                self._running -= 1
                self._turn.notify()
                self._idle.notify_all()
        if isinstance(error, RuntimeError) and "forked subprocess" in str(error):  # torch's words for CUDA
            raise UsageError(
                "the GPU was used before this process was forked, and cannot be used in it: load the model after the "
                "fork (gunicorn without --preload), start the process with multiprocessing's 'spawn', or set "
                "LDOT_DEVICE=cpu"
            ) from error

    def before(self) -> None:
        """Let no thread begin to compute, and wait for those that compute."""
        own = 1 if self._own.depth else 0
        with self._idle:
            self._forks += 1
            self._own.waited_in_vain = not self._idle.wait_for(lambda: self._running <= own, FORK_SECONDS)
        self._own.paused = _pause_openmp()

    def after_in_parent(self) -> None:
        """Let threads compute again."""
        with self._turn:
            self._forks -= 1
            self._turn.notify_all()

    def after_in_child(self) -> None:
        """Forget the other threads."""
        self._new_lock()
        self._forks, self._running = 0, 1 if self._own.depth else 0
        self._interrupted |= self._own.waited_in_vain
        self._paused = self._own.paused

    @property
    def has_openmp(self) -> bool:
        """Whether OpenMP can start threads in this process; False in some forked children."""
        return self._own.paused


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def compute_threads() -> int:
    """Return how many threads one call may compute with: ``OMP_NUM_THREADS``, or as many as there are cores."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return min(int(given), cores()) if given.isdecimal() and int(given) else cores()


def _turns() -> int:
    """Return how many threads may compute at once: as many as keep every core busy with torch's own threads."""
    torch = _torch()
    return max(LEAST_TURNS, cores() // (torch.get_num_threads() if torch else 1))


def _torch() -> Any:
    """Return torch if it is imported; None also while another thread imports it."""
    torch: Any = sys.modules.get("torch")
    return torch if hasattr(torch, "get_num_threads") else None


def _renew_torch(threads: int | None) -> None:
    """Set the number of torch's threads in a forked child; None keeps it."""
    torch = _torch()
    if torch is not None:
        torch.set_num_threads(threads or torch.get_num_threads())


def _pause_openmp() -> bool:
    """End the OpenMP threads that this thread has started, so that a forked child does not rely on them.

    GNU's library needs this; torch and FAISS each contain a copy of it. LLVM's and Intel's notice a fork themselves.

    Returns:
        Whether there are none now.
    """
    if not {"torch", "faiss"} & sys.modules.keys():
        return True
    if sys.platform != "linux":
        return False
    with open("/proc/self/maps") as file:
        files = {line.split(maxsplit=5)[-1].rstrip("\n") for line in file if "libgomp" in line}
    try:
        return all(ctypes.CDLL(path, mode=os.RTLD_NOLOAD).omp_pause_resource_all(_PAUSE_HARD) == 0 for path in files)
    except (OSError, AttributeError):  # before GCC 9
        return False


computation = Computation()
"""The computations of this process."""


def _after_in_child() -> None:
    for lock in list(_locks):
        lock.after_in_child()
    computation.after_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=computation.before, after_in_parent=computation.after_in_parent, after_in_child=_after_in_child
    )
