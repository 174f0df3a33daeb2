"""A tool by which agents search photos and see them."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from langchain_core.callbacks import AsyncCallbackManagerForToolRun, CallbackManagerForToolRun
from langchain_core.documents import Document
from langchain_core.tools import BaseTool
from pydantic import BaseModel, Field, StringConstraints
from typing_extensions import override

from ldot_milvus.integrations.langchain.backend import StrictFields
from ldot_milvus.integrations.langchain.documents import photo_blocks
from ldot_milvus.integrations.langchain.retriever import LightningDOTRetriever


class PhotoQuery(BaseModel):
    """Input of the tool."""

    query: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)] = Field(
        description="what the photos show, in a few words"
    )


class LightningDOTTool(StrictFields, BaseTool):
    """A tool for agents with a vision-language model. Its answer shows the photos that it found.

    The content of the answer is a list of LangChain's standard blocks: for each photo a text block with its number and
    caption, and an image block. The artifact is the list of documents.

    Example:
        >>> tool = LightningDOTTool(retriever=LightningDOTRetriever(k=3))
        >>> agent = create_agent(model, [tool])

    Attributes:
        retriever: finds the photos, and says how many, from which rows, and how large the pictures are
            (``longest_side``).
    """

    name: str = "search_photos"
    description: str = "Search a photo collection by a description. Returns the best matching photos, best first."
    args_schema: Any = PhotoQuery
    response_format: Literal["content", "content_and_artifact"] = "content_and_artifact"
    retriever: LightningDOTRetriever = Field(default_factory=LightningDOTRetriever)

    @override
    def _run(
        self, query: str, run_manager: CallbackManagerForToolRun | None = None
    ) -> tuple[list[Any], list[Document]]:
        callbacks = run_manager.get_child() if run_manager else None
        return self._answer(self.retriever.invoke(query, {"callbacks": callbacks}))

    @override
    async def _arun(
        self, query: str, run_manager: AsyncCallbackManagerForToolRun | None = None
    ) -> tuple[list[Any], list[Document]]:
        callbacks = run_manager.get_child() if run_manager else None
        documents = await self.retriever.ainvoke(query, {"callbacks": callbacks})
        return await asyncio.to_thread(self._answer, documents)

    def _answer(self, documents: list[Document]) -> tuple[list[Any], list[Document]]:
        blocks = photo_blocks(documents, longest_side=self.retriever.longest_side)
        return list(blocks) or [{"type": "text", "text": "No photo was found."}], documents
