"""What a row records of its sources: where its content is, and what each source says of it.

A row has one ``source``. Its metadata lists further sources with the same content (``content_copies``), and who said
what where several sources describe it (``content_captions``).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from ldot_milvus.sources.base import scheme
from ldot_milvus.sources.metadata import join_captions
from ldot_milvus.sources.reading import present
from ldot_milvus.stores import Record
from ldot_milvus.stores.identity import CONTENT_ID

COPIES = "content_copies"
"""Metadata field with further sources of the same content, for rows that have some."""

CAPTIONS = "content_captions"
"""Metadata field with pairs of source and caption, for rows that another source than their own describes."""

MAX_COPIES = 8
"""Further sources that a row lists. If there are more, the row is never deleted for its sources."""

_OURS = (CONTENT_ID, COPIES, CAPTIONS)


def copies_of(row: Record) -> list[str]:
    """Return the further sources that the row lists."""
    copies = row.metadata.get(COPIES)
    return [copy for copy in copies if isinstance(copy, str)] if isinstance(copies, list) else []


def captions_of(row: Record) -> dict[str, str]:
    """Return the captions of a row by the sources that gave them, in order."""
    pairs = row.metadata.get(CAPTIONS)
    listed = [pair for pair in pairs if isinstance(pair, list) and len(pair) == 2] if isinstance(pairs, list) else []
    return {str(source): str(caption) for source, caption in listed} or (
        {row.source: row.caption} if row.caption else {}
    )


def fields_of(row: Record) -> dict[str, Any]:
    """Return the caller's own fields."""
    return own_fields(row.metadata)


def own_fields(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of a row without the fields that ingestion adds."""
    return {name: value for name, value in metadata.items() if name not in _OURS}


def is_absolute(source: str) -> bool:
    """Whether a row's source is an absolute path or an address; earlier versions stored relative paths too."""
    return scheme(source) is not None or os.path.isabs(source)


def at(row: Record, source: str, copies: Iterable[str] | None = None) -> Record:
    """Return the row with another source. What a former source said of the photo is said by the new one.

    Args:
        row: the row.
        source: its new source.
        copies: its further sources; None keeps those that it has.
    """
    others = [copy for copy in dict.fromkeys(copies_of(row) if copies is None else copies) if copy != source]
    if len(others) > MAX_COPIES:
        others = [copy for copy in others if present(copy) != []][:MAX_COPIES]
    gone = {row.source, *copies_of(row)} - {source, *others}
    captions = captions_of(row)
    kept = {place: caption for place, caption in captions.items() if place not in gone}
    if captions and not kept:
        kept = {source: join_captions(captions.values())}
    metadata = {name: value for name, value in row.metadata.items() if name != COPIES}
    moved = replace(row, source=source, metadata={**metadata, COPIES: others} if others else metadata)
    return _with_captions(moved, kept)


def described(row: Record, source: str, caption: str, fields: Mapping[str, Any]) -> Record:
    """Return the row with what one of its sources says of it now.

    The captions of several sources are joined. The fields of the row's own source count before those of its copies, so
    that a run does not undo what another part of it has written.

    Args:
        row: the row.
        source: the source that describes the photo.
        caption: its caption; an empty one changes nothing.
        fields: its own fields; none change nothing.
    """
    if caption and caption != row.caption:
        row = _with_captions(row, {**captions_of(row), source: caption})
    given = {name: value for name, value in fields.items() if name not in _OURS}
    if given:
        if source != row.source:
            given = {**given, **fields_of(row)}
        elif copies_of(row):
            given = {**fields_of(row), **given}
        row = replace(row, metadata={**given, **{name: row.metadata[name] for name in _OURS if name in row.metadata}})
    return row


def _with_captions(row: Record, captions: Mapping[str, str]) -> Record:
    metadata = {name: value for name, value in row.metadata.items() if name != CAPTIONS}
    if captions and list(captions) != [row.source]:
        metadata[CAPTIONS] = [list(pair) for pair in captions.items()]
    caption = next(iter(captions.values())) if len(captions) == 1 else join_captions(captions.values())
    return replace(row, caption=caption, metadata=metadata)
