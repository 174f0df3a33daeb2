"""What masked modelling hides: some words of a caption, some regions of a photo (LightningDOT, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from ldot_milvus.errors import UsageError
from ldot_milvus.models.lightningdot.pretraining import IGNORE_INDEX


@dataclass(frozen=True)
class Vocabulary:
    """What masking needs of a WordPiece vocabulary: the id of [MASK], and the ids ``first`` to ``size`` of words."""

    mask: int
    first: int
    size: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
        """Of a tokenizer; its words are the ids after the special ones, as in every BERT's.

        Raises:
            UsageError: it has no [MASK].
        """
        if tokenizer.mask_token_id is None:
            raise UsageError("the model's tokenizer has no [MASK], which pre-training needs")
        return cls(tokenizer.mask_token_id, max(tokenizer.all_special_ids) + 1, len(tokenizer))


def mask_words(
    ids: list[int], share: float, vocabulary: Vocabulary, rng: np.random.Generator
) -> tuple[list[int], list[int]]:
    """Ids with a ``share`` of the words hidden (80 % as [MASK], 10 % as another word, 10 % as they are), and labels.

    At least one word is asked for; [CLS] and [SEP] never are, unless there is nothing else.
    """
    asked = rng.random(len(ids)) < share
    asked[[0, -1]] = False
    if not asked.any():
        asked[rng.integers(1, max(2, len(ids) - 1))] = True
    how = rng.random(len(ids))
    others = rng.integers(vocabulary.first, vocabulary.size, len(ids))
    shown = np.where(how < 0.8, vocabulary.mask, np.where(how < 0.9, others, ids))
    masked = np.where(asked, shown, ids)
    return masked.tolist(), np.where(asked, ids, IGNORE_INDEX).tolist()


def mask_regions(count: int, share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """True for a ``share`` of the regions, at least one."""
    hidden = rng.random(count) < share
    if not hidden.any():
        hidden[rng.integers(count)] = True
    return hidden
