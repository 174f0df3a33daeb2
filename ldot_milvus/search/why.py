"""Why a photo matches a text: the words of the text, and the regions of the photo that each of them matches.

The answer comes from stored region data; no photo is opened.
"""

from __future__ import annotations

from ldot_milvus.errors import InputError, UsageError, printable
from ldot_milvus.models.explanation import Explains, Explanation
from ldot_milvus.search.retriever import Retriever


def can_explain(retriever: Retriever) -> bool:
    """Return whether :func:`why` works with the retriever's re-ranker."""
    return isinstance(retriever.reranker, Explains)


def why(retriever: Retriever, text: str, id: str) -> Explanation:
    """Compare each word of a text with each region of a photo.

    Args:
        retriever: searches the collection of the photo.
        text: query text.
        id: id of the photo's row.

    Raises:
        UsageError: the text is empty, or the re-ranker cannot tell: it is missing, or keeps tokens without a place.
        InputError: the photo has no region data, or they are damaged.
        RegionStoreNotFound: this process does not reach the region data.
    """
    reranker, region_store = retriever.reranker, retriever.region_store
    if reranker is None or region_store is None:
        raise UsageError("without a re-ranker, there are no words to show: name one with LDOT_RERANKER")
    if not isinstance(reranker, Explains):
        raise UsageError(
            f"re-ranker {reranker.name!r} does not tell which regions a word found: name another with LDOT_RERANKER"
        )
    kept = region_store.get([id]).get(id)
    if kept is None:
        raise InputError(f"photo {printable(id)} has no region data in {region_store.address}: ingest it again")
    reranker.check(kept)
    return reranker.explain(text, kept)
