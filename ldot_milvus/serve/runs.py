"""Routes of ingestion: what is being ingested, what failed and why, and another attempt."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from ldot_milvus.errors import CollectionNotFound, printable
from ldot_milvus.ingest.journal import FailedItem, Journal, Progress, journal_of
from ldot_milvus.ingest.retries import retries
from ldot_milvus.redaction import masked
from ldot_milvus.search.threads import in_search_thread
from ldot_milvus.serve.answers import PROBLEMS, Refused
from ldot_milvus.serve.ingest import check_may_ingest
from ldot_milvus.serve.schemas import Strict
from ldot_milvus.serve.service import Service, ServiceOf
from ldot_milvus.serve.uploads import RUNS
from ldot_milvus.workers.runs import new_run

router = APIRouter(prefix="/v1", tags=["ingestion"], responses=PROBLEMS)

MAX_LISTED = 100
"""Runs, and failures, in an answer."""

MAX_RETRIED = 10_000


class RunState(BaseModel):
    """A run of ingestion."""

    run: str
    task: str
    collection: str
    items: int
    done: int
    complete: bool
    working: int = Field(description="Chunks that workers process now.")
    started: float = Field(description="In seconds since 1970, as the other times.")
    changed: float
    rate: float = Field(description="Items in a second.")
    seconds_left: float | None
    trouble: str = Field(description="What the workers wait for; empty without trouble.")
    sums: dict[str, float] = Field(description="Counts, seconds:STAGE and failures:REASON.")


class Failed(BaseModel):
    """An item that could not be ingested."""

    source: str
    reason: str
    attempt: int
    time: float
    run: str
    task: str
    collection: str
    key: str = Field(description="Names the failure in a retry.")
    row: str | None = Field(description="Id of the row of that source, if the collection has one.")


class Failures(BaseModel):
    """Failures, the last first."""

    total: int
    failures: list[Failed]


class Retry(Strict):
    """Which failures to retry."""

    keys: Annotated[list[str] | None, Field(max_length=MAX_RETRIED, description="None: all of them.")] = None


class Retried(BaseModel):
    """Runs that a retry began."""

    runs: list[str]


@router.get("/runs", response_model=list[RunState])
async def runs(service: ServiceOf, limit: Annotated[int, Query(ge=1, le=MAX_LISTED)] = 10) -> JSONResponse:
    """List the last runs, newest first."""
    states = await in_search_thread(lambda: _journal(service).last_progress(limit))
    return JSONResponse([_state(state) for state in states])


@router.get("/runs/{id}", response_model=RunState)
async def run(id: str, service: ServiceOf) -> JSONResponse:
    """Return the state of a run."""
    state = await in_search_thread(lambda: _journal(service).progress(id))
    if state is None:
        raise Refused(404, "run_not_found", f"the journal has no run {printable(id)[:80]!r}")
    return JSONResponse(_state(state))


@router.get("/failures", response_model=Failures)
async def failures(
    service: ServiceOf, run: Annotated[str | None, Query(max_length=64, description="Only those of this run.")] = None
) -> JSONResponse:
    """List what could not be ingested, with the reasons; of many failures, the last."""
    return JSONResponse(await in_search_thread(_failures, service, run))


@router.post("/failures/retry", response_model=Retried, status_code=202, responses={403: PROBLEMS[403]})
async def retry(wanted: Retry, service: ServiceOf) -> JSONResponse:
    """Ingest again what failed; refused unless LDOT_SERVE_INGEST is true."""
    check_may_ingest(service)
    if service.runs.waiting >= RUNS:
        raise Refused(429, "queue_full", f"{RUNS} runs wait already: repeat the request", {"Retry-After": "10"})
    return JSONResponse({"runs": await in_search_thread(_retry, service, wanted.keys)}, 202)


def _journal(service: Service) -> Journal:
    return journal_of(service.settings)


def _state(state: Progress) -> dict[str, Any]:
    return {**state.to_dict(), "trouble": printable(masked(state.trouble))}


def _failures(service: Service, run: str | None) -> dict[str, Any]:
    failed = _journal(service).failures(run)
    listed = failed[::-1][:MAX_LISTED]
    rows = _rows(service, listed)
    shown = [{**item.to_dict(), "row": rows.get((item.target.collection, item.source))} for item in listed]
    for item in shown:
        item.update(source=printable(masked(item["source"])), reason=printable(masked(item["reason"])))
    return {"total": len(failed), "failures": shown}


def _rows(service: Service, failed: Iterable[FailedItem]) -> dict[tuple[str, str], str]:
    """Return the ids of rows by collection and source: what failed may be in the collection all the same."""
    if not service.ready:
        return {}
    name = service.settings.collection
    sources = sorted({item.source for item in failed if item.target.collection == name})
    try:
        found = service.retriever(name).store.iterate({"source": {"$in": sources}}) if sources else ()
        return {(name, row.source): row.id for row in found if row.kind == "image"}
    except CollectionNotFound:
        return {}


def _retry(service: Service, keys: list[str] | None) -> list[str]:
    failed = [item for item in _journal(service).failures() if keys is None or item.key in keys][:MAX_RETRIED]
    begun = []
    for task, target, items in retries(failed):
        new = new_run(service.settings, task, items, target=target)
        service.runs.start(new)
        begun.append(new.run.id)
    return begun
