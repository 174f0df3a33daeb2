"""``ldot mcp`` with an injected fault: ``python -m tests.faulty_mcp FAULT [OPTIONS]``.

``noisy``: each search writes to stdout, as libraries and their C code do. ``slow``: a search takes a minute, which
nothing can interrupt. ``loading``: loading the model takes a minute. Each fault writes a line to stderr when it occurs.
"""

from __future__ import annotations

import os
import sys
import time

from ldot_milvus.cli import main
from ldot_milvus.integrations import common
from ldot_milvus.search.retriever import Retriever

search, load = Retriever.search, common.load_embedder


def noisy(*arguments, **options):
    print("printed by a library", flush=True)
    os.write(1, b"written by C code\n")
    return search(*arguments, **options)


def slow(*arguments, **options):
    print("searching", file=sys.stderr, flush=True)
    time.sleep(60)


def loading(*arguments, **options):
    print("loading", file=sys.stderr, flush=True)
    time.sleep(60)


if __name__ == "__main__":
    fault, *options = sys.argv[1:]
    if fault == "loading":
        common.load_embedder = loading
    else:
        Retriever.search = {"noisy": noisy, "slow": slow}[fault]
    main(["mcp", *options])
