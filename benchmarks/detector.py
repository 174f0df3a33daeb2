"""Measure the full-size bottom-up detector in seconds per photo and stage, and a straightforward version beside it.

The weights are random, since times do not depend on them. The straightforward version is the network as published:
float32, separate batch norms, dilated convolutions, and loops over the boxes for pooling and suppression. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldot_milvus.regions.bottom_up import BottomUpExtractor, Detector, DetectorConfig
from ldot_milvus.regions.bottom_up import extractor as extractor_module
from ldot_milvus.regions.bottom_up.boxes import box_iou, clip_boxes, decode_boxes, grid_anchors
from ldot_milvus.regions.bottom_up.pooling import BINS, round_half_up
from ldot_milvus.regions.bottom_up.preprocessing import to_input


class Clock:
    """Measures seconds per stage of wrapped functions; the time of a nested stage is not counted for the outer one."""

    def __init__(self, device: str) -> None:
        self.seconds: dict[str, float] = {}
        self._inside: list[float] = []
        self._device = device
        self.started = time.process_time()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Count the time of the ``with`` block for ``stage``."""
        self._inside.append(0.0)
        self._wait()
        start = time.perf_counter()
        yield
        self._wait()
        elapsed = time.perf_counter() - start
        self.seconds[stage] = self.seconds.get(stage, 0.0) + elapsed - self._inside.pop()
        if self._inside:
            self._inside[-1] += elapsed

    def wrap(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``function`` with its calls counted for ``stage``."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self(stage):
                return function(*args, **kwargs)

        return timed

    def _wait(self) -> None:
        if self._device.startswith("cuda"):
            torch.cuda.synchronize()


def random_detector(seed: int = 0) -> Detector:
    """Create a detector of the published sizes with random weights that yield 300 proposals for every photo."""
    torch.manual_seed(seed)
    detector = Detector(DetectorConfig()).eval()
    with torch.inference_mode():
        for module in detector.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        for name, module in detector.named_modules():
            if name.endswith("conv3.norm"):
                module.weight.fill_(0.3)  # keeps the sums of the residual blocks bounded
        detector.backbone.stem.conv1.weight /= 100
        head = detector.proposal_generator.rpn_head
        for part in (head.objectness_logits, head.anchor_deltas):
            torch.nn.init.normal_(part.weight, std=0.01)
    return detector


def ours(detector: Detector, image: Image.Image, device: str, dtype: str, repeats: int, **options: Any) -> dict:
    extractor = BottomUpExtractor(detector, device=device, dtype=getattr(torch, dtype), **options)
    extractor(image)
    clock = Clock(device)
    heads = extractor.detector.roi_heads
    for part, name, stage in (
        (extractor, "feature_map", "backbone"),
        (extractor, "proposals", "proposals"),
        (heads, "features", "res5"),
        (extractor, "region_features", "pooling"),
        (extractor, "choose", "choice"),
    ):
        setattr(part, name, clock.wrap(stage, getattr(part, name)))
    plain_input = extractor_module.to_input
    extractor_module.to_input = clock.wrap("resize", plain_input)
    try:
        with clock("rest"):
            for _ in range(repeats):
                regions = extractor(image)
    finally:
        extractor_module.to_input = plain_input
    return {"regions": len(regions)} | summary(clock, repeats)


def summary(clock: Clock, repeats: int) -> dict[str, Any]:
    """Return seconds per photo by stage and in total, and processor seconds, which other programs do not affect."""
    stages = {stage: round(seconds / repeats, 3) for stage, seconds in clock.seconds.items()}
    return {"seconds": stages, "total": round(sum(clock.seconds.values()) / repeats, 2),
            "processor": round((time.process_time() - clock.started) / repeats, 2)}  # fmt: skip


@torch.inference_mode()
def straightforward(detector: Detector, image: Image.Image, device: str, short_side: int, long_side: int) -> dict:
    """Measure the straightforward version up to the class scores; the later steps take little time."""
    detector, config, clock = detector.to(device), detector.config, Clock(device)
    with clock("resize"):
        mean, std = (torch.tensor(values, device=device) for values in (config.pixel_mean, config.pixel_std))
        pixels = to_input(image, short_side, long_side, mean, std, device)
    size = tuple(pixels.shape[2:])
    with clock("backbone"):
        features = detector.backbone(pixels)
    with clock("proposals"):
        logits, deltas = detector.proposal_generator.rpn_head(features)
        anchors, height, width = logits.shape[1:]
        order = logits[0].permute(1, 2, 0).flatten().argsort(descending=True)[: config.candidates]
        moves = deltas[0].view(anchors, 4, height, width).permute(2, 3, 0, 1).reshape(-1, 4)
        boxes = clip_boxes(decode_boxes(grid_anchors(detector.anchors, height, width)[order], moves[order]), size)
        kept: list[int] = []
        for place in range(len(boxes)):
            clear = not kept or box_iou(boxes[place : place + 1], boxes[kept]).max() <= config.proposal_overlap
            if clear and (boxes[place, 2:] > boxes[place, :2]).all():
                kept.append(place)
            if len(kept) == config.proposals:
                break
        boxes = boxes[kept]
    with clock("pooling"):
        rows = features[0].permute(1, 2, 0).contiguous()
        pooled = torch.stack([pool_one(rows, box) for box in boxes]).contiguous()
    with clock("res5"):
        region_features = torch.cat([detector.roi_heads.features(part) for part in pooled.split(60)])
    with clock("choice"):
        detector.roi_heads.box_predictor.class_logits(region_features).softmax(1)
    return {"proposals": len(boxes)} | summary(clock, 1)


def pool_one(features: Tensor, box: Tensor) -> Tensor:
    """Pool the features (h, w, C) in a box to (C, 14, 14): maximum over each bin's rows, then columns; 0 outside."""
    x1, y1, x2, y2 = (int(edge) for edge in round_half_up(box / 16).tolist())
    inside = features[y1:, x1:]
    for direction, length in ((0, max(y2 - y1, 0) + 1), (1, max(x2 - x1, 0) + 1)):
        end = inside.shape[direction]
        nothing = inside.new_zeros([side for place, side in enumerate(inside.shape) if place != direction])
        edges = [(i * length // BINS, min(-(-(i + 1) * length // BINS), end)) for i in range(BINS)]
        bins = [inside.narrow(direction, a, b - a).amax(direction) if a < b else nothing for a, b in edges]
        inside = torch.stack(bins, direction)
    return inside.permute(2, 0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sides", default="600x1000,800x1333")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((640, 480), Image.Resampling.BICUBIC)
    result: dict[str, Any] = {
        "machine": torch.cuda.get_device_name() if arguments.device != "cpu" else processor(),
        "threads": arguments.threads, "torch": torch.__version__, "photo": "640x480",
    }  # fmt: skip
    for sides in arguments.sides.split(","):
        short, long = map(int, sides.split("x"))
        times = result[sides] = {}
        times["straightforward float32"] = straightforward(random_detector(), image, arguments.device, short, long)
        for dtype in arguments.dtypes.split(","):
            for fast in (False, True):
                times[f"ours {dtype}{' fast' if fast else ''}"] = ours(
                    random_detector(), image, arguments.device, dtype, arguments.repeats,
                    short_side=short, long_side=long, fast=fast,
                )  # fmt: skip
    result["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps(result, indent=1))


def processor() -> str:
    with open("/proc/cpuinfo") as file:
        return next((line.split(": ")[1].strip() for line in file if "model name" in line), platform.processor())


if __name__ == "__main__":
    main()
