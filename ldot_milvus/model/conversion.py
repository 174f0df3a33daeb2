"""The published checkpoints' tensor names, and ours.

Layouts (github intersun/LightningDOT, github ChenRocks/UNITER):

- pre-trained: a state dict, encoders under ``bert.img_model.`` and ``bert.txt_model.``, heads beside them;
- fine-tuned: ``{"model_dict": ...}`` with ``img_model.`` and ``txt_model.``;
- UNITER re-ranker: a state dict under ``bert.`` or ``uniter.``, with ``rank_output``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

_DUAL_ENCODER = [
    (r"^bert\.(?=img_model|txt_model)", ""),
    (r"^img_model\.bert\.", "image_model."),
    (r"^txt_model\.bert\.", "text_model."),
    (r"^img_model\.encode_proj\.", "image_projection."),
    (r"^txt_model\.encode_proj\.", "text_projection."),
]
_RERANKER = [(r"^uniter\.", "bert.")]
_OLD_SPELLINGS = [(r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")]
_BUFFERS = "embeddings.position_ids"


def convert_dual_encoder(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of a :class:`LightningDOT` from a published one; pre-training heads are left out."""
    return _convert(published, _DUAL_ENCODER, ("image_model.", "text_model.", "image_projection.", "text_projection."))


def convert_reranker(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of a :class:`CrossAttentionReranker` from UNITER's; the matching head is left out."""
    return _convert(published, _RERANKER, ("bert.", "rank_output."))


def _convert(published: Mapping[str, Tensor], rules: list[tuple[str, str]], kept: tuple[str, ...]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name, tensor in published.items():
        for pattern, replacement in rules + _OLD_SPELLINGS:
            name = re.sub(pattern, replacement, name)
        if name.startswith(kept) and not name.endswith(_BUFFERS):
            state[name] = tensor
    return state
