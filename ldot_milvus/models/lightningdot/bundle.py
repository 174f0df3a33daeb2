"""Load the components of a LightningDOT model: encoders, region extractor, re-ranker and tokenizer on one device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldot_milvus.errors import ModelError, UsageError
from ldot_milvus.forks import Lock, computation
from ldot_milvus.models.lightningdot.files import LABELS, LightningDOTFiles, LightningDOTRerankerFiles
from ldot_milvus.models.loading import QuietTransformers, choose_convolution_dtype, choose_device, choose_dtype
from ldot_milvus.regions.registry import extractor_class

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from ldot_milvus.models.lightningdot.cross_attention import CrossAttentionReranker
    from ldot_milvus.models.lightningdot.dual_encoder import LightningDOT
    from ldot_milvus.models.texts import TextTokens
    from ldot_milvus.regions import RegionExtractor


@dataclass(frozen=True)
class Bundle:
    """The loaded components of a LightningDOT model, on one device.

    Attributes:
        files: the files from which the components were loaded.
        encoder: the dual encoder.
        reranker: the cross-attention network; None if the model has no re-ranker.
        tokenizer: of the dual encoder and the re-ranker.
        device, dtype: where the networks run and in which precision.
        convolution_dtype: in which precision the grid extractor and the classifier of label names run.
    """

    files: LightningDOTFiles
    encoder: LightningDOT
    reranker: CrossAttentionReranker | None
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    dtype: torch.dtype
    convolution_dtype: torch.dtype
    _loading: Lock = field(default_factory=Lock, repr=False)

    @property
    def extractor(self) -> RegionExtractor | None:
        """The region extractor, loaded on first use; None for a model that reads precomputed regions only.

        Raises:
            ModelError: the extractor or the classifier of the label names is unknown or cannot be loaded, or does not
                fit the model.
        """
        with self._loading:  # several threads open photos, and cached_property takes no lock since Python 3.12
            return self._extractor

    @cached_property
    def texts(self) -> TextTokens:
        """A thread-safe view of the tokenizer, shared by encoder and re-ranker."""
        from ldot_milvus.models.texts import TextTokens

        return TextTokens(self.tokenizer, self.device)

    @cached_property
    def _extractor(self) -> RegionExtractor | None:
        return load_extractor(self.files, self.device, self.dtype, convolution_dtype=self.convolution_dtype)


def load_bundle(files: LightningDOTFiles, *, device: str | None = None, dtype: str | None = None) -> Bundle:
    """Load a model's encoders, tokenizer and re-ranker. The region extractor is loaded on first use.

    Args:
        files: the model's files.
        device, dtype: see :func:`~ldot_milvus.models.loading.load_embedder`.

    Raises:
        UsageError: the device or dtype is unknown.
        ModelError: files are missing or do not fit together.
    """
    chosen_device = choose_device(device)
    chosen_dtype = choose_dtype(dtype, chosen_device)
    from ldot_milvus.models.lightningdot.dual_encoder import LightningDOT

    with computation, QuietTransformers():
        try:
            encoder = LightningDOT.from_pretrained(files.folder)
            tokenizer = load_tokenizer(files.folder)
            if tokenizer is None:
                raise ValueError(f"{files.folder} contains no tokenizer files")
            _check_vocabulary(tokenizer, "text encoder", encoder.config.text_config)
            reranker, own = None, files.own_reranker()
            if own is not None:
                reranker = load_reranker_model(own, chosen_device, chosen_dtype)
                _check_vocabulary(tokenizer, "re-ranker", reranker.config.bert_config)
        except (OSError, ValueError) as error:
            raise ModelError(f"model {files.name!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    encoder = encoder.to(chosen_device, chosen_dtype).eval()
    convolution_dtype = choose_convolution_dtype(dtype, chosen_device)
    return Bundle(files, encoder, reranker, tokenizer, chosen_device, chosen_dtype, convolution_dtype)


def load_reranker_model(
    files: LightningDOTRerankerFiles, device: torch.device, dtype: torch.dtype
) -> CrossAttentionReranker:
    """Load the network of a re-ranker.

    Raises:
        ModelError: files are missing or do not fit together.
    """
    from ldot_milvus.models.lightningdot.cross_attention import CrossAttentionReranker

    with QuietTransformers():
        try:
            model: Any = CrossAttentionReranker.from_pretrained(files.folder)
        except (OSError, ValueError) as error:
            first = str(error).splitlines()[0]
            raise ModelError(f"the re-ranker of {files.name!r} cannot be loaded: {first}") from error
    return model.to(device, dtype).eval()


def load_tokenizer(*folders: Path) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer in the first of ``folders`` that contains one; None if none does."""
    from transformers import AutoTokenizer

    for folder in folders:
        if any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt")):
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
            return tokenizer
    return None


def _check_vocabulary(tokenizer: PreTrainedTokenizerBase, part: str, config: PretrainedConfig) -> None:
    """Refuse a tokenizer with ids that a network has no embedding for: torch would fail on the first such text."""
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"its tokenizer has {len(tokenizer):,} entries and its {part} reads {config.vocab_size:,}: they belong to "
            "different models"
        )


def load_extractor(
    files: LightningDOTFiles,
    device: torch.device,
    dtype: torch.dtype,
    changes: Mapping[str, Any] | None = None,
    *,
    convolution_dtype: torch.dtype | None = None,
) -> RegionExtractor | None:
    """Load the region extractor of a model, with the classifier of its label names if it has any.

    Args:
        files: the model's files.
        device, dtype: where the extractor runs and in which precision.
        changes: options that replace those in the model's ``region_extractor`` configuration.
        convolution_dtype: precision of a grid extractor and of the classifier, if it is another. A detector's choice
            of boxes changes with the precision.

    Returns:
        The extractor; None for a model that reads precomputed regions only.

    Raises:
        ModelError: the extractor or the classifier is unknown or cannot be loaded, or does not fit the model.
    """
    config = files.config.get("region_extractor")
    if config is None:
        return None
    kind, weights = config.get("kind"), str(files.extractor_weights)
    options = {key: value for key, value in {**config, **(changes or {})}.items() if key not in ("kind", "weights")}
    convolution_dtype = convolution_dtype or dtype
    extractor: RegionExtractor
    try:
        with QuietTransformers():
            extractor = extractor_class(str(kind)).from_pretrained(
                weights, **options, device=device, dtype=convolution_dtype if kind == "grid" else dtype
            )
    except UsageError as error:
        raise ModelError(
            f"the region extractor of model {files.name!r} cannot be loaded: {error}; or copy the detector's "
            f"config.yaml and weights to {files.folder / 'regions'}"
        ) from error
    except (OSError, TypeError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise ModelError(f"the region extractor of model {files.name!r} cannot be loaded: {first}") from error
    if files.has_labels:
        extractor = _with_labels(files, extractor, device, convolution_dtype)
    if extractor.dim != files.config.get("region_dim"):
        raise ModelError(
            f"model {files.name!r} reads regions of {files.config.get('region_dim')} features, and the extractor in "
            f"{weights} returns {extractor.dim}: use the extractor that the model was trained with"
        )
    return extractor


def _with_labels(
    files: LightningDOTFiles, extractor: RegionExtractor, device: torch.device, dtype: torch.dtype
) -> RegionExtractor:
    from ldot_milvus.regions.labels import LabelClassifier, LabelledExtractor

    folder, count = files.folder / LABELS, files.config["label_count"]
    options = files.config.get("label_classifier") or {}
    try:
        with QuietTransformers():
            classifier = LabelClassifier.from_pretrained(str(folder), **options, device=device, dtype=dtype)
    except (OSError, TypeError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise ModelError(f"the label classifier of model {files.name!r} cannot be loaded: {first}") from error
    if classifier.count != count:
        raise ModelError(
            f"model {files.name!r} has the names of {count} labels, and the classifier in {folder} knows "
            f"{classifier.count}: use the classifier that the model was made with"
        )
    return LabelledExtractor(extractor, classifier, files.label_vectors)
