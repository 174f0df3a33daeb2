"""Memory and disk by photos, width and index: the formulas behind docs/sizing.md, and the table in it.

    python benchmarks/sizing.py

``tests/integration/test_sizing.py`` holds the local figures to what is measured. Milvus's own sizing tool
(https://milvus.io/tools/sizing) has the same terms for a server.
"""

from __future__ import annotations

from collections.abc import Callable

PAGE = 4096  # of SQLite
ROW = 420  # a row's other fields and its keys in SQLite: an id of 64 letters thrice, a path and a caption of 60 each
BOXES = 49 * 7 * 4 + 49 * 2 + 300  # boxes, confidences and the header of a file of 49 regions
FILE_BLOCK = 4096  # a file takes whole blocks
SERVER = 1.2  # what a Milvus node needs over its data, for queries and for rows that are not yet indexed
WRITTEN = 2.2  # times a vector lies on a server's disk: the log, the segment and its index, before compaction


def sqlite_row(dim: int) -> int:
    """Bytes of one photo in store.sqlite: whole vectors on pages of 4,096 bytes, and the other fields."""
    payload = 4 * dim + 5
    local = payload
    if payload > PAGE - 35:  # too large for a page: a part of it stays, the rest has pages of its own (fileformat2)
        rest = 489 + (payload - 489) % (PAGE - 4)
        local = rest if rest <= PAGE - 35 else 489
    overflow = -(-(payload - local) // (PAGE - 4))
    return PAGE // ((PAGE - 8) // (local + 10)) + overflow * PAGE + ROW


def regions(dim: int, number: int = 49) -> int:
    """Bytes of one photo in the region store: float16 features in the space of the vectors, as ldot-mini keeps."""
    return -(-(number * dim * 2 + BOXES) // FILE_BLOCK) * FILE_BLOCK


def index_row(kind: str, dim: int, links: int = 32) -> float:
    """Bytes of one photo in memory. ``links`` is HNSW's M: twice as many at the bottom, and a few above."""
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
    """Bytes as a person reads them."""
    for unit in ("B", "KB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


def table() -> str:
    """The table of docs/sizing.md: a million photos."""
    million = 1_000_000
    rows = [("width of a vector", "386 (ldot-mini)", "768 (LightningDOT)")]
    what: dict[str, Callable[[int], float]] = {
        "`store.sqlite` of a local store": sqlite_row,
        "region store": lambda dim: regions(384) if dim == 386 else 36 * 2048 * 2 + BOXES,
        "memory of a local process, `FLAT`": lambda dim: index_row("FLAT", dim),
        "memory of a local process, `HNSW`": lambda dim: index_row("HNSW", dim),
        "memory of a Milvus server, `FLAT`": lambda dim: SERVER * (index_row("FLAT", dim) + ROW),
        "memory of a Milvus server, `HNSW`": lambda dim: SERVER * (index_row("HNSW", dim) + ROW),
        "memory of a Milvus server, `IVF_SQ8`": lambda dim: SERVER * (index_row("IVF_SQ8", dim) + ROW),
        "disk of a Milvus server": lambda dim: WRITTEN * (4 * dim + ROW),
        "GPU memory, `GPU_BRUTE_FORCE`": lambda dim: index_row("GPU_BRUTE_FORCE", dim),
        "GPU memory, `GPU_CAGRA`": lambda dim: index_row("GPU_CAGRA", dim),
    }
    rows += [(name, *(size(million * of(dim)) for dim in (386, 768))) for name, of in what.items()]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---|---:|---:|", *lines[1:]])


if __name__ == "__main__":
    print(table())
