"""The id of a row: one content in one namespace is one row, so that tenants never share a row."""

from __future__ import annotations

import hashlib
import re

from ldot_milvus.stores.base import Record

DEFAULT_NAMESPACE = "default"

CONTENT_ID = "content_id"
"""Metadata field with the SHA-256 of the content in hex, for rows with another id."""


def row_id(namespace: str, content: str) -> str:
    """Return the id of a content in a namespace, 64 hex digits.

    In the namespace "default" it is the SHA-256 of the content; in another one it is derived from both, as
    ``sha256(namespace + NUL + content)``. No namespace contains NUL.

    Args:
        namespace: the tenant.
        content: SHA-256 of the content, in hex.
    """
    if namespace == DEFAULT_NAMESPACE:
        return content
    return hashlib.sha256(f"{namespace}\0{content}".encode()).hexdigest()


def is_content_id(text: str) -> bool:
    """Whether a text can be the SHA-256 of a content in hex."""
    return re.fullmatch("[0-9a-f]{64}", text) is not None


def content_of(row: Record) -> str:
    """Return the SHA-256 of the content of a row, in hex."""
    return str(row.metadata.get(CONTENT_ID, row.id))


def has_own_id(row: Record) -> bool:
    """Whether the caller chose the id of a row."""
    return row.id not in (content_of(row), row_id(row.namespace, content_of(row)))
