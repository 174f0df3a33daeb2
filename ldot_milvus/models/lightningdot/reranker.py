"""The cross-attention network as a re-ranker: what it keeps of a photo's regions, and scores from that.

Kept are ``features`` float16 (n, d), ``boxes`` float32 (n, 7) and ``confidence`` float16 (n,): the regions as the
extractor gave them, or with d the network's own width where its configuration says ``region_input: embedded``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ldot_milvus.errors import InputError
from ldot_milvus.models.base import Array, KeptImage, Text
from ldot_milvus.models.lightningdot.inputs import TextTokens, by_length, pad_regions
from ldot_milvus.regions import Regions

if TYPE_CHECKING:
    from ldot_milvus.models.lightningdot.cross_attention import CrossAttentionReranker
    from ldot_milvus.models.lightningdot.files import LightningDOTRerankerFiles

PAIR_BATCH = 100
IMAGE_BATCH = 32
ARRAYS = ("features", "boxes", "confidence")


class LightningDOTReranker:
    """Scores pairs of texts and kept regions. Threads may share one.

    Args:
        files: where the network came from.
        model: the network, on ``device`` and in ``dtype``.
        texts: the tokens that the network reads.
    """

    def __init__(
        self,
        files: LightningDOTRerankerFiles,
        model: CrossAttentionReranker,
        texts: TextTokens,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.name = files.name
        self.model = model
        self._files = files
        self._texts = texts
        self._device, self._dtype = device, dtype
        self._embedded = model.config.region_input == "embedded"

    @property
    def fingerprint(self) -> str:
        """Of everything that decides what is kept of an image, 32 hex digits."""
        return self._files.fingerprint

    @property
    def former_fingerprints(self) -> tuple[str, ...]:
        """Those under which earlier versions of ldot-milvus stored the same region data."""
        return self._files.former_fingerprints

    @property
    def dot_weight(self) -> float:
        """Weight of the dot product that is added to a score; 0 for published re-rankers."""
        return float(self.model.config.dot_weight)

    @torch.inference_mode()
    def keep(self, features: Sequence[Regions]) -> list[KeptImage]:
        """The regions in the precision in which they are stored, embedded by the network where it is made so.

        Raises:
            InputError: values that half precision cannot hold.
        """
        kept: list[KeptImage] = []
        for start in range(0, len(features), IMAGE_BATCH):
            part = features[start : start + IMAGE_BATCH]
            values = [one.features for one in part]
            if self._embedded:
                padded, boxes, _ = self._padded(part)
                embedded = self.model.embed_regions(padded, boxes).float().cpu().numpy()
                values = [row[: len(one)] for row, one in zip(embedded, part, strict=True)]
            kept += [_record(value, one) for value, one in zip(values, part, strict=True)]
        return kept

    def check(self, kept: KeptImage) -> None:
        """Refuse a record without the three arrays, or of other shapes than they have.

        Raises:
            InputError: saying which.
        """
        _regions(kept)

    def score(self, texts: Sequence[Text], kept: Sequence[KeptImage]) -> Array:
        """Cross-attention scores of text i with photo i, float32 (n,); higher is better.

        Raises:
            UsageError: ``texts`` is a single string, or a text is empty.
            InputError: a record that :meth:`check` refuses.
        """
        tokens = self._texts.ids(texts, self.model.config.max_text_length)
        regions = {id(one): _regions(one) for one in kept}

        def score(rows: list[int]) -> torch.Tensor:
            # A search compares one text with many photos: its own layers see it once.
            distinct = list(dict.fromkeys(tuple(tokens[row]) for row in rows))
            places = torch.tensor([distinct.index(tuple(tokens[row])) for row in rows], device=self._device)
            ids, mask = self._texts.padded(distinct)
            words = self.model.encode_words(ids, mask)[places]
            features, boxes, region_mask = self._padded([regions[id(kept[row])] for row in rows])
            images = features if self._embedded else self.model.embed_regions(features, boxes)
            return self.model.score(words, mask[places], images, region_mask).unsqueeze(1)

        return by_length(tokens, PAIR_BATCH, 1, score)[:, 0]

    def _padded(self, regions: Sequence[Regions]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        features, boxes, mask = pad_regions(regions)
        return (
            features.to(self._device, self._dtype),
            boxes.to(self._device, self._dtype),
            mask.to(self._device),
        )


def _record(features: Array, regions: Regions) -> KeptImage:
    with np.errstate(over="ignore"):
        halves = np.ascontiguousarray(features, np.float16)
    if not np.isfinite(halves).all():
        raise InputError("the regions' features are not finite, or too large for half precision (65,504)")
    return {
        "features": halves,
        "boxes": np.ascontiguousarray(regions.boxes, np.float32),
        "confidence": np.ascontiguousarray(regions.confidence, np.float16),
    }


def _regions(kept: KeptImage) -> Regions:
    missing = [name for name in ARRAYS if name not in kept]
    if missing:
        raise InputError(f"no {', '.join(missing)} among the kept arrays ({', '.join(kept) or 'none'})")
    features, boxes, confidence = (kept[name].astype(np.float32) for name in ARRAYS)
    return Regions(features, boxes, confidence)
