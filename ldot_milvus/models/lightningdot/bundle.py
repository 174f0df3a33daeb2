"""A LightningDOT model's parts, loaded: encoders, region extractor, re-ranker and tokenizer on one device."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldot_milvus.errors import ModelError, UsageError
from ldot_milvus.models.lightningdot.files import LightningDOTFiles, LightningDOTRerankerFiles
from ldot_milvus.models.loading import QuietTransformers, choose_device, choose_dtype
from ldot_milvus.regions.registry import extractor_class

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from ldot_milvus.models.lightningdot.cross_attention import CrossAttentionReranker
    from ldot_milvus.models.lightningdot.dual_encoder import LightningDOT
    from ldot_milvus.models.lightningdot.inputs import TextTokens
    from ldot_milvus.regions import RegionExtractor


@dataclass(frozen=True)
class Bundle:
    """Everything that turns texts and photos into vectors and pairs into scores, on one device."""

    files: LightningDOTFiles
    encoder: LightningDOT
    reranker: CrossAttentionReranker | None
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    dtype: torch.dtype
    _loading: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def extractor(self) -> RegionExtractor | None:
        """Pixels to regions; None for a model that reads ready ones. Loaded when the first photo needs it.

        Raises:
            ModelError: an extractor that is not known or not to be had, or whose regions are of another width than the
                model reads.
        """
        with self._loading:  # photos are opened in several threads, and cached_property does not wait for itself
            return self._extractor

    @cached_property
    def texts(self) -> TextTokens:
        """The tokenizer as encoder and re-ranker use it, from several threads."""
        from ldot_milvus.models.lightningdot.inputs import TextTokens

        return TextTokens(self.tokenizer, self.device)

    @cached_property
    def _extractor(self) -> RegionExtractor | None:
        return load_extractor(self.files, self.device, self.dtype)


def load_bundle(files: LightningDOTFiles, *, device: str | None = None, dtype: str | None = None) -> Bundle:
    """Load a model's encoders, tokenizer and re-ranker.

    Args:
        device, dtype: see :func:`~ldot_milvus.models.loading.load_embedder`.

    Raises:
        UsageError: unknown device or dtype.
        ModelError: files that are missing or do not fit together.
    """
    place = choose_device(device)
    precision = choose_dtype(dtype, place)
    from ldot_milvus.models.lightningdot.dual_encoder import LightningDOT

    with QuietTransformers():
        try:
            encoder = LightningDOT.from_pretrained(files.folder)
            tokenizer = load_tokenizer(files.folder)
            if tokenizer is None:
                raise ValueError(f"there are no files of a tokenizer in {files.folder}")
            _check_vocabulary(tokenizer, "text encoder", encoder.config.text_config)
            reranker, own = None, files.own_reranker()
            if own is not None:
                reranker = load_reranker_model(own, place, precision)
                _check_vocabulary(tokenizer, "re-ranker", reranker.config.bert_config)
        except (OSError, ValueError) as error:
            raise ModelError(f"model {files.name!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    return Bundle(files, encoder.to(place, precision).eval(), reranker, tokenizer, place, precision)


def load_reranker_model(
    files: LightningDOTRerankerFiles, device: torch.device, dtype: torch.dtype
) -> CrossAttentionReranker:
    """The network of a re-ranker.

    Raises:
        ModelError: files that are missing or do not fit together.
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
    """The tokenizer in the first of these folders that has one; None where none has."""
    from transformers import AutoTokenizer

    for folder in folders:
        if any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt")):
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
            return tokenizer
    return None


def _check_vocabulary(tokenizer: PreTrainedTokenizerBase, part: str, config: PretrainedConfig) -> None:
    """An id that a part has no embedding for would end deep in torch, at the first text that has it."""
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"its tokenizer has {len(tokenizer):,} entries and its {part} reads {config.vocab_size:,}: they belong to "
            "different models"
        )


def load_extractor(
    files: LightningDOTFiles, device: torch.device, dtype: torch.dtype, changes: Mapping[str, Any] | None = None
) -> RegionExtractor | None:
    """The region extractor of a model, as its configuration has it but for ``changes``; None where it has none.

    Raises:
        ModelError: as in :attr:`Bundle.extractor`.
    """
    config = files.config.get("region_extractor")
    if config is None:
        return None
    kind, weights = config.get("kind"), str(files.extractor_weights)
    options = {key: value for key, value in {**config, **(changes or {})}.items() if key not in ("kind", "weights")}
    extractor: RegionExtractor
    try:
        with QuietTransformers():
            extractor = extractor_class(str(kind)).from_pretrained(weights, **options, device=device, dtype=dtype)
    except UsageError as error:
        raise ModelError(
            f"photos cannot become regions for model {files.name!r}: {error}; or put the detector's config.yaml and "
            f"weights into {files.folder / 'regions'}"
        ) from error
    except (OSError, TypeError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise ModelError(f"the region extractor of model {files.name!r} cannot be loaded: {first}") from error
    if extractor.dim != files.config.get("region_dim"):
        raise ModelError(
            f"model {files.name!r} reads regions of {files.config.get('region_dim')} features, and the extractor in "
            f"{weights} gives {extractor.dim}: they do not belong together"
        )
    return extractor
