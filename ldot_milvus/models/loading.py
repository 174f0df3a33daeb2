"""Models by name: loaded on the best device there is, whatever their family."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ldot_milvus.errors import UsageError
from ldot_milvus.models.base import Embedder, Reranker
from ldot_milvus.models.registry import find_model, find_reranker

if TYPE_CHECKING:
    import torch

    from ldot_milvus.models.lightningdot.bundle import Bundle


def load_embedder(name: str = "ldot-mini", *, device: str | None = None, dtype: str | None = None) -> Embedder:
    """Load a model of any family by packaged name, folder or hub id.

    Args:
        device: "cuda", "cuda:1", "mps" or "cpu"; None takes the best there is.
        dtype: "float32", "float16" or "bfloat16"; None takes float16 on CUDA and float32 elsewhere.

    Raises:
        UsageError: unknown name, device or dtype.
        ModelError: files that are missing or do not fit together.
    """
    return find_model(name).load(device=device, dtype=dtype)


def load_reranker(name: Reranker | str | None, embedder: Embedder) -> Reranker | None:
    """The re-ranker for an embedder, on its device.

    Args:
        name: None for the embedder's own, "none" for none, else a folder or hub id of a re-ranker, or of a model that
            has one. One that is loaded already is given back.

    Raises:
        UsageError: no such re-ranker.
        ModelError: files that do not fit together, or a re-ranker that does not read this embedder's features.
    """
    if name is None:
        return embedder.reranker
    if not isinstance(name, str):
        return name
    files = find_reranker(name, find_model(embedder.name))
    return None if files is None else files.load(embedder)


def load_model(name: str = "ldot-mini", *, device: str | None = None, dtype: str | None = None) -> Bundle:
    """The parts of a LightningDOT model: encoders, region extractor, re-ranker and tokenizer.

    Args:
        device, dtype: as of :func:`load_embedder`.

    Raises:
        UsageError: unknown name, device or dtype.
        ModelError: files that are missing or do not fit together, or a model of another family.
    """
    from ldot_milvus.models.lightningdot.bundle import load_bundle
    from ldot_milvus.models.lightningdot.files import find_lightningdot

    return load_bundle(find_lightningdot(name), device=device, dtype=dtype)


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


class QuietTransformers:
    """No progress bars of transformers while a model loads; its setting is put back afterwards."""

    def __enter__(self) -> None:
        from transformers.utils import logging

        self._was_on = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        from transformers.utils import logging

        if self._was_on:
            logging.enable_progress_bar()
