"""Compare names of photos as people do: composed and decomposed letters are the same, and a typo has a nearest name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from difflib import get_close_matches
from itertools import islice
from typing import Any
from unicodedata import normalize

from ldot_milvus.sources.base import scheme
from ldot_milvus.sources.metadata import Metadata
from ldot_milvus.sources.selection import MAX_NAMES, NO_PHOTO, Skipped

_COMPARED = 20_000  # names, which takes half a second


def existing(path: str) -> str:
    """Return the spelling of a path that exists: as given, or with its letters composed (NFC) or decomposed (NFD).

    File systems of macOS and archives made there decompose letters, and most programs compose them.

    Args:
        path: a path; an address is returned as it is.

    Returns:
        ``path`` itself if no spelling exists.
    """
    if path.isascii() or scheme(path) or os.path.lexists(path):
        return path
    folder, name = os.path.split(path)
    if folder and folder != path:
        folder = existing(folder)
    for form in ("NFC", "NFD"):
        other = os.path.join(folder, normalize(form, name))
        if os.path.lexists(other):
            return other
    return path


class Descriptions:
    """Descriptions of photos by name, and which of them were used.

    Args:
        metadata: the descriptions, by path or base name.
    """

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata
        self._composed = {normalize("NFC", name): name for name in metadata if not name.isascii()}
        self._unused = dict.fromkeys(metadata)
        self._seen: dict[str, None] = {}  # base names of the photos, for the nearest name

    def of(self, *names: str) -> Mapping[str, Any] | None:
        """Return the description of a photo by the first of its names that has one; the last is its base name."""
        self._seen[names[-1]] = None
        for name in names:
            found = name if name in self._metadata else self._composed.get(normalize("NFC", name))
            if found is not None:
                self._unused.pop(found, None)
                return self._metadata[found]
        return None

    def count_unused(self, skipped: Skipped) -> None:
        """Count the descriptions that no photo had, the first ones with the nearest name of a photo."""
        folded = {name.casefold(): name for name in self._seen}
        for number, name in enumerate(self._unused):
            near = _nearest(os.path.basename(name), folded) if number < MAX_NAMES else None
            skipped.add(NO_PHOTO, f"{name} [nearest: {near}]" if near else name)


def _nearest(name: str, folded: Mapping[str, str]) -> str | None:
    """Return the name most like this one; letter case does not count.

    Args:
        name: a base name.
        folded: the names to choose from, by their form without case.
    """
    wanted = name.casefold()
    if wanted in folded:
        return folded[wanted]
    letters = set(wanted)
    similar = (other for other in folded if abs(len(other) - len(wanted)) < 4 and len(letters ^ set(other)) < 5)
    close = get_close_matches(wanted, islice(similar, _COMPARED), 1)
    return folded[close[0]] if close else None
