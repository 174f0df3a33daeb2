"""Re-rank with the cross-attention network.

The region data of an image are ``features`` float16 (n, d), ``boxes`` float32 (n, 7) and ``confidence`` float16 (n,).
With ``region_input: features`` in the configuration, the features are the extractor's output (d = ``region_dim``);
with ``region_input: embedded``, they are the network's embedding of it (d = its hidden size).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from ldot_milvus.errors import InputError
from ldot_milvus.forks import computation
from ldot_milvus.models.base import Array, KeptImage, Text
from ldot_milvus.models.calibration import Calibration, read_calibration
from ldot_milvus.models.lightningdot.inputs import pad_regions
from ldot_milvus.models.network_reranker import NetworkReranker
from ldot_milvus.models.texts import TextTokens, by_length
from ldot_milvus.regions import Regions

if TYPE_CHECKING:
    from ldot_milvus.models.lightningdot.cross_attention import CrossAttentionReranker
    from ldot_milvus.models.lightningdot.files import LightningDOTRerankerFiles

PAIR_BATCH = 100
IMAGE_BATCH = 32
ARRAYS = ("features", "boxes", "confidence")


class LightningDOTReranker(NetworkReranker):
    """Scores pairs of a text and an image's region data. Instances are thread-safe.

    Args:
        files: the files from which the network was loaded.
        model: the network, on ``device`` and in ``dtype``.
        texts: the tokenizer of the network.
        device, dtype: where the network runs and in which precision.
    """

    model: CrossAttentionReranker

    def __init__(
        self,
        files: LightningDOTRerankerFiles,
        model: CrossAttentionReranker,
        texts: TextTokens,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(files, model, texts, device, dtype)
        self._files = files
        self._embedded = model.config.region_input == "embedded"

    @cached_property
    def calibration(self) -> Calibration | None:
        """Probabilities of ``rerank_score``, fitted on data (``calibration.json``).

        None if they were not, or with another first stage, re-ranker or weight of the dot product than here.
        """
        return read_calibration(self.name, self._files.folder, lambda: self._files.fitted_for)

    @computation
    @torch.inference_mode()
    def keep(self, features: Sequence[Regions]) -> list[KeptImage]:
        """Convert regions to region data: embedded by the network if it is configured so, and in half precision.

        Raises:
            InputError: a value is not finite or exceeds the range of half precision.
        """
        kept: list[KeptImage] = []
        for start in range(0, len(features), IMAGE_BATCH):
            batch = features[start : start + IMAGE_BATCH]
            values = [regions.features for regions in batch]
            if self._embedded:
                padded, boxes, _ = self._padded(batch)
                embedded = self.model.embed_regions(padded, boxes).float().cpu().numpy()
                values = [row[: len(regions)] for row, regions in zip(embedded, batch, strict=True)]
            kept += [_record(value, regions) for value, regions in zip(values, batch, strict=True)]
        return kept

    def check(self, kept: KeptImage) -> None:
        """Validate region data that was read from a store.

        Raises:
            InputError: one of the three arrays is missing or has a wrong shape. The message names it.
        """
        _regions(kept)

    def score(self, texts: Iterable[Text], kept: Sequence[KeptImage]) -> Array:
        """Score text i with photo i by cross-attention.

        Args:
            texts: n texts, or their token ids with [CLS] and [SEP].
            kept: the region data of n photos.

        Returns:
            float32 (n,); higher is better.

        Raises:
            UsageError: ``texts`` is a single string, or a text is empty.
            InputError: region data that :meth:`check` refuses.
        """
        config = self.model.config
        tokens = self._texts.ids(texts, config.max_text_length, config.bert_config.vocab_size)
        regions = {id(record): _regions(record) for record in kept}

        def score(pairs: list[int]) -> torch.Tensor:
            # A search compares one text with many photos: encode_words runs once for each distinct text.
            distinct = list(dict.fromkeys(tuple(tokens[pair]) for pair in pairs))
            text_of_pair = torch.tensor([distinct.index(tuple(tokens[pair])) for pair in pairs], device=self._device)
            ids, mask = self._texts.padded(distinct)
            words = self.model.encode_words(ids, mask)[text_of_pair]
            features, boxes, region_mask = self._padded([regions[id(kept[pair])] for pair in pairs])
            images = features if self._embedded else self.model.embed_regions(features, boxes)
            return self.model.score(words, mask[text_of_pair], images, region_mask).unsqueeze(1)

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
        raise InputError("the regions' features are not finite, or exceed the range of half precision (65,504)")
    return {
        "features": halves,
        "boxes": np.ascontiguousarray(regions.boxes, np.float32),
        "confidence": np.ascontiguousarray(regions.confidence, np.float16),
    }


def _regions(kept: KeptImage) -> Regions:
    missing = [name for name in ARRAYS if name not in kept]
    if missing:
        raise InputError(f"the region data lack {', '.join(missing)}; they contain {', '.join(kept) or 'no array'}")
    features, boxes, confidence = (kept[name].astype(np.float32) for name in ARRAYS)
    return Regions(features, boxes, confidence)
