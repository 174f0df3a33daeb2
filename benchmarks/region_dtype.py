"""Region data in half precision and as int8: bytes of a photo, time to read 20 photos, largest change of a value.

``python benchmarks/region_dtype.py`` writes 500 photos of random values in the shapes of three kinds of re-rankers to a
temporary folder, and reads 20 of them at a time.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from ldot_milvus.stores.regions import RegionDtype, RegionStore

SHAPES = {"ldot-mini": ("features", 49, 384), "EDJE": ("tokens", 64, 384), "BLIP base": ("states", 577, 768)}
DTYPES: tuple[RegionDtype, ...] = ("float16", "int8")
PHOTOS, READ, ROUNDS = 500, 20, 15


def main() -> None:
    """Print a row of a Markdown table for each shape and precision."""
    rng = np.random.default_rng(0)
    print("| region data | precision | bytes of a photo | read 20, ms | largest change, of the largest value |")
    print("|---|---|---|---|---|")
    for label, (name, count, width) in SHAPES.items():
        values = rng.normal(size=(count, width)).astype(np.float16)
        arrays = {name: values}
        if label == "ldot-mini":
            arrays |= {"boxes": rng.random((count, 7), dtype=np.float32), "confidence": np.ones(count, np.float16)}
        for dtype in DTYPES:
            with tempfile.TemporaryDirectory() as folder:
                store = RegionStore(folder, "benchmark", dtype=dtype)
                ids = [f"{number:064x}" for number in range(PHOTOS)]
                store.put(dict.fromkeys(ids, arrays))
                size = next(Path(folder).rglob("*.safetensors")).stat().st_size
                seconds = []
                for _ in range(ROUNDS):
                    some = rng.choice(ids, READ, replace=False).tolist()
                    started = time.perf_counter()
                    found = store.get(some)
                    seconds.append(time.perf_counter() - started)
                exact, read = values.astype(np.float32), found[some[0]][name].astype(np.float32)
                change = (np.abs(exact - read).max(1) / np.abs(exact).max(1)).max()
                shape, milliseconds = f"{count} x {width}", 1000 * np.median(seconds)
                print(f"| {label}, {shape} | {dtype} | {size:,} | {milliseconds:.1f} | {change:.4f} |")


if __name__ == "__main__":
    main()
