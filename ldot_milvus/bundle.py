"""A model as it is shipped: encoders, region extractor, re-ranker and tokenizer in one folder.

::

    config.json, model.safetensors      the dual encoder
    tokenizer.json, ...                 its WordPiece tokenizer
    regions/                            the region extractor's weights
    reranker/                           the cross-attention re-ranker (optional)

Finding a model and its fingerprint needs no torch, so that a command with nothing to encode starts at once.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ModelError, UsageError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from .model import CrossAttentionReranker, LightningDOT
    from .regions import RegionExtractor

PACKAGED = Path(__file__).parent / "pretrained"


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
        weights = [self.folder / "model.safetensors", *sorted((self.folder / "regions").glob("*"))]
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
    unknown = f"unknown model {name!r}: give a packaged name ({known}), a folder, or a hub id (owner/name)"
    if name.count("/") != 1 or name.startswith(("/", ".")):
        raise UsageError(unknown)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return ModelFiles(name, Path(snapshot_download(name)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UsageError(f"{unknown}; the hub said: {str(error).splitlines()[0]}") from error


@dataclass(frozen=True)
class Bundle:
    """Everything that turns texts and photos into vectors and pairs into scores, on one device."""

    files: ModelFiles
    encoder: LightningDOT
    extractor: RegionExtractor | None
    reranker: CrossAttentionReranker | None
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    dtype: torch.dtype


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
    config = files.config
    from transformers import AutoTokenizer

    from .model import CrossAttentionReranker, LightningDOT

    place, precision = choose_device(device), _dtype(dtype, choose_device(device))
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
            extractor = load_extractor(files.folder, config.get("region_extractor"), place, precision)
        except (OSError, ValueError) as error:
            raise ModelError(f"model {name!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    return Bundle(files, encoder.to(place, precision).eval(), extractor, reranker, tokenizer, place, precision)


def _check_vocabulary(tokenizer: PreTrainedTokenizerBase, part: str, config: PretrainedConfig) -> None:
    """An id that a part has no embedding for would end deep in torch, at the first text that has it."""
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"its tokenizer has {len(tokenizer):,} entries and its {part} reads {config.vocab_size:,}: they belong to "
            "different models"
        )


def load_extractor(
    folder: Path, config: dict[str, Any] | None, device: torch.device, dtype: torch.dtype
) -> RegionExtractor | None:
    """The region extractor in a model's folder, as its ``region_extractor`` configures it; None where it has none."""
    if config is None:
        return None
    if config.get("kind") != "grid":
        raise ValueError(f"region_extractor {config!r} is not known; 'grid' is")
    from .regions.grid import GridExtractor

    options = {key: value for key, value in config.items() if key != "kind"}
    return GridExtractor.from_pretrained(str(folder / "regions"), **options, device=device, dtype=dtype)


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


def _dtype(name: str | None, device: torch.device) -> torch.dtype:
    import torch

    if name is None:
        return torch.float16 if device.type == "cuda" else torch.float32
    if name not in ("float32", "float16", "bfloat16"):
        raise UsageError(f"dtype {name!r} is not one of float32, float16, bfloat16")
    return getattr(torch, name)  # type: ignore[no-any-return]


class _QuietTransformers:
    """No progress bars of transformers while a model loads; its setting is put back afterwards."""

    def __enter__(self) -> None:
        from transformers.utils import logging

        self._was_on = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]

    def __exit__(self, *_: object) -> None:
        from transformers.utils import logging

        if self._was_on:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
