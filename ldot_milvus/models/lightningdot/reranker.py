"""Re-rank with the cross-attention network in torch. ``region_data.py`` describes what is kept of an image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch

from ldot_milvus.forks import computation
from ldot_milvus.models.base import Array, KeptImage, Text
from ldot_milvus.models.explanation import Explanation, explanation
from ldot_milvus.models.lightningdot.inputs import pad_regions
from ldot_milvus.models.lightningdot.region_data import ReadsRegionData, record, regions_of
from ldot_milvus.models.network_reranker import NetworkReranker
from ldot_milvus.models.texts import TextTokens, by_length
from ldot_milvus.models.tokens import distinct_texts
from ldot_milvus.regions import Regions

if TYPE_CHECKING:
    from ldot_milvus.models.lightningdot.cross_attention import CrossAttentionReranker
    from ldot_milvus.models.lightningdot.files import LightningDOTRerankerFiles

PAIR_BATCH = 100
IMAGE_BATCH = 32


class LightningDOTReranker(ReadsRegionData, NetworkReranker):
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
        self._embedded = model.config.region_input == "embedded"

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
            kept += [record(value, regions) for value, regions in zip(values, batch, strict=True)]
        return kept

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
        regions = {id(one): regions_of(one) for one in kept}

        def score(pairs: list[int]) -> torch.Tensor:
            distinct, numbers = distinct_texts([tokens[pair] for pair in pairs])
            text_of_pair = torch.tensor(numbers, device=self._device)
            ids, mask = self._texts.padded(distinct)
            words = self.model.encode_words(ids, mask)[text_of_pair]
            features, boxes, region_mask = self._padded([regions[id(kept[pair])] for pair in pairs])
            images = features if self._embedded else self.model.embed_regions(features, boxes)
            return self.model.score(words, mask[text_of_pair], images, region_mask).unsqueeze(1)

        return by_length(tokens, PAIR_BATCH, 1, score)[:, 0]

    @computation
    @torch.inference_mode()
    def explain(self, text: str, kept: KeptImage) -> Explanation:
        """Compare each word of a text with each region of a photo, see :meth:`.explanation.Explains.explain`.

        The weights are those of :meth:`.cross_attention.CrossAttentionReranker.word_weights`.
        """
        regions = regions_of(kept)
        tokens, words = self._texts.words(text, self.model.config.max_text_length)
        features, boxes, _ = self._padded([regions])
        images = features if self._embedded else self.model.embed_regions(features, boxes)
        weights = self.model.word_weights(self.model.encode_words(*self._texts.padded([tokens])), images)
        return explanation(words, weights[0].float().cpu().numpy(), regions.boxes, self.names(kept))

    def _padded(self, regions: Sequence[Regions]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        features, boxes, mask = map(torch.from_numpy, pad_regions(regions))
        return (
            features.to(self._device, self._dtype),
            boxes.to(self._device, self._dtype),
            mask.to(self._device),
        )
