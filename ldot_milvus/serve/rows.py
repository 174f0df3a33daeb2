"""Routes of rows and collections."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query
from fastapi.responses import JSONResponse

from ldot_milvus.models.calibration import MatchingReranker, calibration_of
from ldot_milvus.search.retriever import Retriever
from ldot_milvus.search.threads import in_search_thread
from ldot_milvus.search.why import can_explain
from ldot_milvus.serve.answers import PROBLEMS
from ldot_milvus.serve.schemas import Collection, CollectionInfo, Row
from ldot_milvus.serve.service import Service, ServiceOf
from ldot_milvus.stores.base import Record
from ldot_milvus.stores.validation import row_not_found

router = APIRouter(prefix="/v1", tags=["collections"], responses=PROBLEMS)

RowId = Annotated[str, Path(min_length=1, max_length=64, description="Id of a row.")]
CollectionName = Annotated[Collection, Query()]


@router.get("/collections", response_model=list[CollectionInfo])
async def collections(service: ServiceOf) -> JSONResponse:
    """List the collections that can be searched."""
    service.check_ready()
    return JSONResponse([info.model_dump() for info in await in_search_thread(_collections, service)])


@router.get("/rows/{id}", response_model=Row)
async def row(id: RowId, service: ServiceOf, collection: CollectionName = None) -> JSONResponse:
    """Return a row."""
    service.check_ready()
    return JSONResponse(_as_json(await in_search_thread(find_row, service, id, collection)))


def find_row(service: Service, id: str, collection: str | None) -> Record:
    """Return a row of a collection, without its vector; called in a thread.

    Raises:
        RowNotFound: the collection has no row of that id.
    """
    for found in service.retriever(collection).store.get([id]):
        return found
    raise row_not_found(id)


def _as_json(row: Record) -> dict[str, object]:
    return {name: getattr(row, name) for name in Row.model_fields}


def _collections(service: Service) -> list[CollectionInfo]:
    return [_info(name, retriever) for name, retriever in service.retrievers().items()]


def _info(name: str, retriever: Retriever) -> CollectionInfo:
    reranker = retriever.reranker
    last = reranker or retriever.embedder
    return CollectionInfo(
        name=name,
        rows=retriever.store.count(),
        model=retriever.embedder.name,
        reranker=None if reranker is None else reranker.name,
        probabilities=isinstance(reranker, MatchingReranker) or calibration_of(last) is not None,
        words=can_explain(retriever),
    )
