"""Read weights with NumPy. ``weights.py`` reads and writes them with torch, and describes the storage as int8."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldot_milvus.errors import ModelError, first_line

SCALE_SUFFIX = ".int8_scale"
"""What follows the name of a matrix in the name of its scales, where it is stored as int8."""

SHARED = "ldot_shared"
"""Metadata of a file of int8 storage: where the matrices are that it lacks, as JSON {name: [file, name there]}."""

OWN, ABOVE = "model.safetensors", "../model.safetensors"
"""The files to which :data:`SHARED` may refer: the same file, and that of the model whose part the folder is."""

Place = tuple[Path, str]
"""File and name of a stored tensor."""


def shared_places(path: Path, metadata: Mapping[str, str] | None) -> dict[str, Place]:
    """Return the places of the matrices that a file reads from elsewhere, by their names in the model.

    Args:
        path: the file.
        metadata: of the file.

    Raises:
        ModelError: the metadata cannot be read, refer to any other file, or to a file that does not exist.
    """
    places: dict[str, Place] = {}
    try:
        shared = json.loads((metadata or {}).get(SHARED, "{}"))
        for name, (file, stored) in shared.items():
            if file not in (OWN, ABOVE):
                raise ValueError(f"it refers to {file}")
            places[name] = (path if file == OWN else path.parent.parent / OWN, str(stored))
    except (TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"the metadata of {path} cannot be read ({first_line(error)}): copy it again") from error
    for file, _ in places.values():
        if not file.is_file():
            raise ModelError(f"{path} reads matrices that {file} has too, which is missing: copy the whole model")
    return places


def by_file(path: Path, names: Iterable[str], shared: Mapping[str, Place]) -> dict[Path, dict[str, str]]:
    """Group tensors by the file that has them, so that each is opened once: their names there by their names.

    Args:
        path: the file that is read.
        names: of the tensors in the model.
        shared: what :func:`shared_places` says of the file.
    """
    grouped: dict[Path, dict[str, str]] = defaultdict(dict)
    for name in names:
        place, stored = shared.get(name, (path, name))
        grouped[place][name] = stored
    return grouped


def read_tensors(path: Path, names: Iterable[str]) -> dict[str, NDArray[Any]] | None:
    """Read tensors of a safetensors file in float32, dequantised if they are stored as int8; those of int64 as such.

    Args:
        path: the file.
        names: of the tensors.

    Returns:
        Tensors by name; None if the file has other types, such as bfloat16, which NumPy lacks.

    Raises:
        ModelError: a matrix is in another file, which does not exist.
        OSError, SafetensorError: a file cannot be read, or lacks a tensor.
    """
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        shared = shared_places(path, file.metadata())
    tensors: dict[str, NDArray[Any]] = {}
    for place, stored_names in by_file(path, names, shared).items():
        with safe_open(place, framework="np") as file:
            known = set(file.keys())
            for name, stored in stored_names.items():
                scaled = stored + SCALE_SUFFIX in known
                kind = file.get_slice(stored).get_dtype()
                if kind not in (("I8",) if scaled else ("F32", "F16", "I64")):
                    return None
                tensor = file.get_tensor(stored)
                if kind != "I64":
                    tensor = tensor.astype(np.float32)
                if scaled:
                    tensor *= file.get_tensor(stored + SCALE_SUFFIX).reshape(-1, *[1] * (tensor.ndim - 1))
                tensors[name] = tensor
    return tensors
