"""Lists of paths, one a line, and manifests: JSON lines, each a photo with what its owner says, or a text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ldot_milvus.errors import UsageError, printable, reason
from ldot_milvus.sources.metadata import described, json_object, own_fields
from ldot_milvus.sources.objects import open_file

TARGETS = ("path", "url", "file", "text")


def list_lines(path: str) -> list[tuple[int, str]]:
    """The lines of a list of paths with their numbers, without empty ones and comments.

    Raises:
        UsageError: the file cannot be read, or is no text.
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
    """The lines of a manifest that are not empty.

    A line is an object with one of "path", "url" or "file" for a photo or "text" for a text, and the keys of
    :func:`~ldot_milvus.sources.metadata.load_metadata`.

    Returns:
        Number of the line; path or URL, None for a text; fields of :class:`~ldot_milvus.sources.Source`, of which
        ``problem`` tells what is wrong with the line.

    Raises:
        UsageError: the file cannot be read, or its first line is not of a manifest.
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
    named = [key for key in TARGETS if values.get(key) is not None]
    if len(named) != 1:
        raise ValueError('a line has one of "path", "url" and "text"' + (f", not {' and '.join(named)}" * bool(named)))
    target = values.pop(named[0])
    if not isinstance(target, str) or not target.strip():
        raise ValueError(f'"{named[0]}" must be a text that is not empty')
    own = own_fields(values)
    if named[0] != "text":
        return target, described(values, own)
    if "caption" in values or "captions" in values:
        raise ValueError('a text has no "caption": it is itself the caption')
    fields = described(values, {**own, "text": target})
    fields["caption"] = fields.pop("text")
    return None, {**fields, "kind": "text"}
