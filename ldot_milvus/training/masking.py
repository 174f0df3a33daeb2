"""Mask words of a caption or regions of a photo for masked modelling (LightningDOT, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from ldot_milvus.errors import UsageError
from ldot_milvus.models.lightningdot.pretraining import IGNORE_INDEX


@dataclass(frozen=True)
class Vocabulary:
    """The ids of a WordPiece vocabulary that masking needs.

    Attributes:
        mask: id of [MASK].
        first: first id of a word.
        size: number of entries; words have the ids from ``first`` to ``size`` - 1.
    """

    mask: int
    first: int
    size: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
        """Read the ids from a tokenizer, whose words follow the special tokens, as in every BERT.

        Raises:
            UsageError: the tokenizer has no [MASK].
        """
        if tokenizer.mask_token_id is None:
            raise UsageError("the model's tokenizer has no [MASK], which training needs: use a BERT's tokenizer")
        return cls(tokenizer.mask_token_id, max(tokenizer.all_special_ids) + 1, len(tokenizer))


def mask_words(
    ids: list[int], share: float, vocabulary: Vocabulary, rng: np.random.Generator
) -> tuple[list[int], list[int]]:
    """Mask a random share of the words, at least one; [CLS] and [SEP] only if there is no word.

    Of the masked words, 80 % are replaced by [MASK], 10 % by a random word, and 10 % are unchanged.

    Returns:
        The ids with masked words, and labels: the original ids of masked words, :data:`IGNORE_INDEX` elsewhere.
    """
    masked = rng.random(len(ids)) < share
    masked[[0, -1]] = False
    if not masked.any():
        masked[rng.integers(1, max(2, len(ids) - 1))] = True
    draw = rng.random(len(ids))
    random_words = rng.integers(vocabulary.first, vocabulary.size, len(ids))
    replacements = np.where(draw < 0.8, vocabulary.mask, np.where(draw < 0.9, random_words, ids))
    return np.where(masked, replacements, ids).tolist(), np.where(masked, ids, IGNORE_INDEX).tolist()


def mask_regions(count: int, share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Draw a mask (count,) that is True for a random share of the regions, at least one."""
    masked = rng.random(count) < share
    if not masked.any():
        masked[rng.integers(count)] = True
    return masked
