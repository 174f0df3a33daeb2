"""LightningDOT's claim: retrieval by dot product, with and without re-ranking, against cross-attention over all images.

    python -m benchmarks.headline --out benchmarks/results/headline.json

Two sizes: the published one (BERT-base, 36 regions of 2,048 values) with random weights, whose times are those of
trained ones, and the packaged ldot-mini, whose own re-ranker aligns words with regions. For ldot-mini, a joint
cross-attention of its text encoder's size is a third row: the model that one would use without LightningDOT.

Cross-attention over all images is measured on a sample of pairs and multiplied by the number of images. It reads the
same stored features as the re-ranking, so that neither side opens a photo. The fast side is a whole
:meth:`Retriever.search` on a local store (exact index) with so many rows. In each round both sides run in turns. The
published ratios (LightningDOT, table 2) were measured on a GPU against UNITER-base.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks.families import ROOT, processor
from benchmarks.families import blip as write_blip
from benchmarks.timing import in_turns
from ldot_milvus import Retriever, load_embedder, open_store
from ldot_milvus.forks import cores
from ldot_milvus.model import CrossAttentionReranker, LightningDOT, LightningDOTConfig, RerankerConfig
from ldot_milvus.models.base import Embedder, KeptImage, Reranker
from ldot_milvus.models.loading import load_reranker
from ldot_milvus.regions.base import Regions, boxes7
from ldot_milvus.stores import Record
from ldot_milvus.stores.regions import RegionStore

SIZES = (1_000, 5_000, 31_000, 123_000)
PUBLISHED = {"dot product": (639, 1_927, 6_591, 23_869), "20 re-ranked": (46, 95, 1_255, 2_235)}
RERANK, BATCH, KEPT = 20, 1000, 100
TEXTS = ("a long red bus drives down the street", "two people riding horses on the beach",
         "a man standing next to an elephant", "a bear and some vultures in the grass")  # fmt: skip


class SomeRegions(RegionStore):
    """Region data of a few images, which serve as those of every id: the time to read 20 files, without 123,000."""

    def get(self, ids: Sequence[str]) -> dict[str, Any]:
        """Return region data by id."""
        found = super().get([_kept_id(int(id)) for id in ids])
        return {id: found[_kept_id(int(id))] for id in ids}


def _kept_id(number: int) -> str:
    return f"{number % KEPT:064d}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=40, help="pairs in the sample of the slow side")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    result: dict[str, Any] = {
        "machine": processor(), "cores": cores(), "threads": torch.get_num_threads(), "rounds": options.rounds,
        "pairs_in_the_sample": options.pairs, "images": list(options.sizes), "published": PUBLISHED,
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="ldot-bench-") as name:
        folder = Path(name)
        write_base(folder / "base")
        write_joint_mini(folder / "joint-mini")
        for label, model, reranker in (
            ("base size", str(folder / "base"), None),
            ("ldot-mini", "ldot-mini", None),
            ("ldot-mini, joint cross-attention", "ldot-mini", str(folder / "joint-mini")),
        ):
            embedder = load_embedder(model, device="cpu")
            second = load_reranker(reranker, embedder)
            assert second is not None
            result[label] = [
                measured(folder / f"{label}-{size}", embedder, second, size, options.rounds, options.pairs)
                for size in options.sizes
            ]
            print(label, json.dumps(result[label], indent=1), flush=True)
        result["BLIP base, 20 photos"] = blip(folder / "blip", options.rounds)
    print(json.dumps(result["BLIP base, 20 photos"]))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


def write_base(folder: Path) -> None:
    """Write a model of the published size with random weights."""
    LightningDOT(LightningDOTConfig()).save_pretrained(folder)
    CrossAttentionReranker(RerankerConfig()).save_pretrained(folder / "reranker")
    words = (ROOT / "ldot_milvus" / "pretrained" / "vocab" / "bert-base-cased.txt").read_text().splitlines()
    transformers.BertTokenizer(vocab={word: number for number, word in enumerate(words)}).save_pretrained(folder)


def write_joint_mini(folder: Path) -> None:
    """Write a joint cross-attention of the size of ldot-mini's text encoder, with random weights."""
    text = json.loads((ROOT / "ldot_milvus" / "pretrained" / "ldot-mini" / "config.json").read_text())["text_config"]
    config = RerankerConfig(bert_config=text, region_dim=2048, scoring="joint")
    CrossAttentionReranker(config).save_pretrained(folder)


def measured(
    folder: Path, embedder: Embedder, reranker: Reranker, size: int, rounds: int, pairs: int
) -> Mapping[str, float]:
    """Return the median seconds of a query by each way, and the ratios to cross-attention over all."""
    rng = np.random.default_rng(0)
    regions = SomeRegions(str(folder / "regions"), reranker.fingerprint)
    kept = reranker.keep([random_regions(rng) for _ in range(KEPT)])
    regions.put({_kept_id(number): one for number, one in enumerate(kept)})
    with open_store(f"faiss:{folder}", "images") as store:
        for start in range(0, size, BATCH):
            vectors = rng.normal(size=(min(BATCH, size - start), embedder.dim)).astype(np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            store.upsert([Record(f"{start + n:064d}", row) for n, row in enumerate(vectors)])
        retriever = Retriever(embedder, store, regions, reranker=reranker)
        sample = [kept[number % KEPT] for number in range(pairs)]
        ways: dict[str, Callable[[str], object]] = {
            "pairs": lambda text: reranker.score([text] * pairs, sample),
            "dot_product": lambda text: retriever.search(text, rerank=0),
            "reranked": lambda text: retriever.search(text, rerank=RERANK),
        }
        seconds = in_turns(ways, rounds, TEXTS)
    everything = seconds.pop("pairs") / pairs * size
    return {
        "cross_attention_s": everything, **{f"{way}_s": value for way, value in seconds.items()},
        **{f"{way}_ratio": everything / value for way, value in seconds.items()},
    }  # fmt: skip


def blip(folder: Path, rounds: int) -> Mapping[str, float]:
    """Return the seconds of re-ranking 20 photos by a BLIP-base of random weights, from pixels and from states."""
    write_blip(folder)
    embedder = load_embedder(str(folder), device="cpu")
    reranker = load_reranker(None, embedder)
    assert reranker is not None
    photos = sorted((ROOT / "examples" / "photos").glob("*.jpg"))[:RERANK]

    def states() -> list[KeptImage]:
        return reranker.keep(embedder.image_features(photos))

    kept = states()
    ways: dict[str, Callable[[str], object]] = {
        "from_pixels": lambda text: reranker.score([text] * RERANK, states()),
        "stored": lambda text: reranker.score([text] * RERANK, kept),
    }
    seconds = in_turns(ways, rounds, TEXTS[:1])
    return {f"{way}_s": value for way, value in seconds.items()} | {"ratio": seconds["from_pixels"] / seconds["stored"]}


def random_regions(rng: np.random.Generator, count: int = 36, dim: int = 2048) -> Regions:
    """Return as many regions as the paper's detector gives, with random features."""
    corners = np.sort(rng.random((count, 2, 2), dtype=np.float32), axis=1).reshape(count, 4)
    features = np.abs(rng.normal(size=(count, dim))).astype(np.float32)
    return Regions(features, boxes7(corners), np.ones(count, np.float32))


if __name__ == "__main__":
    main()
