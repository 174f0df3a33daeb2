"""Eight-bit storage of weights: a quarter of the float32 size on disk, dequantised on loading.

Matrices are stored as int8 with one float32 scale per output row (symmetric, scale = max|row| / 127); vectors and
small tensors are stored unchanged. Equal matrices, such as frozen layers that several networks of a model started from,
are stored once. ``from_pretrained`` recognises such a file by its safetensors header.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file

from ldot_milvus.errors import ModelError
from ldot_milvus.tensors import ABOVE, OWN, SCALE_SUFFIX, SHARED, by_file, shared_places

WEIGHTS_FILE = OWN
_MINIMUM_SIZE = 4096


def save_quantized(
    model: PreTrainedModel, folder: str | os.PathLike[str], *, keep: tuple[str, ...] = (), part: bool = False
) -> None:
    """Write ``model`` to ``folder`` like ``save_pretrained``, with its matrices as int8.

    Args:
        model: the model to store.
        folder: created if it does not exist.
        keep: a tensor whose name contains one of these strings is stored in half precision instead.
        part: the model is a part of the one in the folder above, and reads the matrices that this has too from there.
    """
    folder = Path(folder)
    tensors: dict[str, Tensor] = {}
    stored = _matrices(folder.parent / WEIGHTS_FILE) if part else {}
    shared: dict[str, tuple[str, str]] = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach().cpu().contiguous()
        if not tensor.is_floating_point() or tensor.dim() < 2 or tensor.numel() < _MINIMUM_SIZE:
            tensors[name] = tensor
        elif any(kept in name for kept in keep):
            tensors[name] = tensor.half()
        else:
            matrix, scale = _quantized(tensor)
            first = stored.setdefault(_digest(matrix, scale), (OWN, name))
            if first != (OWN, name):
                shared[name] = first
            else:
                tensors[name], tensors[name + SCALE_SUFFIX] = matrix, scale
    folder.mkdir(parents=True, exist_ok=True)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    metadata = {"format": "pt", "ldot_storage": "int8"} | ({SHARED: json.dumps(shared)} if shared else {})
    _write(tensors, folder / WEIGHTS_FILE, metadata)


def load_quantized(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a file of :func:`save_quantized` into a float32 state dict.

    Raises:
        ModelError: it reads matrices from the file in the folder above, which does not exist.
    """
    state: dict[str, Tensor] = {}
    for name, tensor, scale in _stored(Path(path)):
        if scale is not None:
            tensor = tensor.float() * scale.view(-1, *[1] * (tensor.dim() - 1))
        state[name] = tensor.float() if tensor.is_floating_point() else tensor
    return state


def store_apart(folder: Path) -> None:
    """Store the matrices that a part reads from the model's file in its own file: the model is about to change.

    Args:
        folder: of the part; nothing happens if it does not exist, or reads none.
    """
    path = folder / WEIGHTS_FILE
    metadata = _metadata(path) if path.is_file() else {}
    if metadata.pop(SHARED, None) is None:
        return
    tensors: dict[str, Tensor] = {}
    for name, tensor, scale in _stored(path):
        tensors |= {name: tensor} if scale is None else {name: tensor, name + SCALE_SUFFIX: scale}
    unfinished = path.with_suffix(".tmp")
    _write(tensors, unfinished, metadata)  # the tensors may be mapped from the file
    unfinished.replace(path)


def _write(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file whose bytes depend on its content alone: a fingerprint is a digest of files."""
    content = save(tensors, metadata=metadata)
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = metadata  # safetensors writes its entries in another order each time
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    path.write_bytes(content[:8] + text.ljust(length) + content[8 + length :])


def _stored(path: Path) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """Yield the name of each tensor, the tensor as it is stored, and the scales of its rows, None unless it is int8."""
    with safe_open(path, framework="pt") as file:
        shared = shared_places(path, file.metadata())
        names = [name for name in file.keys() if not name.endswith(SCALE_SUFFIX)]  # noqa: SIM118  (it is no dict)
    for place, stored_names in by_file(path, [*names, *shared], shared).items():
        with safe_open(place, framework="pt") as file:
            known = set(file.keys())
            for name, stored in stored_names.items():
                scale = stored + SCALE_SUFFIX
                yield name, file.get_tensor(stored), file.get_tensor(scale) if scale in known else None


def _quantized(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Return a matrix as int8, and the scales of its rows."""
    rows = tensor.float().flatten(1)
    scale = rows.abs().amax(1).clamp_min(1e-12) / 127
    return (rows / scale[:, None]).round().to(torch.int8).view(tensor.shape), scale


def _matrices(path: Path) -> dict[str, tuple[str, str]]:
    """Return the places of the int8 matrices in the file of the folder above, by their digests."""
    found: dict[str, tuple[str, str]] = {}
    if path.is_file() and _is_quantized(path):
        for name, tensor, scale in _stored(path):  # those that the file holds come first
            if scale is not None:
                found.setdefault(_digest(tensor, scale), (ABOVE, name))
    return found


def _digest(matrix: Tensor, scale: Tensor) -> str:
    digest = hashlib.sha256(str(matrix.shape).encode())
    for tensor in (matrix, scale):
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _metadata(path: str | Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def _is_quantized(path: str | Path) -> bool:
    return _metadata(path).get("ldot_storage") == "int8"


class QuantizedStorage:
    """Mix-in for a ``PreTrainedModel`` that reads int8 storage as well, and refuses weights that do not fit."""

    config_class: Any

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a model as transformers' ``from_pretrained`` does, but refuse weights that do not fit.

        Only safetensors files are read: a ``pytorch_model.bin`` is a pickle, which only ``ldot convert`` reads.

        Raises:
            ModelError: tensors are missing, unknown or of another shape. The message names them.
        """
        source, config, state = pretrained_model_name_or_path, kwargs.pop("config", None), None
        if source is not None:
            hub = {key: kwargs[key] for key in ("subfolder", "revision", "cache_dir", "token") if key in kwargs}
            path = cached_file(source, WEIGHTS_FILE, _raise_exceptions_for_missing_entries=False, **hub)
            if path is not None and _is_quantized(path):
                config = config or cls.config_class.from_pretrained(source, **hub)
                source, state = None, load_quantized(path)
        with_info = kwargs.pop("output_loading_info", False)
        state_argument = {"state_dict": state} if state else {}
        model, info = load_exactly(
            lambda **options: super(QuantizedStorage, cls).from_pretrained(source, *args, config=config, **options),  # type: ignore[misc]
            str(pretrained_model_name_or_path),
            **state_argument,
            **kwargs,
        )
        return (model, info) if with_info else model


def load_exactly(load: Callable[..., Any], source: str, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
    """Load a model by transformers, from safetensors only, and refuse weights that do not fit.

    Args:
        load: calls a class's ``from_pretrained`` with the arguments that it gets.
        source: file or folder of the weights, for the message.
        kwargs: arguments of ``load``.

    Returns:
        The model, and transformers' report about the tensors.

    Raises:
        ModelError: tensors are missing, unknown or of another shape. The message names them.
    """
    # By default transformers prints a table and continues with random weights if tensors are missing, and reads a
    # pickle if there is no safetensors file.
    kwargs |= {"output_loading_info": True, "ignore_mismatched_sizes": True, "use_safetensors": True}
    with _without_report():
        model, info = load(**kwargs)
    refuse_misfits(
        source,
        missing=info["missing_keys"],
        unknown=info["unexpected_keys"],
        misshapen=[key[0] for key in info["mismatched_keys"]],
    )
    return model, info


@contextmanager
def _without_report() -> Iterator[None]:
    """Suppress transformers' table of tensors that do not fit; :func:`refuse_misfits` reports them instead."""

    def silence(record: logging.LogRecord) -> bool:
        return False

    reporter = logging.getLogger("transformers.modeling_utils")
    reporter.addFilter(silence)
    try:
        yield
    finally:
        reporter.removeFilter(silence)


def refuse_misfits(source: str, *, missing: Iterable[str], unknown: Iterable[str], misshapen: Iterable[str]) -> None:
    """Refuse weights that do not match their model exactly.

    Args:
        source: file or folder of the weights, for the message.
        missing: tensors that the model needs and the file lacks.
        unknown: tensors in the file that the model lacks.
        misshapen: tensors of another shape than the model's.

    Raises:
        ModelError: there is such a tensor. The message names the first eight of each group.
    """
    problems = {"missing": missing, "not of this model": unknown, "of another shape": misshapen}
    ordered = {problem: sorted(names) for problem, names in problems.items()}
    listed = "; ".join(f"{problem}: {json.dumps(names[:8])[1:-1]}" for problem, names in ordered.items() if names)
    if listed:
        raise ModelError(f"the weights in {source} do not fit their configuration ({listed})")


def read_content(path: Path) -> Any:
    """Read a ``.safetensors`` file, or what ``torch.save`` wrote of tensors and plain values, on the CPU.

    Raises:
        ModelError: the file contains anything else; nothing else is ever unpickled.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"{path} cannot be read as plain tensors ({reason}); other pickles are refused, because loading one runs "
            "the code in it: save the state dict alone"
        ) from error


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a ``.safetensors`` file or a ``torch.save`` file, also one nested under ``model_dict``.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        ModelError: the file contains anything but plain tensors; nothing else is ever unpickled.
    """
    return state_of(read_content(path), path)


def state_of(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the state dict in what :func:`read_content` read from ``path``.

    Raises:
        ModelError: it contains no state dict.
    """
    if isinstance(content, dict) and isinstance(content.get("model_dict"), dict):
        content = content["model_dict"]
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ModelError(f"{path} contains no state dict: neither tensors by name nor a model_dict of them")
    return {str(name): tensor for name, tensor in content.items()}
