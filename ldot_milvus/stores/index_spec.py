"""Index types and their parameters (``LDOT_INDEX``), checked before anything is sent to a server.

Names and parameters are those of Milvus (https://milvus.io/docs/index.md, https://milvus.io/docs/gpu-index.md). All
types compare by inner product.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from ldot_milvus.errors import UsageError

AUTO = "AUTO"
FLAGS = ("true", "false")  # Milvus takes them as strings
CAGRA_BUILDERS = ("IVF_PQ", "NN_DESCENT")
GPU_PREFIX = "GPU_"

Value = int | str
Range = tuple[int, int] | tuple[str, ...]

_CELLS = {"nlist": (1, 65536)}
_PROBES = {"nprobe": (1, 65536)}
_CACHED = {"cache_dataset_on_device": FLAGS}

BUILD: dict[str, dict[str, Range]] = {
    "FLAT": {},
    "HNSW": {"M": (2, 2048), "efConstruction": (1, 2**31 - 1)},
    "IVF_FLAT": {**_CELLS},
    "IVF_SQ8": {**_CELLS},
    "GPU_BRUTE_FORCE": {},
    "GPU_CAGRA": {
        "intermediate_graph_degree": (1, 1024), "graph_degree": (1, 1024), "build_algo": CAGRA_BUILDERS,
        "adapt_for_cpu": FLAGS, **_CACHED,
    },
    "GPU_IVF_FLAT": {**_CELLS, **_CACHED},
    "GPU_IVF_PQ": {**_CELLS, "m": (1, 65536), "nbits": (1, 16), **_CACHED},
}  # fmt: skip
"""Build parameters of each type, with a range of whole numbers or the allowed words."""

CPU_TYPES = tuple(name for name in BUILD if not name.startswith(GPU_PREFIX))
GPU_TYPES = tuple(name for name in BUILD if name.startswith(GPU_PREFIX))

SEARCH: dict[str, dict[str, Range]] = {
    "FLAT": {},
    "HNSW": {"ef": (1, 2**31 - 1)},
    "IVF_FLAT": {**_PROBES},
    "IVF_SQ8": {**_PROBES},
    "GPU_BRUTE_FORCE": {},
    "GPU_CAGRA": {"itopk_size": (1, 4096), "search_width": (1, 1024)},
    "GPU_IVF_FLAT": {**_PROBES},
    "GPU_IVF_PQ": {**_PROBES},
}
"""Search parameters of each type."""

DEFAULTS: dict[str, dict[str, Value]] = {
    # Recall of at least 0.98 at 10 for vectors of ldot-mini and of LightningDOT's size: benchmarks/indexes.py.
    "HNSW": {"M": 32, "efConstruction": 200, "ef": 128},
    "IVF_FLAT": {"nlist": 1024, "nprobe": 64},
    "IVF_SQ8": {"nlist": 1024, "nprobe": 64},
    "GPU_CAGRA": {"intermediate_graph_degree": 128, "graph_degree": 64, "itopk_size": 128, "search_width": 4},
    "GPU_IVF_FLAT": {"nlist": 1024, "nprobe": 64},
    "GPU_IVF_PQ": {"nlist": 1024, "m": 0, "nbits": 8, "nprobe": 64},
}

EXACT_UP_TO = 100_000
"""Rows up to which ``auto`` uses exact search without a GPU: for fewer rows a graph saves too little time to justify
its build and its missed neighbours (benchmarks/README.md)."""

GPU_BYTES = 12 << 30
"""Bytes of vectors up to which ``auto`` uses exact search on a GPU: what fits into a card of 16 GB. Neither Milvus nor
FAISS tells the memory of its card."""


@dataclass(frozen=True)
class IndexSpec:
    """An index type and its parameters.

    Attributes:
        index_type: name of the type; ``AUTO`` chooses by the number of rows and by what the server supports.
        params: build and search parameters that differ from the defaults.
    """

    index_type: str = AUTO
    params: Mapping[str, Value] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> IndexSpec:
        """Parse a setting such as ``auto``, ``HNSW`` or ``HNSW:M=16,efConstruction=200,ef=64``.

        Raises:
            UsageError: an unknown type or parameter, a value out of range, or a metric other than inner product.
        """
        index_type, _, rest = text.strip().partition(":")
        index_type = index_type.strip().upper()
        params: dict[str, Value] = {}
        for part in filter(None, (part.strip() for part in rest.split(","))):
            name, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals or not name:
                raise UsageError(f"index {text!r}: {part!r} is not of the form NAME=VALUE")
            params[name] = int(value) if re.fullmatch("-?[0-9]{1,18}", value) else value
        return cls(index_type, params).checked()

    def checked(self) -> IndexSpec:
        """Return this spec without its metric.

        Raises:
            UsageError: an unknown type or parameter, a value out of range, or a metric other than inner product.
        """
        params = dict(self.params)
        metric = str(params.pop("metric_type", "IP")).upper()
        if metric != "IP":
            raise UsageError(
                f"index {self.index_type}: metric {metric} is refused. LightningDOT is trained so that the inner "
                "product ranks, and its vectors have no common length; use IP or leave metric_type out"
            )
        if self.index_type == AUTO:
            if params:
                raise UsageError(f"index auto takes no parameters ({', '.join(params)}): name a type")
            return IndexSpec()
        if self.index_type not in BUILD:
            raise UsageError(f"unknown index {self.index_type!r}: use auto, {', '.join(BUILD)}")
        known = BUILD[self.index_type] | SEARCH[self.index_type]
        for name, value in params.items():
            _check(self.index_type, name, value, known)
        degree, rough = (self.params.get(n, DEFAULTS["GPU_CAGRA"][n]) for n in _CAGRA_DEGREES)
        if self.index_type == "GPU_CAGRA" and int(degree) > int(rough):
            raise UsageError(f"index GPU_CAGRA: graph_degree ({degree}) is above intermediate_graph_degree ({rough})")
        return IndexSpec(self.index_type, params)

    @property
    def needs_gpu(self) -> bool:
        """True for the types that need a GPU in the server (or for FAISS)."""
        return self.index_type.startswith(GPU_PREFIX)

    @property
    def exact(self) -> bool:
        """True for the types that compare a query with every row."""
        return self.index_type in ("FLAT", "GPU_BRUTE_FORCE")

    def on_cpu(self) -> IndexSpec:
        """Return the nearest type without a GPU, with its default parameters."""
        nearest = {"GPU_BRUTE_FORCE": "FLAT", "GPU_CAGRA": "HNSW", "GPU_IVF_FLAT": "IVF_FLAT", "GPU_IVF_PQ": "IVF_SQ8"}
        return IndexSpec(nearest.get(self.index_type, self.index_type), {} if self.needs_gpu else self.params)

    def build_params(self, dim: int) -> dict[str, Value]:
        """Return the build parameters, defaults included.

        Args:
            dim: dimension of the vectors.

        Raises:
            UsageError: the parameters do not fit this dimension.
        """
        params = self._with_defaults(BUILD)
        if self.index_type == "GPU_IVF_PQ":
            parts = int(params["m"]) or max(n for n in (1, 2, 4, 8, 16, 32, 48, 64, 96) if dim % n == 0)
            if dim % parts:
                raise UsageError(f"index GPU_IVF_PQ: m ({parts}) does not divide the dimension of the vectors ({dim})")
            params["m"] = parts
        return params

    def search_params(self, k: int) -> dict[str, Value]:
        """Return the search parameters, defaults included, raised or lowered to what the type allows.

        Args:
            k: number of rows to find.
        """
        params = self._with_defaults(SEARCH)
        if "ef" in params:
            params["ef"] = max(int(params["ef"]), k)
        if "nprobe" in params:  # Milvus refuses to probe more cells than exist
            params["nprobe"] = min(int(params["nprobe"]), int(self._with_defaults(BUILD)["nlist"]))
        if "itopk_size" in params:
            params["itopk_size"] = -(-max(int(params["itopk_size"]), k) // 32) * 32  # cuVS requires multiples of 32
        return params

    def _with_defaults(self, table: dict[str, dict[str, Range]]) -> dict[str, Value]:
        values = {**DEFAULTS.get(self.index_type, {}), **self.params}
        return {name: value for name, value in values.items() if name in table[self.index_type]}

    def __str__(self) -> str:
        given = ",".join(f"{name}={value}" for name, value in self.params.items())
        return f"{self.index_type}:{given}" if given else self.index_type


def choose(rows: int, dim: int, gpu: bool) -> IndexSpec:
    """Return the index type that ``auto`` stands for.

    On a GPU this is exact search as far as the memory goes. It is never GPU_CAGRA, which needs more memory, and whose
    answers are nearly random above 100,000 rows in some versions (milvus#49864, cuvs#2102).

    Args:
        rows: number of rows.
        dim: dimension of the vectors.
        gpu: whether a GPU is available.
    """
    if gpu and 4 * dim * rows <= GPU_BYTES:
        return IndexSpec("GPU_BRUTE_FORCE")
    return IndexSpec("FLAT" if rows <= EXACT_UP_TO else "HNSW")


def choose_after(spec: IndexSpec) -> IndexSpec | None:
    """Return the index type that ``auto`` takes when one cannot be built or its recall is too low; None after FLAT."""
    following = {"GPU_BRUTE_FORCE": "HNSW", "HNSW": "FLAT"}.get(spec.index_type)
    return None if following is None else IndexSpec(following)


_CAGRA_DEGREES = ("graph_degree", "intermediate_graph_degree")


def _check(index_type: str, name: str, value: Value, known: Mapping[str, Range]) -> None:
    if name not in known:
        takes = f"it takes {', '.join(known)}" if known else "it takes none"
        raise UsageError(f"index {index_type} has no parameter {name!r}: {takes}")
    allowed = known[name]
    if isinstance(allowed[0], str):
        if value not in allowed:
            raise UsageError(f"index {index_type}: {name} is one of {', '.join(map(str, allowed))}, not {value!r}")
        return
    low, high = allowed
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= int(high):
        raise UsageError(f"index {index_type}: {name} is a whole number from {low} to {high}, not {value!r}")
