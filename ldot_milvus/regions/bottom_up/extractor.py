"""Extract the regions of a photo with the bottom-up-attention detector."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, overload

import torch
from torch import Tensor

from ldot_milvus.errors import ModelError, UsageError
from ldot_milvus.forks import computation
from ldot_milvus.hub import hub_folder
from ldot_milvus.images import ImageSource, each_image, is_one_image, open_image
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
_PROPOSAL_BATCH = 20
"""Proposals in a batch of res5: enough to use every core, and few enough for the CPU's caches."""


class BottomUpExtractor:
    """Extracts bottom-up-attention regions of photos, the input of the published LightningDOT and UNITER checkpoints.

    One photo is computed at a time, with its proposals as the batch. Its regions are therefore bitwise identical
    whatever other photos are in the call: nothing is padded, and no sum changes its order.

    Args:
        detector: the network with its weights. It is moved to ``device`` and ``dtype`` in place.
        boxes: "uniter" keeps the proposals' boxes unchanged, suppresses for each class, and keeps
            clip(count(confidence > 0.2), 10, 100) regions: the input on which LightningDOT and UNITER were trained.
            "reference" follows the public PyTorch code: boxes shifted for their best class, one suppression, 36
            regions.
        short_side, long_side: photos are scaled to this short side in pixels, but to at most this long side; None
            takes the configuration's (800 and 1333). UNITER's training features were made with 600 and 1000.
        least, most: minimum and maximum number of a photo's regions; None takes 10 and 100 for "uniter", and the
            configuration's for "reference".
        fast: compute a quarter of each region's bins, in two fifths of the time. The features differ; see
            docs/checkpoints.md.
        device, dtype: where the network runs, and in which precision convolutions do; boxes and scores are float32.

    Attributes:
        dim: width of a region's feature vector.
        least_side: None: photos must be decoded at full size.

    Raises:
        UsageError: ``boxes`` is unknown, or a minimum is below 1 or above its maximum.
    """

    least_side = None  # decoding a JPEG at a reduced size would smooth it

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
                f"least is {config.least}, most {config.most}, short_side {config.short_side}, long_side "
                f"{config.long_side}: least and short_side must be at least 1, most and long_side no less than these"
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
        """Load ``config.yaml`` and the weights from a folder or hub id.

        Args:
            folder_or_hub_id: a hub repository is downloaded once.
            options: the constructor's other arguments.

        Raises:
            UsageError: neither a folder nor a hub repository has that name, or the constructor refuses an option.
            ModelError: the configuration or the weights do not fit; see :func:`~.weights.load_detector`.
        """
        folder = Path(folder_or_hub_id).expanduser()
        if not folder.is_dir():
            folder = hub_folder(str(folder_or_hub_id), "detector", files=[CONFIG, *FILES])
        return cls(load_detector(folder), **options)

    @property
    def object_names(self) -> tuple[str, ...]:
        """Names of the classes, by id."""
        return read_names(OBJECTS, self.config.classes)

    @property
    def attribute_names(self) -> tuple[str, ...]:
        """Names of the attributes, by id."""
        return read_names(ATTRIBUTES, self.config.attributes)

    @overload  # a str is a Sequence[str] too, but one path
    def __call__(self, images: ImageSource) -> Regions: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(self, images: Iterable[ImageSource]) -> list[Regions]: ...

    def __call__(self, images: ImageSource | Iterable[ImageSource]) -> Regions | list[Regions]:
        """Extract the regions of one photo or of several.

        Args:
            images: a photo in any form of :data:`~ldot_milvus.images.ImageSource`; or a list, generator or batch.

        Returns:
            The photo's regions, best first; or a list of them. A photo without proposals has one region, the whole
            photo.

        Raises:
            InputError: a photo cannot be read.
            UsageError: the argument is neither a photo nor several.
            ModelError: features are not finite, because the weights exceed the range of ``dtype``.
        """
        if is_one_image(images):
            return self._regions(cast("ImageSource", images))
        return [self._regions(image) for image in each_image(images)]

    @computation
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
        boxes, selection = self.choose(proposals, pooled, probabilities, size)
        attributes = predictor.attribute_probabilities(pooled[selection.kept], logits[selection.kept])
        attribute_confidence, attribute = attributes.max(1)
        height, width = size
        scale = torch.tensor([width, height, width, height], device=boxes.device)
        return Regions(
            features=pooled[selection.kept].cpu().numpy(),
            boxes=boxes7((boxes[selection.kept] / scale).cpu().numpy()),
            confidence=selection.confidence.cpu().numpy(),
            soft_labels=probabilities[selection.kept].roll(1, 1).cpu().numpy(),  # the background first
            objects=selection.classes.cpu().numpy(),
            attributes=attribute.cpu().numpy(),
            attribute_confidence=attribute_confidence.cpu().numpy(),
        )

    def feature_map(self, pixels: Tensor) -> Tensor:
        """Compute the feature map (1, C, h / 16, w / 16) of :func:`~.preprocessing.to_input`'s output (1, 3, h, w)."""
        return self.detector.backbone(pixels.to(self.dtype, memory_format=torch.channels_last))

    def proposals(self, features: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Compute the proposals of a feature map.

        Args:
            features: (1, C, h / 16, w / 16).
            size: height and width of the resized photo, in pixels.

        Returns:
            Boxes (n, 4) in pixels and their objectness logits (n,), best first.
        """
        config = self.config
        logits, deltas = self.detector.proposal_generator.rpn_head(features)
        return propose(
            logits[0], deltas[0], self.detector.anchors, size,
            candidates=config.candidates, most=config.proposals, threshold=config.proposal_overlap,
            least_side=config.proposal_side,
        )  # fmt: skip

    def region_features(self, features: Tensor, boxes: Tensor) -> Tensor:
        """Compute the float32 feature vectors (n, dim) of the regions of a feature map inside ``boxes`` (n, 4)."""
        table = MaximumTable(features[0], step=2 if self.fast else 1)
        return torch.cat(
            [self.detector.roi_heads.features(table.pool(batch)) for batch in torch.split(boxes, _PROPOSAL_BATCH)]
        )

    def choose(
        self, proposals: Tensor, features: Tensor, probabilities: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Selection]:
        """Compute the final boxes of all proposals, and select the regions.

        Args:
            proposals: (n, 4) boxes.
            features: (n, dim).
            probabilities: (n, classes + 1), the background last.
            size: height and width of the resized photo, in pixels.

        Returns:
            Boxes (n, 4), and the selection among them.
        """
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
