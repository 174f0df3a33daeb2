"""The joint encoder's input: ``[CLS] text [SEP] <image> ... <image> [SEP]``, with all padding at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class JointInputs:
    """B sequences of at most L positions.

    Attributes:
        ids: int64 (B, L), 0 in the padding.
        types: int64 (B, L), 0 for [CLS], the text and its [SEP], 1 for the image and its [SEP], 0 in the padding.
        mask: bool (B, L), True = no padding.
        images: bool (B, L), True at the places of the image tokens.
    """

    ids: Tensor
    types: Tensor
    mask: Tensor
    images: Tensor


def joint_inputs(ids: Tensor, mask: Tensor, image_mask: Tensor, image_token_id: int) -> JointInputs:
    """Build the sequences of text i with image i.

    Args:
        ids: int64 (B, T), token ids of the texts, [CLS] first and [SEP] last.
        mask: (B, T), 1 = token, 0 = padding.
        image_mask: bool (B, N), True = image token, False = padding.
        image_token_id: id of ``<image>``.

    Returns:
        Sequences that do not depend on how much padding the texts and images have.
    """
    mask, count = mask.bool(), len(ids)
    closing = ids.gather(1, mask.sum(1, keepdim=True) - 1)  # the text's [SEP] closes the image too
    places = torch.cat([torch.zeros_like(mask), image_mask, image_mask.new_zeros(count, 1)], dim=1)
    valid = torch.cat([mask, image_mask, image_mask.new_ones(count, 1)], dim=1)
    joined = torch.cat([ids, torch.full_like(image_mask, image_token_id, dtype=ids.dtype), closing], dim=1)
    types = torch.zeros_like(joined)
    types[:, ids.shape[1] :] = 1
    # Valid positions first, in their order: a text's own [SEP] is then beside the image, as if there were no padding.
    order = (~valid).to(torch.int8).argsort(dim=1, stable=True)[:, : int(valid.sum(1).max())]
    valid = valid.gather(1, order)
    joined, types, places = (values.gather(1, order) for values in (joined, types, places))
    return JointInputs(joined * valid, types * valid, valid, places & valid)


def pad_tokens(tokens: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Pad the tokens of B images, each (Li, d), to (B, L, d), and return a bool mask (B, L), True = token."""
    padded = nn.utils.rnn.pad_sequence(list(tokens), batch_first=True)
    lengths = torch.tensor([len(one) for one in tokens], device=padded.device)
    return padded, torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]
