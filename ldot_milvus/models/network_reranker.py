"""What re-rankers of this package with a network and a tokenizer of their own have in common."""

from __future__ import annotations

from typing import Any

import torch

from ldot_milvus.models.base import RerankerFiles
from ldot_milvus.models.texts import TextTokens


class NetworkReranker:
    """A network that scores pairs. Subclasses keep region data and score.

    Args:
        files: the files from which the network was loaded.
        model: the network, on ``device`` and in ``dtype``; its configuration has a ``dot_weight``.
        texts: the tokenizer of the network.
        device, dtype: where the network runs and in which precision.
    """

    def __init__(
        self, files: RerankerFiles, model: Any, texts: TextTokens, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.name = files.name
        self.model = model
        self._texts = texts
        self._device, self._dtype = device, dtype
        self._reranker_files = files

    @property
    def fingerprint(self) -> str:
        """Hash of everything that determines the region data of an image: 32 hex digits."""
        return self._reranker_files.fingerprint

    @property
    def former_fingerprints(self) -> tuple[str, ...]:
        """Fingerprints under which earlier versions of ldot-milvus stored the same region data."""
        return self._reranker_files.former_fingerprints

    @property
    def dot_weight(self) -> float:
        """Weight of the dot product that retrieval adds to a score; 0 for published re-rankers."""
        return float(self.model.config.dot_weight)
