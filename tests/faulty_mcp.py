"""``ldot mcp`` with an injected fault: ``python -m tests.faulty_mcp FAULT [OPTIONS]``.

``noisy``: each search writes to stdout, as libraries and their C code do. ``stuck``: loading the model takes a minute,
which nothing can interrupt, and "loading" is written to stderr.
"""

from __future__ import annotations

import os
import sys
import time

from ldot_milvus.cli import main
from ldot_milvus.search import shared
from ldot_milvus.search.retriever import Retriever

search = Retriever.search


def noisy(*arguments, **options):
    print("printed by a library", flush=True)
    os.write(1, b"written by C code\n")
    return search(*arguments, **options)


def stuck(*arguments, **options):
    print("loading", file=sys.stderr, flush=True)
    time.sleep(60)


if __name__ == "__main__":
    fault, *options = sys.argv[1:]
    if fault == "stuck":
        shared.load_embedder = stuck
    else:
        Retriever.search = noisy
    main(["mcp", *options])
