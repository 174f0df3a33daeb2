"""The whole way from a photo to its regions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from ldot_milvus.errors import ModelError, UsageError
from ldot_milvus.hub import hub_folder
from ldot_milvus.images import ImageSource, open_image
from ldot_milvus.regions.base import Regions, boxes7
from ldot_milvus.regions.bottom_up.boxes import clip_boxes, decode_boxes, propose
from ldot_milvus.regions.bottom_up.configuration import DetectorConfig
from ldot_milvus.regions.bottom_up.names import ATTRIBUTES, OBJECTS, read_names
from ldot_milvus.regions.bottom_up.network import Detector
from ldot_milvus.regions.bottom_up.pooling import MaximumTable
from ldot_milvus.regions.bottom_up.preprocessing import to_input
from ldot_milvus.regions.bottom_up.selection import Selection, by_any_class, by_best_class
from ldot_milvus.regions.bottom_up.weights import CONFIG, FILES, load_detector
from ldot_milvus.regions.files import MAXIMUM, MINIMUM

PUBLISHED = "unc-nlp/frcnn-vg-finetuned"
"""The public checkpoint on the Hugging Face hub."""

BOXES = ("uniter", "reference")
_AT_A_TIME = 20
"""Proposals that go through res5 together: enough for every core, and few enough for its caches."""


class BottomUpExtractor:
    """Bottom-up-attention regions of photos, as the published LightningDOT and UNITER checkpoints read them.

    One photo is computed at a time, and its proposals are the batch. So its regions are the same bits whatever the
    other photos are: nothing is padded, and no sum is ordered otherwise.

    Args:
        detector: with its weights; it is made ready to run where it is.
        boxes: "uniter" keeps the proposals as they are, suppressed for each class, clip(count(confidence > 0.2),
            10, 100) of them: what LightningDOT and UNITER were trained on. "reference" is the way of the public
            PyTorch code: boxes shifted for their best class, one suppression, 36 of them.
        short_side, long_side: to which photos are scaled; None takes the configuration's (800 and 1333). The
            features that UNITER was trained on were made with 600 and 1000.
        least, most: regions of a photo; None takes 10 and 100 for "uniter", and the configuration's for "reference".
        fast: look at a quarter of each region's bins: two fifths of the time, and other features
            (docs/checkpoints.md has by how much).
        device, dtype: convolutions run there and in this type; boxes and scores are float32.
    """

    least_side = None  # a JPEG decoded smaller would be smoothed

    def __init__(
        self,
        detector: Detector,
        *,
        boxes: str = "uniter",
        short_side: int | None = None,
        long_side: int | None = None,
        least: int | None = None,
        most: int | None = None,
        fast: bool = False,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if boxes not in BOXES:
            raise UsageError(f"boxes is {boxes!r}; it must be one of {', '.join(BOXES)}")
        config = detector.config
        limits = (MINIMUM, MAXIMUM) if boxes == "uniter" else (config.least, config.most)
        config = replace(
            config,
            short_side=config.short_side if short_side is None else short_side,
            long_side=config.long_side if long_side is None else long_side,
            least=limits[0] if least is None else least,
            most=limits[1] if most is None else most,
        )
        if not 1 <= config.least <= config.most or not 1 <= config.short_side <= config.long_side:
            raise UsageError(
                f"regions of a photo from {config.least} to {config.most}, sides from {config.short_side} to "
                f"{config.long_side}: both must be at least 1, and the second no less than the first"
            )
        self.config: DetectorConfig = config
        self.boxes = boxes
        self.fast = fast
        self.dim = config.dim
        self.device = torch.device(device)
        self.dtype = dtype
        self.detector = detector.prepare(self.device, dtype)
        if fast:
            detector.roi_heads.read_every_second_bin()
        self._mean = torch.tensor(config.pixel_mean, device=self.device)
        self._std = torch.tensor(config.pixel_std, device=self.device)

    @classmethod
    def from_pretrained(cls, folder_or_hub_id: str | Path = PUBLISHED, **options: Any) -> BottomUpExtractor:
        """Load ``config.yaml`` and the weights from a folder or hub id; ``options`` are those of the constructor.

        Raises:
            UsageError: no such folder or hub id.
            ModelError: a configuration or weights that do not fit; see :func:`~.weights.load_detector`.
        """
        folder = Path(folder_or_hub_id)
        if not folder.is_dir():
            folder = hub_folder(str(folder_or_hub_id), "detector", files=[CONFIG, *FILES])
        return cls(load_detector(folder), **options)

    @property
    def object_names(self) -> tuple[str, ...]:
        """What the class ids are called."""
        return read_names(OBJECTS, self.config.classes)

    @property
    def attribute_names(self) -> tuple[str, ...]:
        """What the attribute ids are called."""
        return read_names(ATTRIBUTES, self.config.attributes)

    @overload  # a str is a Sequence[str] too, but one path
    def __call__(self, images: ImageSource) -> Regions: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(self, images: Sequence[ImageSource]) -> list[Regions]: ...

    def __call__(self, images: ImageSource | Sequence[ImageSource]) -> Regions | list[Regions]:
        """Regions of a photo, or of each of several: paths, encoded bytes or PIL images of any mode and size.

        A photo in which nothing is found is one region, the whole of it.

        Raises:
            InputError: a photo that cannot be read.
            ModelError: features that are not finite, from weights that this type cannot hold.
        """
        if isinstance(images, Sequence) and not isinstance(images, str | bytes):
            return [self._regions(image) for image in images]
        return self._regions(images)

    @torch.inference_mode()
    def _regions(self, image: ImageSource) -> Regions:
        config, predictor = self.config, self.detector.roi_heads.box_predictor
        photo = open_image(image).image
        pixels = to_input(photo, config.short_side, config.long_side, self._mean, self._std, self.device)
        size = int(pixels.shape[2]), int(pixels.shape[3])
        features = self.feature_map(pixels)
        proposals, _ = self.proposals(features, size)
        pooled = self.region_features(features, proposals)
        if not pooled.isfinite().all():
            raise ModelError(f"the detector's features are not finite in {self.dtype}: compute in bfloat16 or float32")
        logits = predictor.class_logits(pooled)
        probabilities = logits.softmax(1)
        boxes, choice = self.choose(proposals, pooled, probabilities, size)
        attributes = predictor.attribute_probabilities(pooled[choice.kept], logits[choice.kept])
        attribute_confidence, attribute = attributes.max(1)
        height, width = size
        scale = torch.tensor([width, height, width, height], device=boxes.device)
        return Regions(
            features=pooled[choice.kept].cpu().numpy(),
            boxes=boxes7((boxes[choice.kept] / scale).cpu().numpy()),
            confidence=choice.confidence.cpu().numpy(),
            soft_labels=probabilities[choice.kept].roll(1, 1).cpu().numpy(),  # the background first
            objects=choice.classes.cpu().numpy(),
            attributes=attribute.cpu().numpy(),
            attribute_confidence=attribute_confidence.cpu().numpy(),
        )

    def feature_map(self, pixels: Tensor) -> Tensor:
        """(1, 3, h, w) of :func:`~.preprocessing.to_input` to the features (1, C, h / 16, w / 16)."""
        return self.detector.backbone(pixels.to(self.dtype, memory_format=torch.channels_last))

    def proposals(self, features: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The boxes (n, 4) of a feature map in which there may be something, and their logits (n,)."""
        config = self.config
        logits, deltas = self.detector.proposal_generator.rpn_head(features)
        return propose(
            logits[0], deltas[0], self.detector.anchors, size,
            candidates=config.candidates, most=config.proposals, threshold=config.proposal_overlap,
            least_side=config.proposal_side,
        )  # fmt: skip

    def region_features(self, features: Tensor, boxes: Tensor) -> Tensor:
        """A feature map and boxes (n, 4) to the features (n, dim) of what is in them, float32."""
        table = MaximumTable(features[0], step=2 if self.fast else 1)
        return torch.cat(
            [self.detector.roi_heads.features(table.pool(part)) for part in torch.split(boxes, _AT_A_TIME)]
        )

    def choose(
        self, proposals: Tensor, features: Tensor, probabilities: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Selection]:
        """The boxes (n, 4) of all proposals in their final form, and which of them are kept."""
        config = self.config
        objects = probabilities[:, :-1]
        if self.boxes == "uniter":
            return proposals, by_any_class(proposals, objects, least=config.least, most=config.most)
        scores, classes = objects.max(1)
        deltas = self.detector.roi_heads.box_predictor.box_deltas(features, classes)
        boxes = clip_boxes(decode_boxes(proposals, deltas, config.box_weights), size)
        return boxes, by_best_class(
            boxes, scores, classes, overlaps=config.overlaps, least=config.least, most=config.most
        )
