"""Addition and deletion of rows at once, in this process, as other frameworks' vector stores have it."""

from __future__ import annotations

from collections.abc import Sequence

from ldot_milvus.batches import batched
from ldot_milvus.errors import InputError, UsageError
from ldot_milvus.images import content_id
from ldot_milvus.ingest.changes import RowChange, change_rows, rows_to_delete
from ldot_milvus.ingest.ingestor import CHUNK_SIZE, Ingestor
from ldot_milvus.ingest.region_data import region_store_to_delete_from
from ldot_milvus.sources import Source, join_descriptions
from ldot_milvus.stores import VectorStore
from ldot_milvus.stores.base import Filter
from ldot_milvus.stores.identity import row_id


def add(ingestor: Ingestor, sources: Sequence[Source]) -> list[str]:
    """Add photos and texts, or replace the rows of their ids.

    Args:
        ingestor: of the collection; the collection is created if it does not exist.
        sources: photos and texts. Of texts with one id the last one counts; descriptions of one photo are joined.

    Returns:
        The id of the row of each source, in order.

    Raises:
        InputError: some sources cannot be added; the others were.
    """
    texts = {_text_id(source): source for source in sources if source.kind == "text"}
    photos = join_descriptions(source for source in sources if source.kind != "text")
    ids: dict[str, str] = {}
    failed = []
    for chunk in batched([*photos, *texts.values()], CHUNK_SIZE):
        failed += ingestor.ingest(chunk, ids=ids).failed
    if failed:
        first = f"{failed[0].source or 'a text'}: {failed[0].reason}"
        raise InputError(first if len(sources) == 1 else f"{len(failed)} of {len(sources)} were not added, as {first}")
    return [_text_id(one) if one.kind == "text" else one.id or ids[one.name] for one in sources]


def delete(
    store: VectorStore,
    *,
    model: str,
    reranker: str | None = None,
    ids: Sequence[str] = (),
    filter: Filter | None = None,
    namespace: str | None = None,
) -> int:
    """Delete rows with their region data.

    Args:
        store: collection of the rows.
        model, reranker: names of the models of the region data, see :class:`~ldot_milvus.ingest.ingestor.Ingestor`.
        ids: delete the rows with these ids.
        filter: delete the rows that match, see ``docs/filters.md``.
        namespace: delete only this tenant's rows; None those of all tenants.

    Returns:
        The number of deleted rows.

    Raises:
        UsageError: neither ids nor a filter select anything, or the filter is empty and would select every row.
    """
    selected = rows_to_delete(store, ids=ids, filter=filter)
    changes = [RowChange(row.id) for row in selected if namespace in (None, row.namespace)]
    if not changes:
        return 0
    return change_rows(store, changes, region_store_to_delete_from(store, model, reranker)).deleted


def _text_id(source: Source) -> str:
    try:
        content = source.caption.encode()
    except (AttributeError, UnicodeEncodeError) as error:
        raise UsageError(f"{source.caption!a} is no text that can be stored: give a str of valid Unicode") from error
    return source.id or row_id(source.namespace, content_id(content))
