"""Load a model of any family by name, and choose its device and dtype."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING

from ldot_milvus.errors import UsageError
from ldot_milvus.models.base import Embedder, Reranker
from ldot_milvus.models.registry import find_model, find_reranker

if TYPE_CHECKING:
    import torch

    from ldot_milvus.models.lightningdot.bundle import Bundle


def load_embedder(name: str = "ldot-mini", *, device: str | None = None, dtype: str | None = None) -> Embedder:
    """Load an embedding model of any family.

    Args:
        name: packaged name, folder or hub id.
        device: "cuda", "cuda:1", "mps" or "cpu"; None selects CUDA, else MPS, else the CPU.
        dtype: "float32", "float16" or "bfloat16"; None selects float16 on CUDA and float32 elsewhere, but bfloat16 for
            the convolutions of a LightningDOT model on a processor that is faster with it.

    Raises:
        UsageError: the name, device or dtype is unknown.
        ModelError: files are missing or do not fit together.
    """
    return find_model(name).load(device=device, dtype=dtype)


def load_reranker(name: Reranker | str | None, embedder: Embedder) -> Reranker | None:
    """Load the re-ranker for an embedder, on the embedder's device.

    Args:
        name: None for the embedder's own re-ranker, "none" for no re-ranker, else the folder or hub id of a re-ranker
            or of a model with a re-ranker. A re-ranker that is already loaded is returned unchanged.
        embedder: the embedder whose image features the re-ranker reads.

    Returns:
        The re-ranker; None if ``name`` is "none" or the embedder has no re-ranker of its own.

    Raises:
        UsageError: no re-ranker has that name.
        ModelError: files do not fit together, or the re-ranker cannot read this embedder's features.
    """
    if name is None:
        return embedder.reranker
    if not isinstance(name, str):
        return name
    files = find_reranker(name, find_model(embedder.name))
    return None if files is None else files.load(embedder)


def load_model(name: str = "ldot-mini", *, device: str | None = None, dtype: str | None = None) -> Bundle:
    """Load the components of a LightningDOT model: encoders, region extractor, re-ranker and tokenizer.

    Args:
        name: packaged name, folder or hub id.
        device, dtype: see :func:`load_embedder`.

    Raises:
        UsageError: the name, device or dtype is unknown.
        ModelError: files are missing or do not fit together, or the model belongs to another family.
    """
    from ldot_milvus.models.lightningdot.bundle import load_bundle
    from ldot_milvus.models.lightningdot.files import find_lightningdot

    return load_bundle(find_lightningdot(name), device=device, dtype=dtype)


def device_of(embedder: Embedder) -> tuple[str | None, str | None]:
    """Return the device and dtype of an embedder, as arguments of ``load``; None for what it does not say."""
    device, dtype = getattr(embedder, "device", None), getattr(embedder, "dtype", None)
    return None if device is None else str(device), None if dtype is None else str(dtype).removeprefix("torch.")


def choose_device(name: str | None) -> torch.device:
    """Return the named device; None selects CUDA, else MPS, else the CPU.

    Raises:
        UsageError: this machine cannot use a device of that name.
    """
    import torch

    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"device {name!r} cannot be used ({reason}); try 'cpu' or leave it unset (LDOT_DEVICE)"
        ) from error
    return device


def choose_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """Return the named floating-point type; None selects float16 on CUDA and float32 elsewhere.

    Raises:
        UsageError: the name is not "float32", "float16" or "bfloat16".
    """
    import torch

    if name is None:
        return torch.float16 if device.type == "cuda" else torch.float32
    if name not in ("float32", "float16", "bfloat16"):
        raise UsageError(f"dtype {name!r} is not one of float32, float16, bfloat16 (LDOT_DTYPE)")
    return getattr(torch, name)


def choose_convolution_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """Return the named type; None selects that of :func:`choose_dtype`, or bfloat16 on a processor that is faster so.

    ldot-mini's region extractor and classifier take 0.45 of the time in bfloat16 (AMD EPYC with AVX-512 BF16), and the
    cosine of its image vectors to those in float32 is at least 0.9998. Encoders gain less, and stay exact.
    """
    import torch

    if name is None and device.type == "cpu" and has_fast_bfloat16():
        return torch.bfloat16
    return choose_dtype(name, device)


def has_fast_bfloat16() -> bool:
    """Whether the processor multiplies matrices of bfloat16 faster than those of float32.

    Processors with AMX do, and those of AMD with AVX-512 BF16. Intel's AVX-512 BF16 without AMX does not: a photo of
    ldot-mini takes 149 ms instead of 108 (Xeon, two cores). Others emulate it, sixty times slower than float32.
    """
    import torch

    return torch.cpu._is_amx_tile_supported() or (torch.cpu._is_avx512_bf16_supported() and _is_amd())


def _is_amd() -> bool:
    cpuinfo = Path("/proc/cpuinfo")  # of Linux, where platform.processor starts a process and does not name the vendor
    return "AuthenticAMD" in (cpuinfo.read_text() if cpuinfo.exists() else platform.processor())


class QuietTransformers:
    """Context manager that hides transformers' progress bars while a model loads, then restores the setting."""

    def __enter__(self) -> None:
        from transformers.utils import logging

        self._was_on = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        from transformers.utils import logging

        if self._was_on:
            logging.enable_progress_bar()
