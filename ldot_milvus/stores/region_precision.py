"""Eight-bit region data: half the bytes of half precision, with one float32 scale for each row.

A file says by its arrays' names in which form it is, so that files of both forms may lie in one folder, and
``LDOT_REGION_DTYPE`` may be changed at any time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]
SCALE = ".int8_scale"


def to_int8(arrays: Arrays) -> dict[str, NDArray[Any]]:
    """Convert every float16 matrix (n, d) to int8 and a scale for each row; other arrays are unchanged.

    A row is rounded to multiples of its largest value / 127, as in :mod:`ldot_milvus.weights`. Boxes are float32, and
    stay exact.
    """
    packed: dict[str, NDArray[Any]] = {}
    for name, array in arrays.items():
        if array.dtype != np.float16 or array.ndim != 2 or array.size == 0:
            packed[name] = array
            continue
        rows = array.astype(np.float32)
        scale = np.maximum(np.abs(rows).max(1), np.float32(1e-12)) / np.float32(127)
        packed[name] = np.rint(rows / scale[:, None]).astype(np.int8)
        packed[name + SCALE] = scale
    return packed


def from_int8(arrays: Arrays) -> dict[str, NDArray[Any]]:
    """Invert :func:`to_int8`: float16 matrices, up to rounding. Arrays of other files are returned as they are.

    Raises:
        ValueError: a scale does not belong to a matrix of the file.
    """
    unpacked: dict[str, NDArray[Any]] = {}
    for name, array in arrays.items():
        if name.endswith(SCALE):
            if name.removesuffix(SCALE) not in arrays:
                raise ValueError(f"{name} belongs to no array")
            continue
        scale = arrays.get(name + SCALE)
        if scale is None:
            unpacked[name] = array
        elif array.ndim != 2 or scale.shape != array.shape[:1]:
            raise ValueError(f"{name} has shape {array.shape}, and its scale {scale.shape}")
        else:
            unpacked[name] = (array * scale[:, None]).astype(np.float16)
    return unpacked
