"""The route by which photos are uploaded and ingested."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, UploadFile
from pydantic import BaseModel, Field

from ldot_milvus.search.threads import in_search_thread
from ldot_milvus.serve.answers import PROBLEMS, Refused
from ldot_milvus.serve.schemas import Collection
from ldot_milvus.serve.service import Service, ServiceOf

router = APIRouter(prefix="/v1/ingest", tags=["ingest"], responses=PROBLEMS)

MAX_FILES = 1000


class Begun(BaseModel):
    """A run that was begun."""

    run: str = Field(description="Its id, for /v1/runs/{id}.")


@router.post("")
async def ingest(
    files: list[UploadFile],
    service: ServiceOf,
    collection: Annotated[Collection, Form()] = None,
    namespace: Annotated[str | None, Form(min_length=1, max_length=64)] = None,
) -> Begun:
    """Keep photos in a folder beside the store, and ingest them. Off unless LDOT_SERVE_INGEST is true."""
    check_may_ingest(service)
    if len(files) > MAX_FILES:
        raise Refused(413, "too_large", f"{len(files):,} files are more than {MAX_FILES:,}: send less at a time")
    photos = [(file.filename or "file", await file.read()) for file in files]
    return Begun(run=await in_search_thread(service.uploads.ingest, photos, collection, namespace))


def check_may_ingest(service: Service) -> None:
    """Refuse what writes, unless the service allows it.

    Raises:
        Refused: it does not; the status is 403.
    """
    if not service.settings.serve_ingest:
        raise Refused(403, "not_allowed", "the service takes no photos: whoever runs it can set LDOT_SERVE_INGEST=true")
