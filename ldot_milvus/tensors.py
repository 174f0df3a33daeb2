"""Read weights with NumPy. ``weights.py`` reads and writes them with torch, and describes the storage as int8."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SCALE_SUFFIX = ".int8_scale"
"""What follows the name of a matrix in the name of its scales, where it is stored as int8."""


def read_tensors(path: Path, names: Iterable[str]) -> dict[str, NDArray[np.float32]] | None:
    """Read tensors of a safetensors file in float32, dequantised if they are stored as int8.

    Args:
        path: the file.
        names: of the tensors.

    Returns:
        Tensors by name; None if the file has other types, such as bfloat16, which NumPy lacks.

    Raises:
        OSError, SafetensorError: the file cannot be read, or lacks a tensor.
    """
    from safetensors import safe_open

    tensors: dict[str, NDArray[np.float32]] = {}
    with safe_open(path, framework="np") as file:
        known = set(file.keys())
        for name in names:
            scaled = name + SCALE_SUFFIX in known
            if file.get_slice(name).get_dtype() not in (("I8",) if scaled else ("F32", "F16")):
                return None
            tensor = file.get_tensor(name).astype(np.float32)
            if scaled:
                tensor *= file.get_tensor(name + SCALE_SUFFIX).reshape(-1, *[1] * (tensor.ndim - 1))
            tensors[name] = tensor
    return tensors
