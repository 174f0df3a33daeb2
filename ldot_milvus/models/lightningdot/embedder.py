"""The embedding provider: texts and photos to vectors, pairs to re-ranking scores."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ldot_milvus.errors import InputError, UsageError
from ldot_milvus.images import ImageSource, open_image
from ldot_milvus.models.lightningdot.bundle import Bundle, load_model
from ldot_milvus.regions import Regions

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PreTrainedTokenizerBase

Array = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
ImageInput = ImageSource | Regions

Text = str | list[int]
"""A text, or its token ids with [CLS] and [SEP]."""

TEXT_BATCH = 128
IMAGE_BATCH = 32
PAIR_BATCH = 100


class LightningDOTEmbedder:
    """Encodes with a LightningDOT model. Safe to use from several threads.

    Args:
        model: packaged name, folder or hub id; or a model that is loaded already.
        device, dtype: see :func:`~ldot_milvus.models.lightningdot.bundle.load_model`.
    """

    def __init__(self, model: str | Bundle = "ldot-mini", device: str | None = None, dtype: str | None = None) -> None:
        self.bundle = model if isinstance(model, Bundle) else load_model(model, device=device, dtype=dtype)
        self.dim: int = self.bundle.encoder.config.embedding_dim
        # A fast tokenizer keeps truncation state between calls and refuses two threads at once.
        self._tokenizing = threading.Lock()

    def encode_texts(self, texts: Sequence[Text]) -> Array:
        """Vectors of texts, float32 (n, dim), as the model gives them. Long texts are cut to its limit of tokens.

        Raises:
            UsageError: ``texts`` is a single string, or a text is empty.
        """
        tokens = self._tokenize(texts)

        def encode(rows: list[int]) -> torch.Tensor:
            ids, mask = self._pad_tokens([tokens[row] for row in rows])
            return self.bundle.encoder.encode_text(ids, mask)

        return self._in_batches(tokens, TEXT_BATCH, encode)

    def encode_images(self, images: Sequence[ImageInput]) -> Array:
        """Vectors of photos, float32 (n, dim): paths, encoded bytes, PIL images or ready regions.

        Raises:
            InputError: an image that cannot be read, or regions of another width than the model's.
        """
        return self.encode_for_store(images)[0]

    def encode_for_store(self, images: Sequence[ImageInput]) -> tuple[Array, list[Regions]]:
        """Vectors (n, dim) of photos and, from the same pass, what re-ranking needs of each."""
        vectors = np.empty((len(images), self.dim), np.float32)
        kept: list[Regions] = []
        for start in range(0, len(images), IMAGE_BATCH):
            regions = self.regions(images[start : start + IMAGE_BATCH])
            part, states = self._encode_regions(regions)
            vectors[start : start + len(regions)] = part
            kept += states
        return vectors, kept

    def regions(self, images: Sequence[ImageInput]) -> list[Regions]:
        """Regions of photos by the model's own extractor; ready ones are checked and passed through."""
        ready: dict[int, Regions] = {}
        pixels: dict[int, Image] = {}
        for index, image in enumerate(images):
            if isinstance(image, Regions):
                ready[index] = self._checked(image)
            else:
                pixels[index] = open_image(image, draft_to=self.least_side).image
        if pixels:
            if self.bundle.extractor is None:
                raise UsageError(
                    f"model {self.bundle.files.name!r} has no region extractor: give Regions instead of photos"
                )
            ready.update(zip(pixels, self.bundle.extractor(list(pixels.values())), strict=True))
        return [ready[index] for index in range(len(images))]

    def rerank(self, texts: Sequence[Text], regions: Sequence[Regions]) -> Array:
        """Cross-attention scores (n,) of text i with the kept regions i; higher is better."""
        reranker = self.bundle.reranker
        if reranker is None:
            raise UsageError(f"model {self.bundle.files.name!r} has no re-ranker: search with rerank=0")
        tokens = self._tokenize(texts)

        embedded = reranker.config.region_input == "embedded"

        def score(rows: list[int]) -> torch.Tensor:
            # A search compares one text with many photos: its own layers see it once.
            texts = list(dict.fromkeys(tuple(tokens[row]) for row in rows))
            places = torch.tensor([texts.index(tuple(tokens[row])) for row in rows], device=self.bundle.device)
            ids, mask = self._pad_tokens([list(text) for text in texts])
            words = reranker.encode_words(ids, mask)[places]
            features, boxes, region_mask = self._pad_regions([regions[row] for row in rows])
            images = features if embedded else reranker.embed_regions(features, boxes)
            scores = reranker.score(words, mask[places], images, region_mask)
            return scores.unsqueeze(1)

        return self._in_batches(tokens, PAIR_BATCH, score, width=1)[:, 0]

    @property
    def fingerprint(self) -> str:
        """Of the model: see :class:`~ldot_milvus.models.lightningdot.bundle.ModelFiles`."""
        return self.bundle.files.fingerprint

    @property
    def least_side(self) -> int | None:
        """Pixels that both sides of a photo must keep when it is decoded reduced; None where it must not be."""
        return None if self.bundle.extractor is None else self.bundle.extractor.least_side

    @property
    def can_rerank(self) -> bool:
        """Whether the model came with a re-ranker."""
        return self.bundle.reranker is not None

    @property
    def dot_weight(self) -> float:
        """Weight of the dot product that is added to a re-ranking score."""
        return 0.0 if self.bundle.reranker is None else float(self.bundle.reranker.config.dot_weight)

    @torch.inference_mode()
    def _encode_regions(self, regions: list[Regions]) -> tuple[Array, list[Regions]]:
        encoder, reranker = self.bundle.encoder, self.bundle.reranker
        features, boxes, mask = self._pad_regions(regions)
        vectors = encoder.encode_image(features, boxes, mask).float().cpu().numpy()
        if reranker is None or reranker.config.region_input == "features":
            return vectors, regions
        embedded = reranker.embed_regions(features, boxes).float().cpu().numpy()
        return vectors, [
            Regions(row[: len(one)], one.boxes, one.confidence) for row, one in zip(embedded, regions, strict=True)
        ]

    def _tokenize(self, texts: Sequence[Text]) -> list[list[int]]:
        if isinstance(texts, str):
            raise UsageError("give a list of texts, not one string")
        if any(isinstance(text, str) and not text.strip() for text in texts):
            raise UsageError("the text is empty: describe what to look for")
        with self._tokenizing:
            return token_ids(self.bundle.tokenizer, texts, self.bundle.encoder.config.max_text_length)

    def _pad_tokens(self, tokens: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        length = max(map(len, tokens))
        padding = self.bundle.tokenizer.pad_token_id or 0
        ids = torch.tensor([row + [padding] * (length - len(row)) for row in tokens])
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in tokens])
        return ids.to(self.bundle.device), mask.to(self.bundle.device)

    def _pad_regions(self, regions: Sequence[Regions]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        features, boxes, mask = pad_regions(regions)
        device, dtype = self.bundle.device, self.bundle.dtype
        return features.to(device, dtype), boxes.to(device, dtype), mask.to(device)

    def _checked(self, regions: Regions) -> Regions:
        expected = self.bundle.encoder.config.region_dim
        if regions.features.shape[1] != expected:
            raise InputError(
                f"the regions have {regions.features.shape[1]} features, model {self.bundle.files.name!r} "
                f"reads {expected}: they come from another extractor"
            )
        return regions

    def _in_batches(
        self, tokens: list[list[int]], size: int, compute: Callable[[list[int]], torch.Tensor], width: int | None = None
    ) -> Array:
        """Results (n, width) of ``compute`` over rows of ``tokens``, in their order.

        Longest texts go first, so that a batch is of about one length and little padding is computed.
        """
        order = sorted(range(len(tokens)), key=lambda row: -len(tokens[row]))
        result = np.empty((len(tokens), width or self.dim), np.float32)
        with torch.inference_mode():
            for start in range(0, len(order), size):
                rows = order[start : start + size]
                result[rows] = compute(rows).float().cpu().numpy()
        return result


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], limit: int) -> list[list[int]]:
    """Token ids of texts, or the ids that they are, cut to ``limit`` with [CLS] and [SEP] in place."""
    words = [text for text in texts if isinstance(text, str)]
    tokenized = iter(tokenizer(words, truncation=True, max_length=limit)["input_ids"] if words else [])
    return [next(tokenized) if isinstance(text, str) else [*text[:limit][:-1], text[-1]] for text in texts]


def pad_regions(regions: Sequence[Regions]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features (B, R, d) and boxes (B, R, 7) of several photos, and a mask (B, R) that is true for a region."""
    shape = len(regions), max(map(len, regions))
    features = np.zeros((*shape, regions[0].features.shape[1]), np.float32)
    boxes, mask = np.zeros((*shape, 7), np.float32), np.zeros(shape, bool)
    for row, one in enumerate(regions):
        features[row, : len(one)], boxes[row, : len(one)], mask[row, : len(one)] = one.features, one.boxes, True
    return torch.from_numpy(features), torch.from_numpy(boxes), torch.from_numpy(mask)
