"""Parse the descriptions of photos and texts: lines of metadata files and manifests, and JSON files in a tar."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from ldot_milvus.arguments import path_text
from ldot_milvus.errors import UsageError, printable, reason

_LIMITS = {
    "id": 64,
    "namespace": 64,
    "caption": 8192,
    "text": 8192,
}  # sizes of a collection's fields, in bytes of UTF-8

Metadata = Mapping[str, Mapping[str, Any]]
"""File name to the fields of :class:`~ldot_milvus.sources.Source` that its description sets."""


def load_metadata(path: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """Read a JSONL file that describes photos.

    Each line is a JSON object with "file" (relative path or base name), and optionally "id", "namespace", and
    "caption" or "captions" (a list). All other keys become the photo's metadata, as do the keys of an object under
    "metadata". Several lines may describe one photo: their captions are joined.

    Args:
        path: path of the file.

    Returns:
        The value of "file" to the fields of :class:`~ldot_milvus.sources.Source` that the line sets.

    Raises:
        UsageError: the file cannot be read, a line is not such an object, or two lines give a photo different ids; the
            message names file and line.
    """
    fields: dict[str, dict[str, Any]] = {}
    path = path_text(path)
    try:
        with open(os.path.expanduser(path), "rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    values = json_object(line)
                    name = values.pop("file", None)
                    if not isinstance(name, str) or not name:
                        raise ValueError('"file" is missing: the photo\'s relative path or base name')
                    name = os.path.normpath(name)
                    described = source_fields(values, pop_identity(values))
                    fields[name] = joined(fields[name], described) if name in fields else described
                except ValueError as error:
                    raise UsageError(f"{printable(path)}:{number}: {error}") from error
    except OSError as error:
        raise UsageError(f"{printable(path)}: {reason(error)}") from error
    return fields


def join_captions(captions: Iterable[str]) -> str:
    """Join captions, one per line, in their order and without repeated lines."""
    return "\n".join(dict.fromkeys(line for caption in captions for line in caption.split("\n") if line))


def joined(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of two descriptions of one photo: all captions, and the later value of every other field.

    Raises:
        ValueError: they have different ids or namespaces, or their captions are together too long.
    """
    for key in ("id", "namespace"):
        if first.get(key, second.get(key)) != second.get(key, first.get(key)):
            raise ValueError(f'it occurs twice, with the {key} "{first[key]}" and "{second[key]}"')
    fields = {**first, **second, "metadata": {**first.get("metadata", {}), **second.get("metadata", {})}}
    captions = [fields["caption"] for fields in (first, second) if fields.get("caption")]
    if len(captions) == 2:
        fields["caption"] = join_captions(captions)
        if len(fields["caption"].encode()) > _LIMITS["caption"]:
            raise ValueError(f"its captions are together longer than {_LIMITS['caption']} bytes")
    elif captions:
        fields["caption"] = captions[0]
    return fields


def json_object(text: bytes) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        ValueError: the text is not UTF-8, or not a JSON object; the message is the reason.
    """
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


def pop_identity(values: dict[str, Any]) -> dict[str, Any]:
    """Remove "id" and "namespace" from ``values`` and return them. The JSON files in a tar cannot set them."""
    return {key: value for key in ("id", "namespace") if (value := values.pop(key, None)) is not None}


def source_fields(values: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a source.

    Args:
        values: the description, of which "caption" or "captions" is removed; all other keys become the metadata.
        fields: further fields, such as "id".

    Returns:
        ``fields`` with "caption" and "metadata".

    Raises:
        ValueError: a field is not a string, or too long, or a string has half a surrogate pair.
    """
    caption, captions = values.pop("caption", None), values.pop("captions", None)
    if captions is None:
        captions = caption
    if isinstance(captions, list) and all(isinstance(line, str) for line in captions):
        first = [caption] if isinstance(caption, str) and caption and caption not in captions else []
        captions = join_captions([*first, *captions])
    if captions is not None:
        fields = {**fields, "caption": captions}
    if isinstance(values.get("metadata"), dict):
        values = {**values, **values["metadata"]}
        del values["metadata"]
    for key, value in fields.items():
        if not isinstance(value, str):
            raise ValueError(f'"{key}" must be a string')
        if not value and key != "caption":
            raise ValueError(f'"{key}" must not be empty')
        if len(value.encode("utf-8", "surrogatepass")) > _LIMITS[key]:
            raise ValueError(f'"{key}" is longer than {_LIMITS[key]} bytes')
    try:
        json.dumps([fields, values], ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError("half a surrogate pair, which no store can keep: write the character in UTF-8") from error
    return {**fields, "metadata": values}
