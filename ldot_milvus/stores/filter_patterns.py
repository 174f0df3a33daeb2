"""Patterns of ``$like``: ``%`` is any text, ``_`` any one character, and a backslash takes away their meaning.

A pattern must match the whole text, as in SQL. It distinguishes capital and small letters.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum, auto


class Wildcard(Enum):
    """What a pattern leaves open."""

    ANY = auto()
    ONE = auto()


Tokens = tuple[str | Wildcard, ...]
"""Literal texts, none of them empty and no two side by side, and wildcards."""


def tokens(pattern: str) -> Tokens:
    r"""Split a pattern.

    Raises:
        ValueError: a backslash is not followed by ``%``, ``_`` or a backslash.
    """
    found: list[str | Wildcard] = []
    for part in re.findall(r"\\?.", pattern, re.DOTALL):
        if part in ("%", "_"):
            found.append(Wildcard.ANY if part == "%" else Wildcard.ONE)
            continue
        if part[0] == "\\" and part not in ("\\%", "\\_", "\\\\"):
            raise ValueError("a backslash is followed by %, _ or another backslash")
        if found and isinstance(found[-1], str):
            found[-1] += part[-1]
        else:
            found.append(part[-1])
    return tuple(found)


def glob(parts: Tokens) -> str:
    """Return the pattern for SQLite's GLOB, which distinguishes capital and small letters, as LIKE does not."""
    wildcards = {Wildcard.ANY: "*", Wildcard.ONE: "?"}
    return "".join(
        wildcards[part] if isinstance(part, Wildcard) else re.sub(r"[*?\[]", r"[\g<0>]", part) for part in parts
    )


def predicate(parts: Tokens) -> Callable[[str], bool]:
    """Return a function that matches a text in a time proportional to its length and the pattern's."""
    pieces = [""]  # between two of ANY; each has a fixed length, so that the first place found is as good as any
    for part in parts:
        if part is Wildcard.ANY:
            pieces.append("")
        else:
            pieces[-1] += "." if isinstance(part, Wildcard) else re.escape(part)
    compiled = [re.compile(piece, re.DOTALL) for piece in pieces]
    if len(compiled) == 1:
        return lambda text: compiled[0].fullmatch(text) is not None
    first, *middle, last = compiled
    tail = _length(parts)

    def matches(text: str) -> bool:
        head = first.match(text)
        end = len(text) - tail
        if head is None or head.end() > end or last.match(text, end) is None:
            return False
        start = head.end()
        for piece in middle:
            found = piece.search(text, start, end)
            if found is None:
                return False
            start = found.end()
        return True

    return matches


def _length(parts: Tokens) -> int:
    """Return the number of characters after the last ANY."""
    length = 0
    for part in reversed(parts):
        if part is Wildcard.ANY:
            break
        length += 1 if isinstance(part, Wildcard) else len(part)
    return length


def prefix_bounds(prefix: str) -> tuple[str, str | None]:
    """Return the lowest text with a prefix, and the lowest one above them all, by code point; None: there is none."""
    for place in range(len(prefix) - 1, -1, -1):
        code = ord(prefix[place])
        if code < 0x10FFFF:
            return prefix, prefix[:place] + chr(0xE000 if code == 0xD7FF else code + 1)  # no half of a surrogate pair
    return prefix, None
