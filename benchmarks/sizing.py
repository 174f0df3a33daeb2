"""Print the table of docs/sizing.md: memory and disk by number of photos, vector width and index type.

    python benchmarks/sizing.py

``tests/integration/stores/test_sizing.py`` compares the formulas for the local store with measurements. The formulas
for a server have the terms of Milvus's own sizing tool (https://milvus.io/tools/sizing).
"""

from __future__ import annotations

from collections.abc import Callable

PAGE = 4096  # bytes of a SQLite page
ROW = 420  # bytes of a row's other fields and keys in SQLite: an id of 64 letters thrice, path and caption of 60 each
BOXES = 49 * 7 * 4 + 49 * 2 + 300  # bytes of boxes, confidences and header in a file of 49 regions
FILE_BLOCK = 4096  # bytes; a file occupies whole blocks
SERVER = 1.2  # memory of a Milvus node relative to its data: queries, and rows that are not yet indexed
WRITTEN = 2.2  # copies of a vector on a server's disk: the log, the segment and its index, before compaction


def sqlite_row(dim: int) -> int:
    """Return the bytes of one photo in store.sqlite: its vector on pages of 4,096 bytes, and the other fields."""
    payload = 4 * dim + 5
    local = payload
    if payload > PAGE - 35:  # a larger payload continues on overflow pages (https://sqlite.org/fileformat2.html)
        rest = 489 + (payload - 489) % (PAGE - 4)
        local = rest if rest <= PAGE - 35 else 489
    overflow = -(-(payload - local) // (PAGE - 4))
    return PAGE // ((PAGE - 8) // (local + 10)) + overflow * PAGE + ROW


def regions(dim: int, number: int = 49) -> int:
    """Return the bytes of one photo in the region store, with float16 features (number, dim) as of ldot-mini."""
    return -(-(number * dim * 2 + BOXES) // FILE_BLOCK) * FILE_BLOCK


def index_row(kind: str, dim: int, links: int = 32) -> float:
    """Return the bytes of one photo in memory; ``links`` is HNSW's M, of which the bottom layer has twice as many."""
    vector = 4.0 * dim
    if kind in ("FLAT", "IVF_FLAT", "GPU_BRUTE_FORCE", "GPU_IVF_FLAT"):
        return vector + 8
    if kind == "IVF_SQ8":
        return dim + 8.0
    if kind == "HNSW":
        return vector + 4 * (2 * links + links / (links - 1)) + 16
    if kind == "GPU_CAGRA":
        return vector + 4 * 64  # graph_degree
    raise ValueError(f"no formula for {kind}")


def size(number: float) -> str:
    """Format a number of bytes with its unit."""
    for unit in ("B", "KB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


def table() -> str:
    """Format the table of docs/sizing.md, for a million photos."""
    million = 1_000_000
    rows = [("width of a vector", "512 (ldot-mini)", "768 (LightningDOT)")]
    formulas: dict[str, Callable[[int], float]] = {
        "`store.sqlite` of a local store": sqlite_row,
        "region store": lambda dim: regions(384) if dim == 512 else 36 * 2048 * 2 + BOXES,
        "memory of a local process, `FLAT`": lambda dim: index_row("FLAT", dim),
        "memory of a local process, `HNSW`": lambda dim: index_row("HNSW", dim),
        "memory of a Milvus server, `FLAT`": lambda dim: SERVER * (index_row("FLAT", dim) + ROW),
        "memory of a Milvus server, `HNSW`": lambda dim: SERVER * (index_row("HNSW", dim) + ROW),
        "memory of a Milvus server, `IVF_SQ8`": lambda dim: SERVER * (index_row("IVF_SQ8", dim) + ROW),
        "disk of a Milvus server": lambda dim: WRITTEN * (4 * dim + ROW),
        "GPU memory, `GPU_BRUTE_FORCE`": lambda dim: index_row("GPU_BRUTE_FORCE", dim),
        "GPU memory, `GPU_CAGRA`": lambda dim: index_row("GPU_CAGRA", dim),
    }
    rows += [(name, *(size(million * formula(dim)) for dim in (512, 768))) for name, formula in formulas.items()]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---|---:|---:|", *lines[1:]])


if __name__ == "__main__":
    print(table())
