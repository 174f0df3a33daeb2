"""The files of an EDJE re-ranker, read without torch: config.json, model.safetensors and its tokenizer."""

from __future__ import annotations

import json
from functools import cached_property
from typing import TYPE_CHECKING

from typing_extensions import override

from ldot_milvus.errors import ModelError
from ldot_milvus.models.base import Embedder, ModelFiles, RerankerFiles

if TYPE_CHECKING:
    from ldot_milvus.models.edje.reranker import EdjeTokenReranker


class EdjeFiles(RerankerFiles):
    """The files of an EDJE re-ranker, which reads the tokens of any first stage of the right width."""

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the first stage's features, the configuration and the weights: 32 hex digits.

        The weight of the dot product only changes the score, so it is left out.
        """
        config = {name: value for name, value in self.config.items() if name != "dot_weight"}
        about = json.dumps([self.model.features_fingerprint, config], sort_keys=True)
        return self._digest(about, [self.folder / "model.safetensors"])

    @override
    def load(self, embedder: Embedder) -> EdjeTokenReranker:
        from ldot_milvus.models.edje.reranker import load_edje

        width = token_width(self.model)
        if width is not None and width != self.config.get("token_dim"):
            raise ModelError(wrong_width(self.name, self.config.get("token_dim"), embedder.name, width))
        return load_edje(self, embedder)


def token_width(model: ModelFiles) -> int | None:
    """Return the width of a model's image tokens as its configuration names it; None if it does not."""
    width = model.config.get("region_dim") or (model.config.get("vision_config") or {}).get("hidden_size")
    return None if width is None else int(width)


def wrong_width(reranker: str, reads: int | None, model: str, gives: int) -> str:
    """Return the message for a first stage whose tokens have another width than the re-ranker reads."""
    return (
        f"re-ranker {reranker!r} reads image tokens of width {reads}, and model {model!r} gives {gives}: name the "
        "model that it was trained on, or train a re-ranker for this one (docs/training.md)"
    )
