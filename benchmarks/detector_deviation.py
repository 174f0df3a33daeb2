"""Measure how far region features of the fast mode and of bfloat16 deviate from exact ones; prints JSON.

The published weights are not available everywhere, so the network is an ImageNet ResNet-50 in the detector's shape
(res5 dilated, stride 16 before it), applied to real photos in the boxes of the public TSV. Deviation is the cosine
between a region's feature and its exact one; the cosine between different regions of one photo is the reference.

    python benchmarks/detector_deviation.py ../shared/weights/resnet-50-imagenet ../shared/bottom-up-samples
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import ResNetModel

from ldot_milvus.images import open_image
from ldot_milvus.regions.bottom_up import BottomUpExtractor, Detector, DetectorConfig
from ldot_milvus.regions.bottom_up.network import ConvNorm
from ldot_milvus.regions.bottom_up.preprocessing import to_input
from ldot_milvus.regions.files import open_regions


def imagenet_detector(folder: str) -> Detector:
    """Create a detector with the convolutions of a ResNet-50; its heads are random and not used."""
    mean = (103.939, 116.779, 123.68)
    detector = Detector(DetectorConfig(depth=50, short_side=600, long_side=1000, pixel_mean=mean))
    source = ResNetModel.from_pretrained(folder).float().eval()
    stages = [detector.backbone.res2, detector.backbone.res3, detector.backbone.res4, detector.roi_heads.res5]
    copy_convolution(detector.backbone.stem.conv1, source.embedder.embedder)
    stem = detector.backbone.stem.conv1.weight
    stem.data = stem.data.flip(1)  # the ResNet was trained on RGB, the detector reads BGR
    for ours, theirs in zip(stages, source.encoder.stages, strict=True):
        for block, layer in zip(ours, theirs.layers, strict=True):
            for convolution, its in zip((block.conv1, block.conv2, block.conv3), layer.layer, strict=True):
                copy_convolution(convolution, its)
            if block.shortcut is not None:
                copy_convolution(block.shortcut, layer.shortcut)
    return detector


def copy_convolution(ours: ConvNorm, theirs: torch.nn.Module) -> None:
    ours.weight.data = theirs.convolution.weight.data.clone()
    ours.norm.load_state_dict(theirs.normalization.state_dict())


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@torch.inference_mode()
def main(resnet: str, samples: str) -> None:
    plain = imagenet_detector(resnet)
    variants = {
        "exact": BottomUpExtractor(copy.deepcopy(plain)),
        "fast": BottomUpExtractor(copy.deepcopy(plain), fast=True),
        "bfloat16": BottomUpExtractor(copy.deepcopy(plain), dtype=torch.bfloat16),
    }
    file = open_regions(next(Path(samples).glob("*.tsv")))
    features_of: dict[str, list[np.ndarray]] = {name: [] for name in variants}
    others = []
    for name in file.names:
        photo = open_image(next(Path(samples).glob(f"*{name}.jpg"))).image
        corners = torch.from_numpy(file.read(name).boxes[:, :4])
        for variant, extractor in variants.items():
            config = extractor.config
            pixels = to_input(photo, config.short_side, config.long_side, extractor._mean, extractor._std)
            height, width = pixels.shape[2:]
            boxes = corners * torch.tensor([width, height, width, height])
            features_of[variant].append(extractor.region_features(extractor.feature_map(pixels), boxes).numpy())
        features = features_of["exact"][-1]
        others.append(cosines(features, np.roll(features, 1, axis=0)))
    exact = np.concatenate(features_of["exact"])
    result = {"regions": len(exact), "cosine of different regions": percentiles(np.concatenate(others))}
    for variant in ("fast", "bfloat16"):
        result[f"cosine of {variant} and exact"] = percentiles(cosines(exact, np.concatenate(features_of[variant])))
    print(json.dumps(result, indent=1))


def percentiles(values: np.ndarray) -> dict[str, float]:
    return {f"{p} %": round(float(np.percentile(values, p)), 4) for p in (1, 50, 99)}


if __name__ == "__main__":
    main(*sys.argv[1:])
