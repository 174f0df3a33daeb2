"""LlamaIndex: a retriever of photos."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import override

from ldot_milvus.errors import InputError
from ldot_milvus.integrations.common import metadata_of, ranking_score
from ldot_milvus.search.hits import Hit
from ldot_milvus.search.probability import check_minimum
from ldot_milvus.search.query import Part
from ldot_milvus.search.shared import shared_retriever
from ldot_milvus.search.threads import in_search_thread
from ldot_milvus.search.thumbnails import thumbnail
from ldot_milvus.sources.base import scheme
from ldot_milvus.sources.reading import located

try:
    from llama_index.core.base.base_retriever import BaseRetriever
    from llama_index.core.schema import ImageNode, NodeWithScore, QueryBundle
except ImportError as error:
    raise ImportError(
        "the LlamaIndex retriever needs the package llama-index-core: pip install 'ldot-milvus[llama-index]'"
    ) from error

_EMBEDDED = 1024  # pixels of the longer side of a photo that a node has to contain


class LightningDOTRetriever(BaseRetriever):
    """A LlamaIndex retriever that returns photos as :class:`ImageNode`.

    A node's text is the photo's caption, or its source if it has none. ``image_path`` or ``image_url`` is the photo's
    place; of a photo in a tar or an object store, ``image`` is a JPEG of at most 1,024 pixels. The metadata contains
    ``source``, ``dot_product``, ``rerank_score``, ``probability``, ``kind``, ``namespace``, ``width`` and ``height``
    in pixels, and the photo's own fields under ``metadata``. A node's score is ``rerank_score``, or the dot product if
    the photo was not re-ranked.

    A :class:`QueryBundle` is searched by its ``embedding`` if it has one, without re-ranking, and else by its texts
    (``custom_embedding_strs``, or ``query_str``) and ``image_path``: several are added up, as in
    :meth:`Retriever.search <ldot_milvus.search.retriever.Retriever.search>`.

    Example:
        >>> retriever = LightningDOTRetriever(store="faiss:./ldot-data", collection="images", k=5)
        >>> retriever.retrieve("two dogs in the snow")  # or await retriever.aretrieve(...)

    The store is opened and the model loaded at the first query, once in a process. A query raises
    :class:`~ldot_milvus.errors.LdotError` if they cannot be used or an argument is invalid.

    Args:
        store: address of the vector store; None takes the setting ``LDOT_STORE``.
        collection: name of the collection; None takes ``LDOT_COLLECTION``.
        model: packaged name, folder or hub id; None takes ``LDOT_MODEL``.
        reranker: folder, hub id or "none"; None takes ``LDOT_RERANKER``, else the model's own.
        k: number of nodes.
        rerank: number of candidates to re-rank; None takes the default of ``Retriever.search``.
        filter: condition on the rows, see ``docs/filters.md``.
        min_probability: return only nodes with at least this probability, perhaps none; None returns all.
        options: ``callback_manager``, ``object_map``, ``objects`` and ``verbose`` of LlamaIndex's ``BaseRetriever``.
    """

    def __init__(
        self,
        store: str | None = None,
        collection: str | None = None,
        *,
        model: str | None = None,
        reranker: str | None = None,
        k: int = 5,
        rerank: int | None = None,
        filter: dict[str, Any] | None = None,
        min_probability: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.store = store
        self.collection = collection
        self.model = model
        self.reranker = reranker
        self.k = k
        self.rerank = rerank
        self.filter = filter
        self.min_probability = min_probability

    @override
    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [NodeWithScore(node=_node(hit), score=ranking_score(hit)) for hit in self._search(query_bundle)]

    @override
    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await in_search_thread(self._retrieve, query_bundle)

    def _search(self, query: QueryBundle) -> list[Hit]:
        retriever = shared_retriever(self.store, self.collection, self.model, self.reranker)
        if query.embedding is not None:
            check_minimum(self.min_probability, retriever.embedder, None, crosses=False)
            return retriever.nearest(np.asarray(query.embedding, np.float32), k=self.k, filter=self.filter)
        options: dict[str, Any] = {
            "k": self.k, "rerank": self.rerank, "filter": self.filter, "min_probability": self.min_probability,
        }  # fmt: skip
        photos = [] if query.image_path is None else [Path(query.image_path)]
        texts = query.embedding_strs
        if photos and not texts:
            return retriever.search(image=photos[0], **options)
        if photos or len(texts) > 1:
            parts: list[Part] = [*((1.0, text) for text in texts), *((1.0, photo) for photo in photos)]
            return retriever.search(parts, **options)
        return retriever.search(texts[0] if texts else query.query_str, **options)


def _node(hit: Hit) -> ImageNode:
    return ImageNode(id_=hit.id, text=hit.caption or hit.source, metadata=metadata_of(hit), **_picture(hit.source))


def _picture(source: str) -> dict[str, str]:
    """Return where LlamaIndex reads the photo, or the photo itself if LlamaIndex cannot read it there."""
    place = located(source)
    if place.problem is None and place.member is None:
        if scheme(place.path) is None:
            return {"image_path": place.path}
        if scheme(place.path) in ("http", "https"):
            return {"image_url": place.path}
    try:
        photo = thumbnail(source, _EMBEDDED)
    except InputError:
        return {}
    return {"image": base64.b64encode(photo).decode(), "image_mimetype": "image/jpeg"}
