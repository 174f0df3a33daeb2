"""The files of an EDJE re-ranker, read without torch: config.json, model.safetensors and its tokenizer."""

from __future__ import annotations

import json
from functools import cached_property
from typing import TYPE_CHECKING

from typing_extensions import override

from ldot_milvus.errors import ModelError
from ldot_milvus.models.base import Embedder, RerankerFiles

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
    def check(self) -> None:
        reads, gives = self.config.get("region_dim") or self.config.get("token_dim"), self.model.token_width
        if gives not in (None, reads):
            raise ModelError(wrong_width(self.name, reads, self.model.name, gives))

    @override
    def load(self, embedder: Embedder) -> EdjeTokenReranker:
        from ldot_milvus.models.edje.reranker import load_edje

        self.check()
        return load_edje(self, embedder)


def wrong_width(reranker: str, reads: int | None, model: str, gives: int | None) -> str:
    """Return the message for a first stage whose tokens have another width than the re-ranker reads."""
    return (
        f"re-ranker {reranker!r} reads image tokens of width {reads}, and model {model!r} gives {gives}: name the "
        "model that it was trained on, or train a re-ranker for this one (docs/training.md)"
    )
