"""JSON of requests and answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ldot_milvus.search.hits import Hit

MAX_RESULTS = 1000
"""Largest sum of ``k`` and ``offset``."""

MAX_RERANK = 200
MAX_TEXT = 10_000  # characters; models read some 60 tokens

Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]
Id = Annotated[str, Field(min_length=1, max_length=64)]
Collection = Annotated[
    str | None, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,254}$", description="None searches the default collection.")
]


Weight = Annotated[float, Field(ge=-1e6, le=1e6)]


class Strict(BaseModel):
    """Base of requests: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


def _one_of(*names: str) -> ConfigDict:
    """Let the description say that exactly one of these fields is given."""
    return ConfigDict(json_schema_extra={"oneOf": [{"required": [name]} for name in names]})


class QueryPart(Strict):
    """A text or a row of a composed query: exactly one of them."""

    model_config = _one_of("text", "id")

    text: Text | None = None
    id: Id | None = None


class Options(Strict):
    """What a search may be told besides its query."""

    collection: Collection = None
    k: Annotated[int, Field(ge=1, le=MAX_RESULTS, description="Maximum number of hits.")] = 5
    offset: Annotated[int, Field(ge=0, le=MAX_RESULTS, description="Number of best hits to leave out.")] = 0
    rerank: Annotated[
        int | None,
        Field(ge=0, le=MAX_RERANK, description="Number of best hits to re-rank; None: 20 where the model can."),
    ] = None
    filter: dict[str, Any] | None = Field(None, description="Search only rows that match: docs/filters.md.")
    kind: Literal["image", "text"] = "image"
    namespace: Annotated[str | None, Field(min_length=1, max_length=64)] = None
    min_probability: Annotated[float | None, Field(ge=0, le=1)] = None


class Search(Options):
    """A search: exactly one of ``text``, ``parts`` and ``id``."""

    model_config = _one_of("text", "parts", "id")

    text: Annotated[Text | None, Field(description="What the photos show.")] = None
    parts: Annotated[
        list[Annotated[tuple[Weight, QueryPart], Field(strict=False)]] | None,
        Field(min_length=1, max_length=32, description="Texts and rows with weights."),
    ] = None
    id: Annotated[Id | None, Field(description="Find rows like this one.")] = None


class Row(BaseModel):
    """A row of a collection."""

    id: str
    source: str
    caption: str
    kind: str
    namespace: str
    width: int
    height: int
    metadata: dict[str, Any]


class Found(BaseModel):
    """The answer of a search."""

    hits: list[Hit]
    milliseconds: dict[str, float] = Field(description="Time of each stage.")


class CollectionInfo(BaseModel):
    """A collection that can be searched."""

    name: str
    rows: int
    model: str
    reranker: str | None
    probabilities: bool = Field(description="Whether min_probability works.")
    words: bool = Field(description="Whether POST /v1/rows/{id}/why works.")
