"""Re-rank with BLIP's image-text matching: the text transformer attends to the vision states of the image.

The region data of an image are its ``states``, float16 (N, W). The score is the logit of "match"; the authors' final
score adds the dot product of the first stage (github salesforce/BLIP, train_retrieval.py).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import torch

from ldot_milvus.batches import batched
from ldot_milvus.errors import InputError, ModelError
from ldot_milvus.forks import computation
from ldot_milvus.models.attention import ATTENTION_LAYERS
from ldot_milvus.models.base import Array, Embedder, ImageInput, KeptImage, Text
from ldot_milvus.models.blip.network import text_state
from ldot_milvus.models.explanation import Explanation, explanation
from ldot_milvus.models.inputs import words_only
from ldot_milvus.models.loading import device_of
from ldot_milvus.models.patches import PatchFeatures
from ldot_milvus.regions.grid import grid_boxes

if TYPE_CHECKING:
    from ldot_milvus.models.blip.embedder import BlipEmbedder
    from ldot_milvus.models.blip.files import BlipRerankerFiles

TEXT_LENGTH = 35
"""Tokens to which the authors cut texts."""

PAIR_BATCH = 32
STATES = "states"


class BlipReranker:
    """Scores pairs of a text and an image's vision states. Instances are thread-safe.

    Args:
        blip: the embedder whose network is used.

    Raises:
        ModelError: the configuration asks for [ENC], and the network has no embedding for it.
    """

    dot_weight = 1.0
    former_fingerprints: tuple[str, ...] = ()

    def __init__(self, blip: BlipEmbedder) -> None:
        self.name = blip.name
        self._blip = blip
        self._first = None if blip.files.first_token == "cls" else _enc_id(blip)

    @property
    def fingerprint(self) -> str:
        """Hash of everything that determines the region data of an image: 32 hex digits."""
        return self._blip.files.features_fingerprint

    def keep(self, features: Sequence[PatchFeatures]) -> list[KeptImage]:
        """Return the vision states in half precision.

        Raises:
            InputError: a value is not finite or exceeds the range of half precision.
        """
        kept: list[KeptImage] = []
        for one in features:
            with np.errstate(over="ignore"):
                states = one.states.float().cpu().numpy().astype(np.float16)
            if not np.isfinite(states).all():
                raise InputError("the vision states are not finite, or exceed the range of half precision (65,504)")
            kept.append({STATES: states})
        return kept

    def check(self, kept: KeptImage) -> None:
        """Validate region data that was read from a store.

        Raises:
            InputError: the states are missing or have another shape. The message says which.
        """
        if STATES not in kept:
            raise InputError(f"the region data lack {STATES}; they contain {', '.join(kept) or 'no array'}")
        shape, expected = kept[STATES].shape, self._blip.files.states_shape
        if shape != expected:
            raise InputError(f"the vision states have the shape {shape}, and model {self.name!r} reads {expected}")

    def score(self, texts: Iterable[Text], kept: Sequence[KeptImage]) -> Array:
        """Score text i with photo i.

        Args:
            texts: n texts, truncated to 35 tokens as by the authors.
            kept: the region data of n photos.

        Returns:
            float32 (n,), logits of "match"; higher is better.

        Raises:
            UsageError: ``texts`` is a single string, or a text is empty or given as token ids.
        """
        return self.score_and_match(texts, kept)[0]

    def score_and_match(self, texts: Iterable[Text], kept: Sequence[KeptImage]) -> tuple[Array, Array]:
        """Score text i with photo i.

        Returns:
            The scores of :meth:`score`, and the logits (n,) of the head's softmax probability of "match": the logit of
            "match" minus that of "no match".
        """
        tokens = self._blip.texts.ids(words_only(self.name, texts), TEXT_LENGTH)
        if self._first is not None:
            tokens = [[self._first, *row[1:]] for row in tokens]
        logits = np.empty((len(tokens), 2), np.float32)
        for batch in _batches(tokens, kept):
            logits[[pair for pairs in batch for pair in pairs]] = self._logits(tokens, kept, batch)
        return logits[:, 1], logits[:, 1] - logits[:, 0]

    @computation
    @torch.inference_mode()
    def _logits(self, tokens: list[list[int]], kept: Sequence[KeptImage], batch: list[list[int]]) -> Array:
        """Return the head's logits (n, 2) for the pairs of I images, each with the same number of texts."""
        blip = self._blip
        states = np.stack([kept[pairs[0]][STATES] for pairs in batch])
        images = torch.from_numpy(states).to(blip.device).to(blip.dtype)
        ids, mask = blip.texts.padded([tokens[pair] for pairs in batch for pair in pairs])
        state = text_state(blip.model.text_encoder, ids, mask, images)
        logits: Array = blip.model.itm_head(state).float().cpu().numpy()
        return logits

    @computation
    @torch.inference_mode()
    def explain(self, text: str, kept: KeptImage) -> Explanation:
        """Compare each word of a text with each patch of a photo, see :meth:`.explanation.Explains.explain`.

        The weights are the cross-attention of the last layers, the mean over their heads.
        """
        self.check(kept)
        blip = self._blip
        tokens, words = blip.texts.words(text, TEXT_LENGTH)
        if self._first is not None:
            tokens = [self._first, *tokens[1:]]
        states = torch.from_numpy(np.asarray(kept[STATES])[None]).to(blip.device).to(blip.dtype)
        attention: list[torch.Tensor] = []
        text_state(blip.model.text_encoder, *blip.texts.padded([tokens]), states, attention)
        weights = torch.stack(attention[-ATTENTION_LAYERS:]).mean(0)[0, :, 1:]  # the first state is that of the photo
        return explanation(words, weights.cpu().numpy(), grid_boxes(math.isqrt(weights.shape[1])))


class SecondPassBlipReranker(BlipReranker):
    """The re-ranker of a BLIP model under another model, whose image features it cannot read.

    Attributes:
        least_side: None, photos are decoded at full size.
    """

    least_side: int | None = None

    def image_features(self, images: Iterable[ImageInput]) -> list[PatchFeatures]:
        """Run BLIP's own vision transformer over photos.

        Raises:
            InputError: an image cannot be read, or is given as region features.
        """
        return self._blip.image_features(images)


def load_blip_reranker(files: BlipRerankerFiles, embedder: Embedder) -> BlipReranker:
    """Load the re-ranker for an embedder, on the embedder's device.

    Raises:
        ModelError: files are missing or do not fit together.
    """
    from ldot_milvus.models.blip.embedder import BlipEmbedder, load_blip

    if isinstance(embedder, BlipEmbedder) and embedder.files.folder == files.folder:
        return embedder.reranker
    device, dtype = device_of(embedder)
    blip = load_blip(files.blip, device=device, dtype=dtype)
    if isinstance(embedder, BlipEmbedder) and embedder.files.features_fingerprint == files.fingerprint:
        return BlipReranker(blip)  # a copy with the same vision part
    return SecondPassBlipReranker(blip)


def _batches(tokens: Sequence[Sequence[int]], kept: Sequence[KeptImage]) -> list[list[list[int]]]:
    """Divide pairs into batches of images with the same number of texts, of similar lengths.

    Returns:
        Batches; a batch has a list of pairs for each of its images, at most :data:`PAIR_BATCH` pairs in all.
    """
    by_image: defaultdict[int, list[int]] = defaultdict(list)
    for pair, record in enumerate(kept):
        by_image[id(record)].append(pair)
    rows: list[list[int]] = []
    for pairs in by_image.values():
        rows += batched(sorted(pairs, key=lambda pair: len(tokens[pair])), PAIR_BATCH)
    rows.sort(key=lambda pairs: (len(pairs), len(tokens[pairs[-1]])))
    batches: list[list[list[int]]] = []
    for count, same in groupby(rows, key=len):
        batches += batched(same, max(1, PAIR_BATCH // count))
    return batches


def _enc_id(blip: BlipEmbedder) -> int:
    """The id of [ENC], which the authors add to the vocabulary as its last entry, after [DEC]."""
    size = int(blip.model.config.text_config.vocab_size)
    known = blip.tokenizer.get_vocab().get("[ENC]")
    if known is not None:
        return int(known)
    if len(blip.tokenizer) >= size:
        raise ModelError(
            f"model {blip.name!r} has no embedding for [ENC], the first token of BLIP's training: if it was trained "
            'with [CLS], set "ldot_first_token": "cls" in its config.json'
        )
    return size - 1
