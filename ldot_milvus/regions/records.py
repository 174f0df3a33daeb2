"""Encode and decode one photo's record of region features, as LMDBs and npz files store it."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from ldot_milvus.errors import InputError
from ldot_milvus.regions.base import Regions

MAX_RECORD = 64 * 2**20
"""Maximum size in bytes of a decompressed record: a hundred times that of the largest published records."""


def decode_record(value: bytes, where: str) -> Regions:
    """Decode a record of the LMDBs or a npz file; nothing is ever unpickled.

    Args:
        value: the record, msgpack or npz.
        where: file and name of the record, for messages.

    Raises:
        InputError: the record is not region features.
    """
    arrays = _arrays(value, where)
    missing = {"features", "norm_bb", "conf"} - arrays.keys()
    if missing:
        raise InputError(
            f"{where}: no {', '.join(sorted(missing))}; its arrays are {', '.join(sorted(arrays)) or 'none'}"
        )
    soft_labels, labels = arrays.get("soft_labels"), arrays.get("label_probabilities")
    try:
        boxes = arrays["norm_bb"].astype(np.float32)
        if boxes.ndim != 2 or boxes.shape[1] != 6:
            raise ValueError(f"norm_bb has shape {boxes.shape}, not (n, 6)")
        area = boxes[:, 4:5] * boxes[:, 5:6]
        return Regions(
            arrays["features"].astype(np.float32),
            np.concatenate([boxes, area], axis=1),
            arrays["conf"].astype(np.float32).reshape(-1),
            None if soft_labels is None else soft_labels.astype(np.float32),
            label_probabilities=None if labels is None else labels.astype(np.float32),
        )
    except (InputError, ValueError, TypeError) as error:  # from Regions, and from numpy for texts instead of numbers
        raise InputError(f"{where}: {error}") from error


def encode_npz(regions: Regions) -> bytes:
    """Encode regions as a compressed npz, in half precision."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **_halves(regions))  # type: ignore[arg-type]
    return buffer.getvalue()


def encode_msgpack(regions: Regions) -> bytes:
    """Encode regions as msgpack, in half precision."""
    import msgpack

    arrays = {name: _packed(array) for name, array in _halves(regions).items()}
    record: bytes = msgpack.packb(arrays, use_bin_type=True)
    return record


def _arrays(value: bytes, where: str) -> dict[str, np.ndarray[Any, Any]]:
    """Decode the arrays of a record, npz or msgpack, by name."""
    try:
        if value[:2] == b"PK":
            with np.load(io.BytesIO(value), allow_pickle=False) as archive:
                size = sum(member.file_size for member in archive.zip.infolist())
                if size > MAX_RECORD:
                    raise ValueError(f"{size:,} bytes unpacked are more than the limit of {MAX_RECORD:,}")
                return {name: archive[name] for name in archive.files if name != "allow_pickle"}
        import msgpack

        record = msgpack.unpackb(value, raw=True, strict_map_key=False)
        return {name.decode(): _unpacked(packed) for name, packed in record.items()}
    except Exception as error:  # damaged archives raise many types: zlib.error, NotImplementedError, ...
        raise InputError(f"{where}: not region features as msgpack or npz ({error})") from error


def _halves(regions: Regions) -> dict[str, np.ndarray[Any, Any]]:
    """Return the arrays of the authors' files and the label probabilities, which these lack, in half precision."""
    arrays = {"features": regions.features, "norm_bb": regions.boxes[:, :6], "conf": regions.confidence}
    if regions.soft_labels is not None:
        arrays["soft_labels"] = regions.soft_labels
    if regions.label_probabilities is not None:
        arrays["label_probabilities"] = regions.label_probabilities
    return {name: np.ascontiguousarray(array, np.float16) for name, array in arrays.items()}


def _packed(array: np.ndarray[Any, Any]) -> dict[bytes, Any]:
    """Encode an array as the package msgpack-numpy does."""
    return {b"nd": True, b"type": array.dtype.str, b"kind": b"", b"shape": array.shape, b"data": array.tobytes()}


def _unpacked(packed: dict[bytes, Any]) -> np.ndarray[Any, Any]:
    if packed[b"nd"] is not True or packed[b"kind"]:
        raise ValueError("not a plain array")
    flat: np.ndarray[Any, Any] = np.frombuffer(packed[b"data"], np.dtype(packed[b"type"].decode()))
    return flat.reshape([int(side) for side in packed[b"shape"]])
