"""Late import of FAISS, its GPUs, and its threads after a fork."""

from __future__ import annotations

import os
import sys
from functools import cache
from typing import Any

from ldot_milvus.errors import StoreError

_forked = False


def gpus() -> int:
    """Return the number of GPUs that FAISS can use in this process; 0 after a fork, which CUDA does not survive."""
    faiss = load_faiss()
    return int(faiss.get_num_gpus()) if hasattr(faiss, "StandardGpuResources") and not _forked else 0


@cache
def resources() -> Any:
    """Return the GPU working memory that all indexes of this process share."""
    return load_faiss().StandardGpuResources()


def load_faiss() -> Any:
    """Import FAISS, which only searches need.

    Raises:
        StoreError: FAISS is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise StoreError(f"searching a local store needs FAISS: pip install faiss-cpu ({error})") from error
    return faiss


def _one_thread_after_fork() -> None:
    # OpenMP threads do not survive a fork, and a child process that relies on them hangs in its first search.
    global _forked
    if "faiss" in sys.modules:
        sys.modules["faiss"].omp_set_num_threads(1)
        _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_one_thread_after_fork)
