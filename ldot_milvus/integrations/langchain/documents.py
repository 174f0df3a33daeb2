"""Photos as LangChain's documents, and documents as content blocks for vision-language models."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterable
from typing import Any, Literal

from langchain_core.documents import Document

from ldot_milvus.errors import InputError
from ldot_milvus.search.hits import Hit
from ldot_milvus.search.thumbnails import thumbnail
from ldot_milvus.stores import Record

log = logging.getLogger(__name__)

Content = Literal["caption", "source", "image"]

LONGEST_SIDE = 768
"""Pixels of the longer side of a picture in a content block. Most models scale larger ones down themselves."""


def document_of(row: Hit | Record, content: Content = "caption", longest_side: int = LONGEST_SIDE) -> Document:
    """Return a row as a document.

    Args:
        row: a row, or a hit, whose scores become metadata too.
        content: what ``page_content`` is: the caption, or the source. "image" is the caption, and adds the picture to
            the metadata as a content block under ``image``; it is None if the photo cannot be read from here.
        longest_side: of the picture, in pixels.
    """
    metadata: dict[str, Any] = {
        "source": row.source, "caption": row.caption, "kind": row.kind, "namespace": row.namespace,
        "width": row.width, "height": row.height, "metadata": row.metadata,
    }  # fmt: skip
    if isinstance(row, Hit):
        metadata |= {"score": row.score, "rerank_score": row.rerank_score, "probability": row.probability}
    if content == "image":
        metadata["image"] = _picture(row.source, longest_side) if row.kind == "image" else None
    text = row.source if content == "source" else row.caption or row.source
    return Document(id=row.id, page_content=text, metadata=metadata)


def photo_blocks(documents: Iterable[Document], *, longest_side: int = LONGEST_SIDE) -> list[dict[str, Any]]:
    """Return documents as the content of a message for a vision-language model, in LangChain's standard form.

    Args:
        documents: documents of :class:`LightningDOTRetriever`.
        longest_side: larger pictures are scaled down to this, in pixels.

    Returns:
        For each document a text block with its number and its text, and an image block with its picture as JPEG. A
        photo that cannot be read from here has no image block, and its text says so.
    """
    blocks: list[dict[str, Any]] = []
    for number, document in enumerate(documents, start=1):
        about = document.metadata
        picture: dict[str, Any] | None = about.get("image")
        if picture is None and about.get("kind") == "image":
            picture = _picture(about["source"], longest_side)
        missing = " (the picture cannot be read)" if picture is None and about.get("kind") == "image" else ""
        blocks.append({"type": "text", "text": f"[{number}] {document.page_content}{missing}"})
        if picture is not None:
            blocks.append(picture)
    return blocks


def _picture(source: str, longest_side: int) -> dict[str, Any] | None:
    try:
        data = thumbnail(source, longest_side)
    except InputError as error:
        log.warning("a found photo is left out of the content: %s", error)
        return None
    return {"type": "image", "base64": base64.b64encode(data).decode(), "mime_type": "image/jpeg"}
