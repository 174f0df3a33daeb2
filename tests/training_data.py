"""Synthetic training data: photos of objects, captions that name them, and models to start from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from ldot_milvus.model import CrossAttentionReranker, LightningDOT, LightningDOTConfig, RerankerConfig
from ldot_milvus.regions import Regions
from ldot_milvus.regions.base import boxes7
from ldot_milvus.regions.files import write_npz

PHOTOS, REGIONS, WIDTH, CLASSES = 48, 9, 24, 13
BODY = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "num_hidden_layers": 1,
        "max_position_embeddings": 32}  # fmt: skip


def write_photos(folder: Path, *, soft_labels: bool = False) -> tuple[Path, Path]:
    """Write region features as npz files, and captions as Karpathy JSON.

    Each photo shows three of twelve objects, each in three regions, and its captions name them.

    Returns:
        The JSON file, and the folder of the npz files.
    """
    rng = np.random.default_rng(0)
    looks = rng.normal(0, 2, (12, WIDTH))
    images, items = [], []
    for number in range(PHOTOS):
        things = rng.choice(12, 3, replace=False)
        captions = [" ".join(chr(ord("a") + thing) for thing in rng.permutation(things)) for _ in range(2)]
        shown = np.repeat(things, 3)[rng.permutation(REGIONS)]
        features = rng.normal(0, 0.3, (REGIONS, WIDTH)) + looks[shown]
        corners = np.sort(rng.random((REGIONS, 2, 2)), axis=1).reshape(REGIONS, 4)
        labels = np.eye(CLASSES, dtype=np.float32)[shown + 1] if soft_labels else None
        items.append((f"{number:03}.npz", Regions(features.astype(np.float32), boxes7(corners.astype(np.float32)),
                                                  np.ones(REGIONS, np.float32), labels)))  # fmt: skip
        for split in ("train", "val"):  # the same photos in both, to measure what was learned
            images.append({"filename": f"{number:03}.jpg", "split": split, "sentences": [{"raw": c} for c in captions]})
    folder.mkdir(parents=True, exist_ok=True)
    write_npz(folder / "regions", items)
    (folder / "pairs.json").write_text(json.dumps({"images": images}))
    return folder / "pairs.json", folder / "regions"


def write_start(folder: Path, tokenizer_of: str, **changes: Any) -> Path:
    """Save an untrained model that reads the region features of :func:`write_photos`."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    body = {**BODY, "vocab_size": len(tokenizer)}
    options = {"region_dim": WIDTH, "region_classes": CLASSES, "projection_dim": 16, "normalize": True,
               "pooling": "mean", **changes}  # fmt: skip
    LightningDOT(LightningDOTConfig(text_config=body, image_config=body, **options)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def add_reranker(folder: Path, scoring: str) -> Path:
    """Save an untrained re-ranker beside the model."""
    torch.manual_seed(1)
    body = {**BODY, "vocab_size": LightningDOTConfig.from_pretrained(folder).text_config.vocab_size}
    config = RerankerConfig(bert_config=body, region_dim=WIDTH, scoring=scoring)
    CrossAttentionReranker(config).save_pretrained(folder / "reranker")
    return folder
