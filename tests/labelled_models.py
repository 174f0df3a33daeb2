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


def build_labelled_model(folder: Path, tiny_model: str, *, features: bool = False) -> tuple[Path, Path]:
    """Save a tiny model of two text layers that gets label names, and the sentence encoder that shares the first.

    Args:
        folder: of the model.
        tiny_model: the model without label names.
        features: the model's regions have the classifier's features and the names' vectors too.

    Returns:
        The model's folder, and the sentence encoder's.
    """
    import torch
    from transformers import BertModel

    from ldot_milvus.model import CrossAttentionReranker, LightningDOT, LightningDOTConfig, RerankerConfig
    from ldot_milvus.training.checkpoints import copy_folder
    from ldot_milvus.training.labels import add_labels
    from ldot_milvus.training.recipe import Labels

    copy_folder(Path(tiny_model), folder)
    config = LightningDOTConfig.from_pretrained(folder)
    config.text_config.num_hidden_layers = 2
    if features:
        config.region_dim += 24 + 2 * 8
        reranker = RerankerConfig.from_pretrained(folder / "reranker")
        reranker.region_dim = config.region_dim
        CrossAttentionReranker(reranker).save_pretrained(folder / "reranker")
    torch.manual_seed(5)
    model = LightningDOT(config)
    for name, weight in model.named_parameters():
        if weight.dim() > 1 and "LayerNorm" not in name:
            weight.data.normal_(0, 0.3)
    model.save_pretrained(folder)
    sentences = BertModel(config.text_config, add_pooling_layer=False)
    trained = model.text_model.state_dict()
    shared = {name: tensor for name, tensor in trained.items() if "layer.1." not in name}
    sentences.load_state_dict(shared, strict=False)
    for weight in sentences.encoder.layer[1].parameters():
        weight.data.normal_(0, 0.3)
    encoder = folder.with_name(f"{folder.name}-sentences")
    sentences.save_pretrained(encoder)
    classifier = build_classifier(folder.with_name(f"{folder.name}-classifier"))
    labels = Labels(
        classifier=str(classifier), dim=8, shared_layers=1, weight=0.25, temperature=0.7, cells=2, features=features
    )
    add_labels(labels, str(encoder), folder, CAPTIONS)
    return folder, encoder


CAPTIONS = ["a dog", "two men on a bus", "an elephant and a car", "the sea"]
