"""A LightningDOT model as it is shipped, read without torch.

::

    config.json, model.safetensors      the dual encoder
    tokenizer.json, ...                 its tokenizer
    regions/                            the region extractor's weights, unless the configuration names another place
    reranker/                           the cross-attention re-ranker (optional)
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldot_milvus.errors import ModelError
from ldot_milvus.models.base import Embedder, ModelFiles, RerankerFiles
from ldot_milvus.models.registry import find_model

if TYPE_CHECKING:
    from ldot_milvus.models.lightningdot.embedder import LightningDOTEmbedder
    from ldot_milvus.models.lightningdot.reranker import LightningDOTReranker

RERANKER = "reranker"
REGIONS = "regions"


class LightningDOTFiles(ModelFiles):
    """A dual encoder, its region extractor and perhaps a re-ranker."""

    @property
    def dim(self) -> int:
        """Width of the model's vectors."""
        # As LightningDOTConfig.embedding_dim, which would cost the import of transformers.
        return int(self.config["projection_dim"]) + (2 if self.config.get("calibration_anchors") else 0)

    @property
    def extractor_config(self) -> dict[str, Any] | None:
        """How pixels become regions: "kind" and options of an extractor; None for a model that reads ready regions."""
        return self.config.get("region_extractor")

    @property
    def extractor_weights(self) -> Path | str:
        """The folder or hub id of the region extractor's weights.

        The folder ``regions`` if there is one, else what the configuration names (a folder is looked for from here).
        """
        named = (self.extractor_config or {}).get("weights")
        for folder in (self.folder / REGIONS, self.folder / (named or REGIONS)):
            if folder.is_dir():
                return folder
        return named or self.folder / REGIONS

    @property
    def extractor_files(self) -> list[Path]:
        """The files of these weights; none for a hub id, which counts by its name in the configuration."""
        where = self.extractor_weights
        return sorted(path for path in where.glob("*") if path.is_file()) if isinstance(where, Path) else []

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (first 32 hex digits) of what decides a vector: configuration, weights and region extractor."""
        return self._digest(json.dumps(self.config, sort_keys=True), self._weights)

    @cached_property
    def features_fingerprint(self) -> str:
        """Of the region extractor alone: another dual encoder over the same regions leaves region data as they are."""
        about = [self.extractor_config, self.config.get("region_dim")]
        return self._digest(json.dumps(about, sort_keys=True), self.extractor_files)

    @cached_property
    def former_fingerprints(self) -> tuple[str, ...]:
        """Up to 0.1.0 one fingerprint stood for vectors and region data: it counted a re-ranker that embeds regions."""
        own = self.own_reranker()
        if own is None or own.keeps_features:
            return ()
        weights = [*self._weights, own.folder / "model.safetensors"]
        return (self._digest(json.dumps(self.config, sort_keys=True), weights),)

    @property
    def summary(self) -> str:
        """Width, regions and re-ranker."""
        regions = "no region extractor"
        if self.extractor_config is not None:
            regions = f"{self.extractor_config.get('kind')} regions"
            if not self.extractor_files:
                regions += f" by {self.extractor_weights}, fetched when a photo needs it"
        return f"{super().summary}, {regions}"

    def own_reranker(self) -> LightningDOTRerankerFiles | None:
        """The re-ranker in the folder ``reranker``."""
        folder = self.folder / RERANKER
        return LightningDOTRerankerFiles(self.name, folder, self) if folder.is_dir() else None

    def load(self, *, device: str | None = None, dtype: str | None = None) -> LightningDOTEmbedder:
        """Load dual encoder, tokenizer and re-ranker; the region extractor follows with the first photo."""
        from ldot_milvus.models.lightningdot.bundle import load_bundle
        from ldot_milvus.models.lightningdot.embedder import LightningDOTEmbedder

        return LightningDOTEmbedder(load_bundle(self, device=device, dtype=dtype))

    @property
    def _weights(self) -> list[Path]:
        return [self.folder / "model.safetensors", *self.extractor_files]


class LightningDOTRerankerFiles(RerankerFiles):
    """A cross-attention re-ranker over the regions of a LightningDOT model: its own, or one from another folder."""

    @property
    def keeps_features(self) -> bool:
        """Whether it keeps what the extractor gave (published); else what its own layers make of that."""
        return bool(self.config.get("region_input", "features") == "features")

    @cached_property
    def fingerprint(self) -> str:
        """Of the region extractor, and of the weights where these embed the regions that are kept."""
        features = self.model.features_fingerprint
        if self.keeps_features:
            return self._digest(json.dumps([features, "features"]), [])
        config = {name: value for name, value in self.config.items() if name != "dot_weight"}
        return self._digest(json.dumps([features, config], sort_keys=True), [self.folder / "model.safetensors"])

    @property
    def former_fingerprints(self) -> tuple[str, ...]:
        """Region data that 0.1.0 stored under the model's only fingerprint, where it is what this re-ranker keeps."""
        own = self.model.own_reranker()
        if isinstance(own, LightningDOTRerankerFiles) and not own.keeps_features:
            return self.model.former_fingerprints if own.folder == self.folder else ()
        return (self.model.fingerprint,) if self.keeps_features else ()

    def load(self, embedder: Embedder) -> LightningDOTReranker:
        """Load the re-ranker for an embedder of the same regions."""
        from ldot_milvus.models.lightningdot.bundle import load_reranker_model, load_tokenizer
        from ldot_milvus.models.lightningdot.embedder import LightningDOTEmbedder
        from ldot_milvus.models.lightningdot.inputs import TextTokens
        from ldot_milvus.models.lightningdot.reranker import LightningDOTReranker

        if not isinstance(embedder, LightningDOTEmbedder):
            raise ModelError(f"re-ranker {self.name!r} reads LightningDOT's regions, and {embedder.name!r} has none")
        bundle = embedder.bundle
        model = load_reranker_model(self, bundle.device, bundle.dtype)
        width = bundle.encoder.config.region_dim
        if model.config.region_dim != width:
            raise ModelError(
                f"re-ranker {self.name!r} reads regions of {model.config.region_dim} features, and model "
                f"{embedder.name!r} gives {width}: they do not belong together"
            )
        tokenizer = load_tokenizer(self.folder, self.folder.parent)
        texts = bundle.texts if tokenizer is None else TextTokens(tokenizer, bundle.device)
        return LightningDOTReranker(self, model, texts, bundle.device, bundle.dtype)


def find_lightningdot(name: str) -> LightningDOTFiles:
    """The files of a LightningDOT model by packaged name, folder or hub id.

    Raises:
        UsageError: no model of that name.
        ModelError: a model of another family.
    """
    files = find_model(name)
    if not isinstance(files, LightningDOTFiles):
        raise ModelError(f"model {name!r} is no LightningDOT: load it with load_embedder")
    return files
