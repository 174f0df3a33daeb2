"""Batches for training. A batch depends on the seed and its number only.

Because batches share no state, a killed run resumes with exactly the next batch, and the processes of a run agree on
every batch without communication.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from ldot_milvus.errors import LdotError, UsageError
from ldot_milvus.models.lightningdot.inputs import pad_regions, stack_labels
from ldot_milvus.models.lightningdot.pretraining import IGNORE_INDEX
from ldot_milvus.models.texts import token_ids
from ldot_milvus.regions import Regions
from ldot_milvus.training.data import CaptionedPhotos
from ldot_milvus.training.masking import Vocabulary, mask_regions, mask_words
from ldot_milvus.training.recipe import Stage

Tokens = list[list[list[int]]]
"""Token ids of every photo's captions."""
PairIndices = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Index of each pair's photo, and index of its caption among the photo's captions; pairs of a photo are neighbours."""
FirstStageVectors = tuple[NDArray[np.float32], NDArray[np.float32]]
"""The first stage's vectors of all captions, in order of photo (C, dim), and of all photos (N, dim)."""

CAPTIONS, ORDER, NEGATIVES, PAIR, TURN = range(5)
"""Purposes of random generators: each purpose has a sequence of its own."""


@dataclass
class Batch:
    """B photos with n captions each: text i belongs to photo i // n.

    Attributes:
        ids: int64 (B n, T), token ids.
        mask: bool (B n, T), True = token, False = padding.
        features: float32 (B, R, d), the regions' features.
        boxes: float32 (B, R, 7), the regions' boxes.
        region_mask: bool (B, R), True = region, False = padding.
        label_probabilities: float32 (B, places, labels), for a model with label names.
        objective: the objective of pre-training; "cmr" in other tasks.
        caption_embeddings: (B, dim), the meaning of each photo's captions, for soft targets.
        similarities: float32 (B n, B), the first stage's dot product of text i and photo j.
        complete: the same pairs without dropped words and features, for the teacher of distillation.
        labels: int64 (B n, T), the original ids of masked tokens.
        masked_regions: bool (B, R), True = masked region.
        soft_labels: float32 (N, classes), the detector's class probabilities of the N masked regions.
    """

    ids: Tensor
    mask: Tensor
    features: Tensor
    boxes: Tensor
    region_mask: Tensor
    objective: str = "cmr"
    label_probabilities: Tensor | None = None
    caption_embeddings: Tensor | None = None
    similarities: Tensor | None = None
    complete: Batch | None = None
    labels: Tensor | None = None
    masked_regions: Tensor | None = None
    soft_labels: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """Return a copy of the batch on a device."""
        moved: dict[str, Any] = {
            field.name: value.to(device)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), (Tensor, Batch))
        }
        return replace(self, **moved)


class Batches(Dataset["Batch | LdotError"]):
    """The batches of this process, by number, with words, regions and features dropped at random as the stage requires.

    A batch has the stage's number of captions of each of its photos. They have all lengths: with batches of one length,
    the model would never learn to compare a short caption with a long one.

    Args:
        photos: the photos with their captions.
        tokens: of the captions.
        stage: batch size, hard negatives, dropout and seed.
        vocabulary: from which masking draws words.
        process, processes: index of this process, and their number.
        caption_embeddings: (N, dim), the meaning of each photo's captions, for soft targets.
        first_stage: vectors by which a compressed re-ranker's wrong pairs are chosen.

    Attributes:
        hard: int32 (N, pool, 2), the hard negatives of each photo as indices of a photo and of its caption (-1 = any);
            see :mod:`.hard_negatives`. If set, a batch consists of groups of a pair and its hard negatives.

    Raises:
        UsageError: there are too few photos for a batch of all processes, or a photo has too few captions.
    """

    hard: NDArray[np.int32] | None = None

    def __init__(
        self, photos: CaptionedPhotos, tokens: Tokens, stage: Stage, vocabulary: Vocabulary, *,
        process: int = 0, processes: int = 1, caption_embeddings: Tensor | None = None,
        first_stage: FirstStageVectors | None = None,
    ) -> None:  # fmt: skip
        self._photos, self._tokens, self._stage, self._vocabulary = photos, tokens, stage, vocabulary
        self._process, self._caption_embeddings = process, caption_embeddings
        self._first_stage = first_stage
        self._first_caption = np.cumsum([0, *map(len, tokens)])
        self._captions = stage.captions_per_photo
        different = stage.batch_size * processes // self._captions
        self._seeds = different // (1 + stage.hard_negatives)
        fewest = min(map(len, tokens))
        self._rounds = fewest // self._captions
        self._pass_length = len(photos) // self._seeds
        if len(photos) < different:
            raise UsageError(
                f"{len(photos)} photos are too few for batches of {different} different photos: lower batch_size"
            )
        if not self._rounds:
            raise UsageError(f"a photo has {fewest} captions, fewer than captions_per_photo: set it to {fewest}")
        self._epoch_turns = lru_cache(2)(self._draw_turns)
        self._pass_order = lru_cache(2)(self._draw_order)

    @property
    def epoch_length(self) -> int:
        """Number of batches in an epoch.

        An epoch shows n different captions of each photo, with n the smallest number of captions of a photo.
        """
        return self._pass_length * self._rounds

    def __getitem__(self, number: int) -> Batch | LdotError:
        """Return a batch, or the error of a photo: if raised, a DataLoader worker would wrap it in a traceback."""
        try:
            return self._build(number)
        except LdotError as error:
            return error

    def pair_indices(self, number: int) -> PairIndices:
        """Return the pairs of batch ``number``, of all processes."""
        past_passes, place = divmod(number, self._pass_length)
        rows = self._pass_order(past_passes)[place * self._seeds : (place + 1) * self._seeds]
        drawn = self._epoch_turns(past_passes // self._rounds)
        first = past_passes % self._rounds * self._captions
        turns = drawn[first : first + self._captions, rows].T.ravel()
        rows = rows.repeat(self._captions)
        if self._stage.hard_negatives == 0:
            return rows, turns
        return self._with_negatives(rows, turns, self._rng(NEGATIVES, number))

    def objective(self, number: int) -> str:
        """Return the objective of batch ``number`` in pre-training, "cmr" in other tasks."""
        mix = self._stage.mix
        if not mix:
            return "cmr"
        weights = np.array(list(mix.values()))
        return list(mix)[self._rng(TURN, number).choice(len(mix), p=weights / weights.sum())]

    def _rng(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng((self._stage.seed, *purpose))

    def _draw_turns(self, epoch: int) -> NDArray[np.int64]:
        rng = self._rng(CAPTIONS, epoch)
        drawn = self._rounds * self._captions
        return np.stack([rng.permutation(len(captions))[:drawn] for captions in self._tokens], axis=1)

    def _draw_order(self, past_passes: int) -> NDArray[np.int64]:
        return self._rng(ORDER, past_passes).permutation(len(self._photos))

    def _with_negatives(
        self, rows: NDArray[np.int64], turns: NDArray[np.int64], rng: np.random.Generator
    ) -> PairIndices:
        """Insert the negatives of each pair after it; no photo occurs twice in a batch."""
        assert self.hard is not None, "hard negatives are mined before the first batch"
        used = set(rows.tolist())
        pairs: list[tuple[int, int]] = []
        for row, turn in zip(rows.tolist(), turns.tolist(), strict=True):
            candidates = dict(self.hard[row][rng.permutation(self.hard.shape[1])].tolist())
            negatives = [(other, which) for other, which in candidates.items() if other not in used and other >= 0]
            negatives = negatives[: self._stage.hard_negatives]
            while len(negatives) < self._stage.hard_negatives:  # all other candidates are in the batch already
                other = int(rng.integers(len(self._photos)))
                if other not in used and other not in dict(negatives):
                    negatives.append((other, -1))
            used.update(dict(negatives))
            pairs.append((row, turn))
            pairs += [
                (other, int(rng.integers(len(self._tokens[other]))) if which < 0 else which)
                for other, which in negatives
            ]
        indices = np.array(pairs, np.int64)
        return indices[:, 0], indices[:, 1]

    def _build(self, number: int) -> Batch:
        first = self._process * self._stage.batch_size
        own = slice(first, first + self._stage.batch_size)
        rows, turns = (indices[own] for indices in self.pair_indices(number))
        objective = self.objective(number)
        photos = [
            _Photo(
                self._photos,
                [self._tokens[rows[place]][turn] for turn in turns[place : place + self._captions]],
                int(rows[place]),
                self._stage,
                self._rng(PAIR, number, first + place),
            )
            for place in range(0, len(rows), self._captions)
        ]
        ids, mask = pad([words for photo in photos for words in photo.disturbed_words])
        views = [photo.disturbed for photo in photos]
        batch = Batch(ids, mask, *region_tensors(views), objective, label_tensor(views))
        if self._stage.soft_targets and self._caption_embeddings is not None:
            batch.caption_embeddings = self._caption_embeddings[torch.from_numpy(rows[:: self._captions])]
        if self._first_stage is not None:
            texts, images = self._first_stage
            batch.similarities = torch.from_numpy(texts[self._first_caption[rows] + turns] @ images[rows].T)
        if self._stage.distilled:
            batch.complete = Batch(
                *pad([words for photo in photos for words in photo.words]),
                *region_tensors([photo.regions for photo in photos]),
            )
        if objective == "vmlm":
            masked = [
                mask_words(photo.disturbed_words[0], self._stage.masked, self._vocabulary, photo.rng)
                for photo in photos
            ]
            batch.ids = pad([ids for ids, _ in masked])[0]
            batch.labels = pad([labels for _, labels in masked], IGNORE_INDEX)[0]
        elif objective.startswith("smrm"):
            marks = [
                torch.from_numpy(mask_regions(len(photo.regions), self._stage.masked, photo.rng)) for photo in photos
            ]
            batch.masked_regions = nn.utils.rnn.pad_sequence(marks, batch_first=True)
            if objective != "smrm_features":
                labels = [photo.soft_labels()[marked.numpy()] for photo, marked in zip(photos, marks, strict=True)]
                batch.soft_labels = torch.from_numpy(np.concatenate(labels))
        return batch


class _Photo:
    """A random view of a photo and its captions, complete and with the stage's random dropout (``disturbed``)."""

    def __init__(
        self, photos: CaptionedPhotos, words: list[list[int]], row: int, stage: Stage, rng: np.random.Generator
    ) -> None:
        self.words, self.rng = words, rng
        self._name = photos.names[row]
        views = len(photos.views)
        regions = photos.regions(row, 0 if views == 1 or rng.random() < 0.5 else int(rng.integers(views)))
        if stage.regions_kept is not None:
            regions = regions.select(rng.permutation(len(regions))[: stage.regions_kept])
        self.regions = self.disturbed = regions
        if stage.feature_dropout:
            factors = drop_features(regions.features.shape, stage.feature_dropout, rng)
            self.disturbed = replace(regions, features=regions.features * factors)
        self.disturbed_words = [drop_words(caption, stage.words_dropped, rng) for caption in words]

    def soft_labels(self) -> NDArray[np.float32]:
        """Return the soft labels (n, classes) of the regions."""
        if self.regions.soft_labels is None:
            raise UsageError(
                f"{self._name}: its regions have no detector's soft labels, unlike others: extract them again"
            )
        return self.regions.soft_labels


def tokenize(tokenizer: PreTrainedTokenizerBase, photos: CaptionedPhotos, limit: int, vocabulary: int) -> Tokens:
    """Tokenize every photo's captions.

    Args:
        tokenizer: of the model.
        photos: the photos with their captions.
        limit: maximum number of tokens of a caption.
        vocabulary: size of the model's vocabulary.

    Raises:
        UsageError: a caption given as token ids has ids outside the vocabulary. The message names the photo.
    """
    flat = iter(token_ids(tokenizer, [text for texts in photos.captions for text in texts], limit))
    tokens = [[next(flat) for _ in texts] for texts in photos.captions]
    for name, captions in zip(photos.names, tokens, strict=True):
        if max(map(max, captions)) >= vocabulary:
            raise UsageError(f"{name}: a caption has token ids above the model's {vocabulary}: give captions as texts")
    return tokens


def pad(sequences: Sequence[list[int]], filling: int = 0) -> tuple[Tensor, Tensor]:
    """Pad lists of token ids on the right with ``filling``: int64 ids (B, T), and a bool mask (B, T), True = token."""
    listed = [torch.tensor(sequence) for sequence in sequences]
    ids = nn.utils.rnn.pad_sequence(listed, batch_first=True, padding_value=filling)
    mask = torch.arange(ids.shape[1]) < torch.tensor([len(sequence) for sequence in sequences])[:, None]
    return ids, mask


def region_tensors(regions: Sequence[Regions]) -> tuple[Tensor, Tensor, Tensor]:
    """Pad regions as :func:`.lightningdot.inputs.pad_regions` does: features, boxes and mask as tensors."""
    features, boxes, mask = map(torch.from_numpy, pad_regions(regions))
    return features, boxes, mask


def label_tensor(regions: Sequence[Regions]) -> Tensor | None:
    """Stack label probabilities as :func:`.lightningdot.inputs.stack_labels` does, as a tensor."""
    labels = stack_labels(regions)
    return None if labels is None else torch.from_numpy(labels)


def by_length(mask: Tensor, groups: int) -> Iterator[tuple[Tensor, int]]:
    """Group texts of similar length, so that little padding is computed.

    Args:
        mask: (B, T), True = token.
        groups: number of groups.

    Yields:
        The indices of a group's texts, and the length of its longest text.
    """
    lengths = mask.sum(1)
    for rows in lengths.argsort(stable=True).chunk(groups):
        yield rows, int(lengths[rows].max())


def drop_words(tokens: list[int], share: float, rng: np.random.Generator) -> list[int]:
    """Return ``tokens`` without a random share of the words, but with [CLS] and [SEP]."""
    kept = rng.random(len(tokens)) >= share
    kept[[0, -1]] = True
    return [token for token, keep in zip(tokens, kept, strict=True) if keep]


def drop_features(shape: Sequence[int], share: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw dropout factors from random bytes; torch's dropout would take a tenth of a step on a CPU."""
    threshold = round(256 * share)
    kept = np.frombuffer(rng.bytes(int(np.prod(shape))), np.uint8).reshape(shape) >= threshold
    return kept * np.float32(256 / (256 - threshold))
