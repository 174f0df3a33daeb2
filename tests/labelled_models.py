"""A small model with random weights and label names, and its classifier."""

from __future__ import annotations

import json
from pathlib import Path

STAGES = [
    {"repeats": 1, "kernel": 3, "stride": 1, "expand": 1, "channels": 8},
    {"repeats": 2, "kernel": 5, "stride": 2, "expand": 6, "channels": 16},
    {"repeats": 2, "kernel": 3, "stride": 2, "expand": 2, "channels": 16},
]
NAMES = ["dog", "bus (red)", "elephant", "café", "two words"]


def build_classifier(folder: Path, size: int = 36, names: list[str] | None = None, seed: int = 0) -> Path:
    """Save an EfficientNet-Lite with random weights and batch norms, and the names of its labels."""
    import torch

    from ldot_milvus.regions.efficientnet import EfficientNetLite, EfficientNetLiteConfig

    names = NAMES if names is None else names
    torch.manual_seed(seed)
    config = EfficientNetLiteConfig(
        image_size=size, stem_channels=8, head_channels=24, stages=STAGES, num_labels=len(names)
    )
    network = EfficientNetLite(config)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.uniform_(-0.5, 0.5)
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 2)
        elif isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, torch.nn.Linear):
            module.weight.data.normal_(0, 2)
    network.save_pretrained(folder)
    (folder / "labels.json").write_text(json.dumps(names))
    return folder
