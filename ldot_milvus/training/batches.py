"""Batches for training, each a function of the seed and its number alone.

Nothing is carried from one batch to the next, so a run that was killed goes on with the very batch it was at, and the
processes of a run agree on every batch without talking to each other.
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
from ldot_milvus.models.lightningdot.inputs import pad_regions, token_ids
from ldot_milvus.models.lightningdot.pretraining import IGNORE_INDEX
from ldot_milvus.training.data import CaptionedPhotos
from ldot_milvus.training.masking import Vocabulary, mask_regions, mask_words
from ldot_milvus.training.recipe import Stage

Tokens = list[list[list[int]]]
"""Token ids of every photo's captions."""
Chosen = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Rows of photos, and which of its captions each comes with."""

CAPTIONS, ORDER, NEGATIVES, PAIR, TURN = range(5)
"""What a random generator is for: each draws from a sequence of its own."""


@dataclass
class Batch:
    """B pairs, text i with photo i.

    Attributes:
        ids, mask: (B, T) tokens, and true where there is one.
        features, boxes, region_mask: (B, R, d), (B, R, 7), and (B, R), true where there is a region.
        objective: of pre-training, "cmr" elsewhere.
        caption_embeddings: (B, dim) what each photo's captions mean, for soft targets.
        whole: the same pairs with nothing left out, for a teacher.
        labels: (B, T) the words behind masked ones.
        masked_regions: (B, R) regions that are masked; ``soft_labels`` (N, classes) are theirs.
    """

    ids: Tensor
    mask: Tensor
    features: Tensor
    boxes: Tensor
    region_mask: Tensor
    objective: str = "cmr"
    caption_embeddings: Tensor | None = None
    whole: Batch | None = None
    labels: Tensor | None = None
    masked_regions: Tensor | None = None
    soft_labels: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        moved: dict[str, Any] = {
            field.name: value.to(device)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), (Tensor, Batch))
        }
        return replace(self, **moved)


class Batches(Dataset["Batch | LdotError"]):
    """Batch number n of this process, with what the stage leaves out at random.

    The pairs of one batch are of different photos, and captions of all lengths meet in it: were batches of one length,
    the model would never learn to compare a short one with a long one.

    Attributes:
        hard: (N, pool, 2) for each photo others that are near it, as row and caption (-1 = any); see
            :mod:`.hard_negatives`. Where it is set, a batch is groups of a pair and its hard negatives.
    """

    hard: NDArray[np.int32] | None = None

    def __init__(
        self, photos: CaptionedPhotos, tokens: Tokens, stage: Stage, vocabulary: Vocabulary, *,
        process: int = 0, processes: int = 1, caption_embeddings: Tensor | None = None,
    ) -> None:  # fmt: skip
        self._photos, self._tokens, self._stage, self._vocabulary = photos, tokens, stage, vocabulary
        self._process, self._caption_embeddings = process, caption_embeddings
        self._pairs = stage.batch_size * processes
        self._seeds = self._pairs // (1 + stage.hard_negatives)
        self._rounds = min(map(len, tokens))
        self._a_pass = len(photos) // self._seeds
        if len(photos) < self._pairs:
            raise UsageError(
                f"{len(photos)} photos are too few for batches of {self._pairs} pairs of different photos: "
                "lower batch_size"
            )
        self._epoch_turns = lru_cache(2)(self._draw_turns)
        self._pass_order = lru_cache(2)(self._draw_order)

    @property
    def an_epoch(self) -> int:
        """Batches in which every caption is shown (of the photo with the fewest; others show as many at random)."""
        return self._a_pass * self._rounds

    def __getitem__(self, number: int) -> Batch | LdotError:
        """The batch, or why a photo of it cannot be read (raised here, a worker would wrap it in its traceback)."""
        try:
            return self._build(number)
        except LdotError as error:
            return error

    def chosen(self, number: int) -> Chosen:
        """The pairs of batch ``number``, of all processes."""
        past, place = divmod(number, self._a_pass)
        rows = self._pass_order(past)[place * self._seeds : (place + 1) * self._seeds]
        turns = self._epoch_turns(past // self._rounds)[past % self._rounds, rows]
        if self._stage.hard_negatives == 0:
            return rows, turns
        return self._with_negatives(rows, turns, self._rng(NEGATIVES, number))

    def objective(self, number: int) -> str:
        """Whose turn it is in pre-training."""
        mix = self._stage.mix
        if not mix:
            return "cmr"
        weights = np.array(list(mix.values()))
        return list(mix)[self._rng(TURN, number).choice(len(mix), p=weights / weights.sum())]

    def _rng(self, *what: int) -> np.random.Generator:
        return np.random.default_rng((self._stage.seed, *what))

    def _draw_turns(self, epoch: int) -> NDArray[np.int64]:
        rng = self._rng(CAPTIONS, epoch)
        return np.stack([rng.permutation(len(captions))[: self._rounds] for captions in self._tokens], axis=1)

    def _draw_order(self, past: int) -> NDArray[np.int64]:
        return self._rng(ORDER, past).permutation(len(self._photos))

    def _with_negatives(self, rows: NDArray[np.int64], turns: NDArray[np.int64], rng: np.random.Generator) -> Chosen:
        """Every pair followed by its negatives; no photo is there twice."""
        assert self.hard is not None, "hard negatives are mined before the first batch"
        taken = set(rows.tolist())
        pairs: list[tuple[int, int]] = []
        for row, turn in zip(rows.tolist(), turns.tolist(), strict=True):
            near = dict(self.hard[row][rng.permutation(self.hard.shape[1])].tolist())
            found = [(other, which) for other, which in near.items() if other not in taken and other >= 0]
            found = found[: self._stage.hard_negatives]
            while len(found) < self._stage.hard_negatives:  # all that are near are in the batch already
                other = int(rng.integers(len(self._photos)))
                if other not in taken and other not in dict(found):
                    found.append((other, -1))
            taken.update(dict(found))
            pairs.append((row, turn))
            pairs += [
                (other, int(rng.integers(len(self._tokens[other]))) if which < 0 else which) for other, which in found
            ]
        both = np.array(pairs, np.int64)
        return both[:, 0], both[:, 1]

    def _build(self, number: int) -> Batch:
        first = self._process * self._stage.batch_size
        own = slice(first, first + self._stage.batch_size)
        rows, turns = (part[own] for part in self.chosen(number))
        objective = self.objective(number)
        pairs = [
            _Pair(self._photos, self._tokens[row][turn], int(row), self._stage, self._rng(PAIR, number, first + place))
            for place, (row, turn) in enumerate(zip(rows.tolist(), turns.tolist(), strict=True))
        ]
        ids, mask = pad([pair.disturbed_words for pair in pairs])
        batch = Batch(ids, mask, *pad_regions([pair.disturbed for pair in pairs]), objective)
        if self._stage.soft_targets and self._caption_embeddings is not None:
            batch.caption_embeddings = self._caption_embeddings[torch.from_numpy(rows)]
        if self._stage.distilled:
            batch.whole = Batch(*pad([pair.words for pair in pairs]), *pad_regions([pair.regions for pair in pairs]))
        if objective == "vmlm":
            masked = [
                mask_words(pair.disturbed_words, self._stage.masked, self._vocabulary, pair.rng) for pair in pairs
            ]
            batch.ids = pad([ids for ids, _ in masked])[0]
            batch.labels = pad([labels for _, labels in masked], IGNORE_INDEX)[0]
        elif objective.startswith("smrm"):
            marks = [torch.from_numpy(mask_regions(len(pair.regions), self._stage.masked, pair.rng)) for pair in pairs]
            batch.masked_regions = nn.utils.rnn.pad_sequence(marks, batch_first=True)
            if objective != "smrm_features":
                labels = [pair.soft_labels()[one.numpy()] for pair, one in zip(pairs, marks, strict=True)]
                batch.soft_labels = torch.from_numpy(np.concatenate(labels))
        return batch


class _Pair:
    """A caption and a random view of its photo, with what the stage leaves out."""

    def __init__(
        self, photos: CaptionedPhotos, words: list[int], row: int, stage: Stage, rng: np.random.Generator
    ) -> None:
        self.words, self.rng = words, rng
        self._name = photos.names[row]
        views = len(photos.views)
        seen = photos.regions(row, 0 if views == 1 or rng.random() < 0.5 else int(rng.integers(views)))
        if stage.regions_kept is not None:
            seen = seen.select(rng.permutation(len(seen))[: stage.regions_kept])
        self.regions = self.disturbed = seen
        if stage.feature_dropout:
            factors = drop_features(seen.features.shape, stage.feature_dropout, rng)
            self.disturbed = replace(seen, features=seen.features * factors)
        self.disturbed_words = drop_words(words, stage.words_dropped, rng)

    def soft_labels(self) -> NDArray[np.float32]:
        """(n, classes) of the regions that were kept."""
        if self.regions.soft_labels is None:
            raise UsageError(f"{self._name}: its regions have no soft labels of a detector, as others do")
        return self.regions.soft_labels


def tokenize(tokenizer: PreTrainedTokenizerBase, photos: CaptionedPhotos, limit: int, vocabulary: int) -> Tokens:
    """Token ids of every photo's captions, each cut to ``limit``.

    Raises:
        UsageError: a caption brings ids that a ``vocabulary`` of so many words does not have; the photo is named.
    """
    flat = iter(token_ids(tokenizer, [text for texts in photos.captions for text in texts], limit))
    tokens = [[next(flat) for _ in texts] for texts in photos.captions]
    for name, captions in zip(photos.names, tokens, strict=True):
        if max(map(max, captions)) >= vocabulary:
            raise UsageError(
                f"{name}: a caption has token ids above the model's {vocabulary}: it is of another vocabulary"
            )
    return tokens


def pad(sequences: Sequence[list[int]], filling: int = 0) -> tuple[Tensor, Tensor]:
    """Token lists to ids (B, T) and mask (B, T), padded on the right."""
    listed = [torch.tensor(sequence) for sequence in sequences]
    ids = nn.utils.rnn.pad_sequence(listed, batch_first=True, padding_value=filling)
    mask = torch.arange(ids.shape[1]) < torch.tensor([len(sequence) for sequence in sequences])[:, None]
    return ids, mask


def by_length(mask: Tensor, groups: int) -> Iterator[tuple[Tensor, int]]:
    """Rows of ``mask`` (B, T) in ``groups`` of about one length, so that little padding is computed: rows, length."""
    lengths = mask.sum(1)
    for rows in lengths.argsort(stable=True).chunk(groups):
        yield rows, int(lengths[rows].max())


def drop_words(tokens: list[int], share: float, rng: np.random.Generator) -> list[int]:
    """``tokens`` without a random share of the words; [CLS] and [SEP] stay."""
    kept = rng.random(len(tokens)) >= share
    kept[[0, -1]] = True
    return [token for token, keep in zip(tokens, kept, strict=True) if keep]


def drop_features(shape: Sequence[int], share: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Factors of dropout; from random bytes, since torch's own takes a tenth of a step on a CPU."""
    cut = round(256 * share)
    kept = np.frombuffer(rng.bytes(int(np.prod(shape))), np.uint8).reshape(shape) >= cut
    return kept * np.float32(256 / (256 - cut))
