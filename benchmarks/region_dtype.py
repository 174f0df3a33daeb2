"""Region data in half precision and as int8: bytes of a photo, time to read 20, largest changes of a value and a score.

``python -m benchmarks.region_dtype`` writes 500 photos of random values in the shapes of three kinds of re-rankers to a
temporary folder, and reads 20 of them at a time. Then it scores sample photos with re-rankers of full size and random
weights, from both precisions.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers

from benchmarks import families
from ldot_milvus import load_embedder
from ldot_milvus.models.edje.configuration import EdjeConfig
from ldot_milvus.models.edje.joint_encoder import EdjeReranker
from ldot_milvus.models.loading import load_reranker
from ldot_milvus.stores.regions import RegionDtype, RegionStore

SHAPES = {"ldot-mini": ("features", 49, 384), "EDJE": ("tokens", 64, 384), "BLIP base": ("states", 577, 768)}
DTYPES: tuple[RegionDtype, ...] = ("float16", "int8")
PHOTOS, READ, ROUNDS = 500, 20, 15


def main() -> None:
    """Print two Markdown tables."""
    storage()
    print()
    scores()


def storage() -> None:
    """Print a row for each shape and precision."""
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


def scores(count: int = 12) -> None:
    """Print a row for each family: how far int8 moves the scores of pairs, and how far a text's photos lie apart."""
    torch.manual_seed(0)
    photos = sorted((families.ROOT / "examples" / "photos").glob("*.jpg"))[:count]
    texts = ["a long red bus", "two people riding horses on the beach", "a bear in the grass"]
    print("| re-ranker, random weights | pairs | deviation among photos | largest change by int8, in deviations |")
    print("|---|---|---|---|")
    kinds: dict[str, tuple[Callable[[Path], None], Callable[[Path], None] | None]] = {
        "EDJE, 64 x 384, over SigLIP-B/16": (families.siglip, edje),
        "BLIP base, 577 x 768": (blip, None),
    }
    for label, (first, second) in kinds.items():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            first(folder / "first")
            if second:
                second(folder / "second")
            embedder = load_embedder(str(folder / "first"), device="cpu")
            reranker = load_reranker(str(folder / "second") if second else None, embedder)
            assert reranker is not None
            kept = reranker.keep(embedder.image_features(photos))
            found = []
            for dtype in DTYPES:
                store = RegionStore(str(folder / dtype), "benchmark", dtype=dtype)
                store.put({f"{number:064x}": one for number, one in enumerate(kept)})
                back = store.get([f"{number:064x}" for number in range(count)])
                rows = [back[f"{number:064x}"] for number in range(count)]
                found.append(reranker.score([text for text in texts for _ in rows], rows * len(texts)))
            deviation = found[0].reshape(len(texts), count).std(1).mean()
            change = np.abs(found[0] - found[1]).max() / deviation
            print(f"| {label} | {found[0].size} | {deviation:.2g} | {change:.3f} |")


def blip(folder: Path) -> None:
    """Write a BLIP whose weights are larger than at the start of a training, where all photos have the same score."""
    families.blip(folder)
    model = transformers.BlipForImageTextRetrieval.from_pretrained(folder)
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.data.normal_(0, 0.06)
    model.save_pretrained(folder)


def edje(folder: Path) -> None:
    """Write an EDJE re-ranker of the published size over SigLIP-B/16."""
    EdjeReranker(EdjeConfig(token_dim=768, adapter_heads=12)).save_pretrained(folder)
    families.tokenizer().save_pretrained(folder)


if __name__ == "__main__":
    main()
