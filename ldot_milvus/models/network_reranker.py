"""What the re-rankers of this package have in common; importing it loads no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ldot_milvus.models.base import RerankerFiles

if TYPE_CHECKING:
    import torch

    from ldot_milvus.models.texts import TextTokens


class RerankerOfFiles:
    """A re-ranker that is known by its files.

    Args:
        files: the files from which the network was loaded.
    """

    def __init__(self, files: RerankerFiles) -> None:
        self.name = files.name
        self._files: RerankerFiles = files

    @property
    def fingerprint(self) -> str:
        """Hash of everything that determines the region data of an image: 32 hex digits."""
        return self._files.fingerprint

    @property
    def former_fingerprints(self) -> tuple[str, ...]:
        """Fingerprints under which earlier versions of ldot-milvus stored the same region data."""
        return self._files.former_fingerprints


class NetworkReranker(RerankerOfFiles):
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
        super().__init__(files)
        self.model = model
        self._texts = texts
        self._device, self._dtype = device, dtype

    @property
    def dot_weight(self) -> float:
        """Weight of the dot product that retrieval adds to a score; 0 for published re-rankers."""
        return float(self.model.config.dot_weight)
