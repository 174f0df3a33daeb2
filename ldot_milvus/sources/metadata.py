"""What owners say about photos and texts: lines of metadata files and manifests, JSON files beside photos in a tar."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from ldot_milvus.errors import UsageError, printable, reason

_LIMITS = {"id": 64, "namespace": 64, "caption": 8192, "text": 8192}  # bytes of UTF-8 that a collection's fields hold

Metadata = Mapping[str, Mapping[str, Any]]
"""By file name: the fields of a :class:`~ldot_milvus.sources.Source` that its owner sets."""


def load_metadata(path: str) -> dict[str, dict[str, Any]]:
    """Read a JSONL file of what the owner knows about the photos.

    Each line is an object with "file" (relative path or base name), optionally "id", "namespace", and "caption" or
    "captions" (a list); all other keys are the photo's metadata, and so are those of an object under "metadata".

    Returns:
        "file" to the fields of :class:`~ldot_milvus.sources.Source` that the line sets.

    Raises:
        UsageError: with file and line, for a line that is not such an object or a file named twice.
    """
    found: dict[str, dict[str, Any]] = {}
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    values = json_object(line)
                    name = values.pop("file", None)
                    if not isinstance(name, str) or not name:
                        raise ValueError('"file" is missing: the photo\'s relative path or base name')
                    name = os.path.normpath(name)
                    if name in found:
                        raise ValueError(f"{printable(name)} is there twice")
                    found[name] = described(values, own_fields(values))
                except ValueError as error:
                    raise UsageError(f"{printable(path)}:{number}: {error}") from error
    except OSError as error:
        raise UsageError(f"{printable(path)}: {reason(error)}") from error
    return found


def json_object(text: bytes) -> dict[str, Any]:
    """Parse; raises ValueError with the reason for whatever is not a JSON object in UTF-8."""
    try:
        values = json.loads(text, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at character {error.pos + 1}") from error
    if not isinstance(values, dict):
        raise ValueError("not a JSON object")
    return values


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def own_fields(values: dict[str, Any]) -> dict[str, Any]:
    """Take "id" and "namespace" out of ``values``: what only a line that names its photo may set."""
    return {key: value for key in ("id", "namespace") if (value := values.pop(key, None)) is not None}


def described(values: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """A source's fields: ``own`` and the caption of ``values`` checked, the rest of ``values`` as metadata."""
    captions = values.pop("captions" if "captions" in values else "caption", None)
    if isinstance(captions, list) and all(isinstance(line, str) for line in captions):
        captions = "\n".join(captions)
    if captions is not None:
        own = {**own, "caption": captions}
    if isinstance(values.get("metadata"), dict):
        values = {**values, **values["metadata"]}
        del values["metadata"]
    for key, value in own.items():
        if not isinstance(value, str) or (not value and key != "caption"):
            raise ValueError(f'"{key}" must be a text')
        if len(value.encode("utf-8", "surrogatepass")) > _LIMITS[key]:
            raise ValueError(f'"{key}" is longer than {_LIMITS[key]} bytes')
    try:
        json.dumps([own, values], ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError("half a surrogate pair: no store can keep that text") from error
    return {**own, "metadata": values}
