"""A model as it is shipped: encoders, region extractor, re-ranker and tokenizer in one folder.

::

    config.json, model.safetensors      the dual encoder
    tokenizer.json, ...                 its WordPiece tokenizer
    regions/                            the region extractor's weights, unless the configuration names another place
    reranker/                           the cross-attention re-ranker (optional)

Finding a model and its fingerprint needs no torch, so that a command with nothing to encode starts at once.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldot_milvus.errors import ModelError, UsageError
from ldot_milvus.hub import hub_folder

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from ldot_milvus.models.lightningdot.cross_attention import CrossAttentionReranker
    from ldot_milvus.models.lightningdot.dual_encoder import LightningDOT
    from ldot_milvus.regions import RegionExtractor

PACKAGED = Path(__file__).parents[2] / "pretrained"


@dataclass(frozen=True)
class ModelFiles:
    """A model's folder on this machine, read as little as possible."""

    name: str
    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """The dual encoder's configuration."""
        config = self._read(self.folder / "config.json")
        if config.get("model_type") != "lightningdot":
            raise ModelError(
                f"model {self.name!r} is of type {config.get('model_type')!r}, not 'lightningdot'; "
                "convert a published checkpoint first"
            )
        return config

    @cached_property
    def reranker_config(self) -> dict[str, Any] | None:
        """The re-ranker's configuration; None where the model has none."""
        folder = self.folder / "reranker"
        return self._read(folder / "config.json") if folder.is_dir() else None

    @property
    def extractor_weights(self) -> Path | str:
        """The folder or hub id of the region extractor's weights.

        The folder ``regions`` if there is one, else what the configuration names (a folder is looked for from here).
        """
        named = (self.config.get("region_extractor") or {}).get("weights")
        for folder in (self.folder / "regions", self.folder / (named or "regions")):
            if folder.is_dir():
                return folder
        return named or self.folder / "regions"

    @property
    def extractor_files(self) -> list[Path]:
        """The files of these weights; none for a hub id, which counts by its name in the configuration."""
        where = self.extractor_weights
        return sorted(path for path in where.glob("*") if path.is_file()) if isinstance(where, Path) else []

    @property
    def dim(self) -> int:
        """Width of the model's vectors."""
        # As LightningDOTConfig.embedding_dim, which would cost the import of transformers.
        return int(self.config["projection_dim"]) + (2 if self.config.get("calibration_anchors") else 0)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (first 32 hex digits) of everything that decides what ingestion keeps of an image.

        That is its vector, and its region data: a re-ranker that embeds the regions itself is part of it.
        """
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        weights = [self.folder / "model.safetensors", *self.extractor_files]
        if (self.reranker_config or {}).get("region_input") == "embedded":
            weights.append(self.folder / "reranker" / "model.safetensors")
        for path in weights:
            try:
                with path.open("rb") as file:
                    while block := file.read(1 << 20):
                        digest.update(block)
            except OSError as error:
                raise ModelError(f"model {self.name!r}: {path} cannot be read ({error.strerror})") from error
        return digest.hexdigest()[:32]

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            config: dict[str, Any] = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ModelError(f"model {self.name!r}: {path} cannot be read ({error})") from error
        return config


def find_model(name: str) -> ModelFiles:
    """Where a packaged name, a folder or a hub id lies on this machine (a hub id is fetched once).

    Raises:
        UsageError: no model of that name.
    """
    packaged = PACKAGED / name
    if packaged.parent == PACKAGED and (packaged / "config.json").exists():
        return ModelFiles(name, packaged)
    if Path(name).is_dir():
        return ModelFiles(name, Path(name))
    known = ", ".join(sorted(path.parent.name for path in PACKAGED.glob("*/config.json"))) or "none"
    return ModelFiles(name, hub_folder(name, "model", known=f"a packaged name ({known}), "))


@dataclass(frozen=True)
class Bundle:
    """Everything that turns texts and photos into vectors and pairs into scores, on one device."""

    files: ModelFiles
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
    def _extractor(self) -> RegionExtractor | None:
        return load_extractor(self.files, self.device, self.dtype)


def load_model(name: str = "ldot-mini", *, device: str | None = None, dtype: str | None = None) -> Bundle:
    """Load a model by packaged name, folder or hub id.

    Args:
        device: "cuda", "cuda:1", "mps" or "cpu"; None takes the best there is.
        dtype: "float32", "float16" or "bfloat16"; None takes float16 on CUDA and float32 elsewhere.

    Raises:
        UsageError: unknown name, device or dtype.
        ModelError: files that are missing or do not fit together.
    """
    files = find_model(name)
    files.config  # noqa: B018  (another kind of folder is told before anything heavy is loaded)
    from transformers import AutoTokenizer

    from ldot_milvus.models.lightningdot.cross_attention import CrossAttentionReranker
    from ldot_milvus.models.lightningdot.dual_encoder import LightningDOT

    place, precision = choose_device(device), choose_dtype(dtype, choose_device(device))
    with _QuietTransformers():
        try:
            encoder = LightningDOT.from_pretrained(files.folder)
            tokenizer = AutoTokenizer.from_pretrained(files.folder)
            reranker = None
            if files.reranker_config is not None:
                reranker = CrossAttentionReranker.from_pretrained(files.folder / "reranker")
                reranker = reranker.to(place, precision).eval()
            _check_vocabulary(tokenizer, "text encoder", encoder.config.text_config)
            if reranker is not None:
                _check_vocabulary(tokenizer, "re-ranker", reranker.config.bert_config)
        except (OSError, ValueError) as error:
            raise ModelError(f"model {name!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    return Bundle(files, encoder.to(place, precision).eval(), reranker, tokenizer, place, precision)


def _check_vocabulary(tokenizer: PreTrainedTokenizerBase, part: str, config: PretrainedConfig) -> None:
    """An id that a part has no embedding for would end deep in torch, at the first text that has it."""
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"its tokenizer has {len(tokenizer):,} entries and its {part} reads {config.vocab_size:,}: they belong to "
            "different models"
        )


def load_extractor(
    files: ModelFiles, device: torch.device, dtype: torch.dtype, changes: Mapping[str, Any] | None = None
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
        if kind == "grid":
            from ldot_milvus.regions.grid import GridExtractor

            with _QuietTransformers():
                extractor = GridExtractor.from_pretrained(weights, **options, device=device, dtype=dtype)
        elif kind == "bottom_up":
            from ldot_milvus.regions import BottomUpExtractor

            extractor = BottomUpExtractor.from_pretrained(weights, **options, device=device, dtype=dtype)
        else:
            raise ValueError(f"region_extractor {config!r} is not known; 'grid' and 'bottom_up' are")
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


def choose_device(name: str | None) -> torch.device:
    """The device of that name; None takes the best there is.

    Raises:
        UsageError: there is none of that name here.
    """
    import torch

    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"device {name!r} cannot be used ({reason}); try 'cpu' or leave it unset") from error
    return device


def choose_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """The floating-point type of that name; None takes float16 on CUDA and float32 elsewhere.

    Raises:
        UsageError: another name.
    """
    import torch

    if name is None:
        return torch.float16 if device.type == "cuda" else torch.float32
    if name not in ("float32", "float16", "bfloat16"):
        raise UsageError(f"dtype {name!r} is not one of float32, float16, bfloat16")
    return getattr(torch, name)


class _QuietTransformers:
    """No progress bars of transformers while a model loads; its setting is put back afterwards."""

    def __enter__(self) -> None:
        from transformers.utils import logging

        self._was_on = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        from transformers.utils import logging

        if self._was_on:
            logging.enable_progress_bar()
