"""LangChain's forms of a query, and the arguments of a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from langchain_core.messages import BaseMessage, HumanMessage

from ldot_milvus.errors import UsageError
from ldot_milvus.images.inputs import of_data_url
from ldot_milvus.integrations.arguments import refuse_unknown
from ldot_milvus.models.base import ImageInput

Query: TypeAlias = str | ImageInput | Mapping[str, Any] | Sequence[Any] | BaseMessage
"""A text, a photo (``Path``, bytes, a PIL image, a data URL), a content block, a list of blocks, or a message."""

SEARCH_ARGUMENTS = ("k", "rerank", "filter", "kind", "namespace", "min_probability", "content")

_TAKEN = "give a text, a photo (a Path, bytes, a data URL) or content blocks with them"


def search_query(query: Query) -> dict[str, Any]:
    """Return the arguments of :meth:`Retriever.search <ldot_milvus.search.retriever.Retriever.search>` for a query.

    Args:
        query: a ``str`` is a text unless it is a data URL. Of a message and of a list, the content blocks are the
            query: one text or one photo, or several of them, each with the weight 1.

    Raises:
        UsageError: the message has no text and no photo, or a block of another type.
        InputError: a photo in a block or a data URL is not valid base64.
    """
    if isinstance(query, str):
        return {"image": of_data_url(query, "the query")} if query.startswith("data:image/") else {"text": query}
    if isinstance(query, Mapping):
        query = [query]
    if isinstance(query, (list, tuple)):
        if not all(isinstance(block, (str, dict)) for block in query):
            raise UsageError(f"a list as the query has content blocks: {_TAKEN}")
        query = HumanMessage(content=list(query))
    if not isinstance(query, BaseMessage):
        return {"image": query}
    parts = [part for block in query.content_blocks if (part := _part(dict(block))) != ""]
    if not parts:
        raise UsageError(f"the query is empty: {_TAKEN}")
    if len(parts) == 1:
        return {"text" if isinstance(parts[0], str) else "image": parts[0]}
    return {"text": [(1.0, part) for part in parts]}


def search_arguments(given: Mapping[str, Any], owner: str) -> dict[str, Any]:
    """Return arguments of a search as LangChain's retrievers take them.

    Args:
        given: arguments by name; ``score_threshold`` means ``min_probability``.
        owner: what takes them, for messages.

    Raises:
        UsageError: there is no argument of that name.
    """
    arguments = dict(given)
    if "score_threshold" in arguments and "min_probability" not in arguments:
        arguments["min_probability"] = arguments.pop("score_threshold")
    refuse_unknown(arguments, SEARCH_ARGUMENTS, owner)
    return arguments


def _part(block: dict[str, Any]) -> str | Path | bytes:
    if block.get("type") == "text":
        return str(block.get("text", "")).strip()
    if block.get("type") != "image":
        raise UsageError(f"a content block of type {block.get('type')!r} is no query: {_TAKEN}")
    if "base64" in block:
        return of_data_url(f"data:;base64,{block['base64']}", "the image block")
    url = str(block.get("url", ""))
    if url.startswith("data:"):
        return of_data_url(url, "the image block")
    raise UsageError(f"an image block with {_where(block)} cannot be read here: give its content as base64")


def _where(block: Mapping[str, Any]) -> str:
    return next((f"a {name}" for name in ("url", "file_id") if name in block), "no content")
