"""Late import of FAISS, and its GPUs and threads after a fork."""

from __future__ import annotations

import os
import sys
from functools import cache
from typing import Any

from ldot_milvus.errors import StoreError
from ldot_milvus.forks import computation

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


def _after_in_child() -> None:
    global _forked
    if "faiss" in sys.modules:
        _forked = True
        if not computation.has_openmp:  # a search with more threads would hang
            sys.modules["faiss"].omp_set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_in_child)
