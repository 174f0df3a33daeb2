"""The route that tells why a photo matches a text."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from ldot_milvus.models.explanation import Explanation
from ldot_milvus.search.threads import in_search_thread
from ldot_milvus.search.why import why
from ldot_milvus.serve.answers import PROBLEMS
from ldot_milvus.serve.rows import RowId, find_row
from ldot_milvus.serve.schemas import Collection, Strict, Text
from ldot_milvus.serve.service import Service, ServiceOf

router = APIRouter(prefix="/v1/rows", tags=["search"], responses=PROBLEMS)


class Question(Strict):
    """A text that found a row."""

    text: Text
    collection: Collection = None


class FoundWord(BaseModel):
    """A word of the text."""

    text: str
    start: int = Field(description="Its place in the text, in characters (code points).")
    end: int


class Reasons(BaseModel):
    """How well each word of a text matches each region of a photo."""

    words: list[FoundWord]
    regions: list[tuple[float, float, float, float]] = Field(
        description="Boxes x0, y0, x1, y1 as shares of the photo's width and height."
    )
    weights: list[list[float]] = Field(description="From 0 to 1, for each word and in it for each region.")
    names: list[str | None] = Field(description="Names of the regions.")


@router.post("/{id}/why", response_model=Reasons)
async def reasons(id: RowId, question: Question, service: ServiceOf) -> JSONResponse:
    """Tell which regions of a photo each word of a text found, where ``words`` of the collection is true."""
    service.check_ready()
    explanation = await in_search_thread(_explain, service, id, question)
    return JSONResponse(explanation.to_dict())


def _explain(service: Service, id: str, question: Question) -> Explanation:
    row = find_row(service, id, question.collection)
    return why(service.retriever(question.collection), question.text, row.id)
