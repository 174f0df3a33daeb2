"""Loading of a model in a thread, while the process's other threads and its event loop go on.

A thread that imports torch holds Python's lock for about a second while its libraries are linked, and the garbage
collector holds it for half a second at a time while many objects are made. Both stop every other thread.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.util import find_spec
from types import ModuleType

from ldot_milvus.forks import Lock

_TORCH = ("libtorch_global_deps.so", "libtorch_python.so")  # in the order of torch's own import

_loading = Lock(reentrant=True)


@contextmanager
def in_background() -> Iterator[None]:
    """Import and load libraries and models inside this context without stopping other threads for long.

    One thread loads at a time: transformers' progress bars are switched off and on for the whole process.
    """
    with _loading, _linking_torch():
        collecting = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if collecting:
                if not gc.get_freeze_count():
                    # Moves everything to the oldest generation: the next collection would look at all of it at once.
                    gc.freeze()
                    gc.unfreeze()
                gc.enable()


@contextmanager
def _linking_torch() -> Iterator[None]:
    """Link torch's libraries when it is imported; a model that ONNX Runtime runs does not import it."""
    if "torch" in sys.modules or not sys.platform.startswith("linux"):
        yield
        return
    finder = _LinkFirst()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        finder.remove()


class _LinkFirst(MetaPathFinder):
    """Sees the import of torch before it begins, and finds no module."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if fullname == "torch":
            self.remove()  # the search below would come here again
            _link_torch()

    def remove(self) -> None:
        """Take no further part in imports."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)


def _link_torch() -> None:
    """Link torch's libraries before its import does; a function called by ctypes does not hold Python's lock."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return
    dlopen = ctypes.CDLL(None).dlopen
    dlopen.argtypes, dlopen.restype = [ctypes.c_char_p, ctypes.c_int], ctypes.c_void_p
    for name in _TORCH:
        # The result does not matter: the import finds the libraries, or says what is wrong with them.
        dlopen(os.fsencode(os.path.join(os.path.dirname(spec.origin), "lib", name)), os.RTLD_NOW | os.RTLD_LOCAL)
