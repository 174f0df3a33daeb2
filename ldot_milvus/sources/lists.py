"""Parse lists of paths, one per line, and manifests, with one JSON object per line for a photo or a text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ldot_milvus.errors import UsageError, printable, reason
from ldot_milvus.sources.metadata import json_object, pop_identity, source_fields
from ldot_milvus.sources.objects import open_file

TARGETS = ("path", "url", "file", "text")


def list_lines(path: str) -> list[tuple[int, str]]:
    """Read a list of paths, without empty lines and comments (``#``).

    Returns:
        Line number, from 1, and path of each line.

    Raises:
        UsageError: the file cannot be read, or is not text in UTF-8.
    """
    try:
        with open_file(path) as file:
            text = file.read().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise UsageError(f"{printable(path)}: {reason(error)}") from error
    if b"\0" in text:
        raise UsageError(f"{printable(path)}: not a list of paths in UTF-8, one a line")
    numbered = enumerate(text.decode("utf-8", "surrogateescape").split("\n"), 1)
    return [(number, line) for number, raw in numbered if (line := raw.strip()) and not line.startswith("#")]


def manifest_lines(path: str) -> Iterator[tuple[int, str | None, dict[str, Any]]]:
    """Read the lines of a manifest, without empty ones.

    A line is a JSON object with one of "path", "url" or "file" for a photo or "text" for a text, and the keys of
    :func:`~ldot_milvus.sources.metadata.load_metadata`.

    Yields:
        The line number, from 1; the path or URL, None for a text; the fields of
        :class:`~ldot_milvus.sources.Source` that the line sets, of which ``problem`` is the error in an invalid line.

    Raises:
        UsageError: the file cannot be read, or its first line is invalid, so that it is not a manifest.
    """
    first = True
    try:
        with open_file(path) as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    target, fields = _parsed(line.removeprefix(b"\xef\xbb\xbf"))
                except ValueError as error:
                    if first:
                        raise UsageError(f"{printable(path)}:{number}: {error}") from error
                    target, fields = None, {"problem": str(error)}
                first = False
                yield number, target, fields
    except OSError as error:
        raise UsageError(f"{printable(path)}: {reason(error)}") from error


def _parsed(line: bytes) -> tuple[str | None, dict[str, Any]]:
    values = json_object(line)
    keys = [key for key in TARGETS if values.get(key) is not None]
    if len(keys) != 1:
        raise ValueError(
            'a line must have one of "path", "url" and "text"' + f", not {' and '.join(keys)}" * bool(keys)
        )
    target = values.pop(keys[0])
    if not isinstance(target, str) or not target.strip():
        raise ValueError(f'"{keys[0]}" must be a string that is not empty')
    identity = pop_identity(values)
    if keys[0] != "text":
        return target, source_fields(values, identity)
    if "caption" in values or "captions" in values:
        raise ValueError('a line with "text" must not have a "caption": the text is stored as the caption')
    fields = source_fields(values, {**identity, "text": target})
    fields["caption"] = fields.pop("text")
    return None, {**fields, "kind": "text"}
