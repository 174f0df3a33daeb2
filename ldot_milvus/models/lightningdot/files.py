"""The files of a LightningDOT model, read without torch.

::

    config.json, model.safetensors      the dual encoder
    tokenizer.json, ...                 its tokenizer
    regions/                            the region extractor's weights, unless the configuration names another folder
    labels/                             a classifier and the names of its labels, of a model with label names; and the
                                        names' vectors, if regions have them among their features
    reranker/                           the cross-attention re-ranker (optional)
    calibration.json                    probabilities of the dot product, and in reranker/ of its scores (optional)
    text.onnx, reranker/score.onnx      the networks of a query for ONNX Runtime (optional, models/onnx_graph.py)
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from ldot_milvus.errors import ModelError, first_line
from ldot_milvus.models.base import Embedder, ModelFiles, RerankerFiles, read_config
from ldot_milvus.models.calibration import CALIBRATION
from ldot_milvus.models.registry import find_model
from ldot_milvus.regions.registry import both_least_sides, classifier_least_side, least_side_of

if TYPE_CHECKING:
    from ldot_milvus.models.lightningdot.embedder import LightningDOTEmbedder
    from ldot_milvus.models.lightningdot.reranker import LightningDOTReranker

RERANKER = "reranker"
REGIONS = "regions"
TEXT_GRAPH = "text.onnx"
SCORE_GRAPH = "score.onnx"
WEIGHTS = "weights"
"""Output of the score graph: how well each word matches each region (``CrossAttentionReranker.word_weights``)."""

LABELS = "labels"
LABEL_NAMES = "labels.json"
"""In the folder ``labels``: the names of the classifier's labels in its order, a JSON list of texts."""

LABEL_VECTORS = "vectors.npy"
"""In the folder ``labels``: the vectors of the names, float16 (labels, width), for the features of regions."""

HUB_FILES = (
    "config.json", "model.safetensors", CALIBRATION, f"{TEXT_GRAPH}*", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model",
)  # fmt: skip


class LightningDOTFiles(ModelFiles):
    """The files of a dual encoder, its region extractor and its optional re-ranker."""

    hub_files = (*HUB_FILES, f"{RERANKER}/*", f"{REGIONS}/*", f"{LABELS}/*")

    @property
    @override
    def dim(self) -> int:
        # Computed as in LightningDOTConfig.embedding_dim, without its import of transformers.
        config = self.config
        blocks = (config["label_dim"] if self.has_labels else 0) + config.get("canonical_dim", 0)
        learned = config.get("principal_dim") or config["projection_dim"]
        return int(learned + blocks) + (2 if config.get("calibration_anchors") else 0)

    @property
    @override
    def token_width(self) -> int | None:
        return self.config.get("region_dim")

    @property
    def extractor_config(self) -> dict[str, Any] | None:
        """The "kind" and options of the region extractor; None for a model that reads precomputed regions only."""
        return self.config.get("region_extractor")

    @property
    def extractor_weights(self) -> Path | str:
        """The folder or hub id of the region extractor's weights.

        The folder ``regions`` if it exists, else the one that the configuration names, relative to the model's folder.
        """
        named = (self.extractor_config or {}).get("weights")
        for folder in (self.folder / REGIONS, self.folder / (named or REGIONS)):
            if folder.is_dir():
                return folder
        return named or self.folder / REGIONS

    @property
    def extractor_files(self) -> list[Path]:
        """The region extractor's files; empty for a hub id, whose name in the configuration identifies the weights."""
        weights = self.extractor_weights
        return sorted(path for path in weights.glob("*") if path.is_file()) if isinstance(weights, Path) else []

    @property
    def has_labels(self) -> bool:
        """True if the model has label names."""
        return bool(self.config.get("label_count"))

    @property
    def label_files(self) -> list[Path]:
        """The files of the label names' classifier; empty for a model without label names."""
        if not self.has_labels:
            return []
        return sorted(path for path in (self.folder / LABELS).glob("*") if path.is_file())

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that determines a vector: configuration, weights, extractor, classifier; 32 hex digits."""
        return self._digest(json.dumps(self.config, sort_keys=True), self._weights)

    @cached_property
    def labels(self) -> list[str]:
        """The names of the classifier's labels, in its order; none for a model without label names."""
        file = self.folder / LABELS / LABEL_NAMES
        try:
            names = json.loads(file.read_text(encoding="utf-8")) if self.has_labels else []
        except (OSError, ValueError) as error:
            raise ModelError(f"{file} cannot be read ({first_line(error)}): copy it again") from error
        return [str(name) for name in names]

    @property
    def label_vectors(self) -> NDArray[np.float32] | None:
        """The vectors of the labels' names (labels, width); None if regions do not have them among their features.

        Raises:
            ModelError: the file cannot be read, or is not a matrix with a row for each label.
        """
        if not self.config.get("label_features"):
            return None
        file = self.folder / LABELS / LABEL_VECTORS
        try:
            vectors = np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ModelError(f"{file} cannot be read ({first_line(error)}): copy it again") from error
        if vectors.ndim != 2 or len(vectors) != self.config["label_count"]:
            raise ModelError(f"{file} has the shape {vectors.shape}: the model has {self.config['label_count']} labels")
        return vectors.astype(np.float32)

    @cached_property
    def features_fingerprint(self) -> str:
        """Hash of everything that determines the features of regions, 32 hex digits.

        Region data therefore stay valid for another dual encoder over the same regions.
        """
        about, files = [self.extractor_config, self.config.get("region_dim")], self.extractor_files
        if self.config.get("label_features"):
            about, files = [*about, self.config.get("label_classifier")], [*files, *self.label_files]
        return self._digest(json.dumps(about, sort_keys=True), files)

    @property
    def fitted_for(self) -> dict[str, Any]:
        """What determines the dot products, for a calibration of them."""
        return {"model": self.fingerprint}

    @cached_property
    def former_fingerprints(self) -> tuple[str, ...]:
        """The fingerprint of 0.1.0, which included the re-ranker's weights if the re-ranker embeds regions."""
        own = self.own_reranker()
        if own is None or own.keeps_features:
            return ()
        weights = [*self._weights, own.folder / "model.safetensors"]
        return (self._digest(json.dumps(self.config, sort_keys=True), weights),)

    @property
    @override
    def least_side(self) -> int | None:
        if self.extractor_config is None:
            return None
        regions = least_side_of(self.extractor_config)
        if not self.has_labels:
            return regions
        classifier = read_config(self.name, self.folder / LABELS)
        return both_least_sides(regions, classifier_least_side(int(classifier.get("image_size", 260))))

    @property
    @override
    def summary(self) -> str:
        regions = "no region extractor"
        if self.extractor_config is not None:
            regions = f"{self.extractor_config.get('kind')} regions"
            if not self.extractor_files:
                regions += f" by {self.extractor_weights}, downloaded for the first photo"
        if self.has_labels:
            regions += f", {self.config['label_count']:,} label names"
        return f"{super().summary}, {regions}"

    @override
    def own_reranker(self) -> LightningDOTRerankerFiles | None:
        folder = self.folder / RERANKER
        return LightningDOTRerankerFiles(self.name, folder, self) if folder.is_dir() else None

    @override
    def load(self, *, device: str | None = None, dtype: str | None = None) -> LightningDOTEmbedder:
        from ldot_milvus.models.lightningdot.embedder import LightningDOTEmbedder

        return LightningDOTEmbedder(self, device, dtype)

    @property
    def _weights(self) -> list[Path]:
        return [self.folder / "model.safetensors", *self.extractor_files, *self.label_files]


class LightningDOTRerankerFiles(RerankerFiles):
    """The files of a cross-attention re-ranker over the regions of a LightningDOT model: its own, or another one."""

    hub_files = HUB_FILES

    @override
    def check(self) -> None:
        if not isinstance(self.model, LightningDOTFiles):
            raise self._misfit(self.model.name)

    def _misfit(self, model: str) -> ModelError:
        return ModelError(
            f"re-ranker {self.name!r} reads LightningDOT's regions, and model {model!r} has none: use it with a "
            "LightningDOT model, or take a BLIP retrieval model as the re-ranker"
        )

    @property
    def labels(self) -> list[str]:
        """The names of the labels of the model whose regions it reads."""
        return self.model.labels if isinstance(self.model, LightningDOTFiles) else []

    @property
    def keeps_features(self) -> bool:
        """True if region data are the extractor's output (published); False if they are the re-ranker's embedding."""
        return bool(self.config.get("region_input", "features") == "features")

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the region extractor, and of the re-ranker's weights if these embed the regions: 32 hex digits."""
        features = self.model.features_fingerprint
        if self.keeps_features:
            return self._digest(json.dumps([features, "features"]), [])
        config = {name: value for name, value in self.config.items() if name != "dot_weight"}
        return self._digest(json.dumps([features, config], sort_keys=True), [self.folder / "model.safetensors"])

    @property
    def fitted_for(self) -> dict[str, Any]:
        """What determines ``rerank_score``, for a calibration of it: both models and ``dot_weight``."""
        own = self._digest(json.dumps(self.config, sort_keys=True), [self.folder / "model.safetensors"])
        return {"model": self.model.fingerprint, "reranker": own}

    @property
    def former_fingerprints(self) -> tuple[str, ...]:
        """The model fingerprint under which 0.1.0 stored region data, if this re-ranker stores the same region data."""
        own = self.model.own_reranker()
        if isinstance(own, LightningDOTRerankerFiles) and not own.keeps_features:
            return self.model.former_fingerprints if own.folder == self.folder else ()
        return (self.model.fingerprint,) if self.keeps_features else ()

    @override
    def load(self, embedder: Embedder) -> LightningDOTReranker:
        from ldot_milvus.models.lightningdot.bundle import load_reranker_model, load_tokenizer
        from ldot_milvus.models.lightningdot.embedder import LightningDOTEmbedder
        from ldot_milvus.models.lightningdot.reranker import LightningDOTReranker
        from ldot_milvus.models.texts import TextTokens

        if not isinstance(embedder, LightningDOTEmbedder):
            raise self._misfit(embedder.name)
        bundle = embedder.bundle
        model = load_reranker_model(self, bundle.device, bundle.dtype)
        width = bundle.encoder.config.region_dim
        if model.config.region_dim != width:
            raise ModelError(
                f"re-ranker {self.name!r} reads regions of {model.config.region_dim} features, and model "
                f"{embedder.name!r} has {width}: use a re-ranker of the same region extractor"
            )
        tokenizer = load_tokenizer(self.folder, self.folder.parent)
        texts = bundle.texts if tokenizer is None else TextTokens(tokenizer, bundle.device)
        return LightningDOTReranker(self, model, texts, bundle.device, bundle.dtype)


def find_lightningdot(name: str) -> LightningDOTFiles:
    """Find the files of a LightningDOT model, without loading it.

    Args:
        name: packaged name, folder or hub id.

    Raises:
        UsageError: no model has that name.
        ModelError: the model belongs to another family.
    """
    files = find_model(name)
    if not isinstance(files, LightningDOTFiles):
        raise ModelError(f"model {name!r} is not a LightningDOT model: load it with load_embedder")
    return files
