"""Photos and texts a second of ldot-mini: float32 against what is chosen for this processor, and where the time goes.

    OMP_NUM_THREADS=1 python -m benchmarks.encoding --out benchmarks/results/encoding.json

Both encode the sample photos in turns, in one process. Where bfloat16 is not faster than float32, both are the same.
Texts by ONNX Runtime are compared with the same encoder in torch.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.families import ROOT, processor
from benchmarks.report import report
from benchmarks.timing import seconds
from ldot_milvus import LightningDOTEmbedder
from ldot_milvus.images import decode
from ldot_milvus.models.loading import has_fast_bfloat16
from ldot_milvus.regions.labels import LabelledExtractor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    folder = ROOT / "examples" / "photos"
    files = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))[: options.photos]]
    texts = [text for line in (folder / "photos.jsonl").open() for text in json.loads(line)["captions"]]
    embedders = {"float32": LightningDOTEmbedder("ldot-mini", device="cpu", dtype="float32"),
                 "chosen": LightningDOTEmbedder("ldot-mini", device="cpu")}  # fmt: skip
    stages = {name: photo_stages(embedder, files) for name, embedder in embedders.items()}
    times: dict[str, dict[str, list[float]]] = {name: {stage: [] for stage in calls} for name, calls in stages.items()}
    for number in range(options.rounds + 1):
        for name, calls in stages.items():
            for stage, call in calls.items():
                took = seconds(call)
                if number:  # the first round does not count
                    times[name][stage].append(took / len(files))
    photo_ms = {
        name: {stage: round(1000 * median(values), 2) for stage, values in its.items()} for name, its in times.items()
    }
    vectors = [embedder.encode_images(files) for embedder in embedders.values()]
    cosines = (vectors[0] * vectors[1]).sum(1) / np.prod([np.linalg.norm(one, axis=1) for one in vectors], axis=0)
    by_torch = torch_texts(texts)
    text_seconds: dict[str, list[float]] = {"torch": [], "chosen": []}
    for _ in range(options.rounds):
        text_seconds["torch"].append(seconds(by_torch))
        text_seconds["chosen"].append(seconds(lambda: embedders["chosen"].encode_texts(texts)))
    texts_a_second = {name: round(len(texts) / median(values), 1) for name, values in text_seconds.items()}
    totals = {name: sum(its.values()) for name, its in photo_ms.items()}
    result: dict[str, Any] = {
        "machine": processor(), "threads": torch.get_num_threads(), "bfloat16": has_fast_bfloat16(),
        "photos": len(files), "texts": len(texts), "rounds": options.rounds, "photo_ms": photo_ms,
        "photos_a_second": {name: round(1000 / total, 2) for name, total in totals.items()},
        "photos_chosen_to_float32": round(totals["float32"] / totals["chosen"], 2),
        "smallest_cosine_to_float32": round(float(cosines.min()), 5),
        "texts_a_second": texts_a_second,
        "texts_chosen_to_torch": round(texts_a_second["chosen"] / texts_a_second["torch"], 2),
    }  # fmt: skip
    report(result, options.out)


def photo_stages(embedder: LightningDOTEmbedder, files: list[bytes]) -> dict[str, Callable[[], object]]:
    """Return the stages of encoding photos, on inputs that are ready."""
    extractor = embedder.bundle.extractor
    assert isinstance(extractor, LabelledExtractor)
    images = [decode(data, draft_to=embedder.least_side).image for data in files]
    features = embedder.image_features(images)
    assert embedder.reranker is not None
    return {
        "decode": lambda: [decode(data, draft_to=embedder.least_side).image for data in files],
        "regions": lambda: extractor._extractor(images),
        "labels": lambda: extractor._classifier(images),
        "encode": lambda: embedder.encode_features(features),
        "region data": lambda: embedder.reranker.keep(features),  # type: ignore[union-attr]
    }


def torch_texts(texts: list[str]) -> Callable[[], object]:
    """Return a call that encodes texts by torch, as for a model without graphs: in batches of similar length."""
    bundle = LightningDOTEmbedder("ldot-mini", device="cpu", dtype="float32").bundle
    order = sorted(texts, key=len)

    def encode() -> None:
        with torch.inference_mode():
            for start in range(0, len(order), 32):
                batch = bundle.tokenizer(order[start : start + 32], padding=True, return_tensors="pt")
                bundle.encoder.encode_text(batch["input_ids"], batch["attention_mask"])

    return encode


if __name__ == "__main__":
    main()
