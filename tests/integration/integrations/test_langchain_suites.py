"""LangChain's own standard tests of every component."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.retrievers import BaseRetriever
from langchain_core.tools import BaseTool
from langchain_core.vectorstores import VectorStore
from langchain_tests.integration_tests import (
    EmbeddingsIntegrationTests,
    RetrieversIntegrationTests,
    ToolsIntegrationTests,
    VectorStoreIntegrationTests,
)
from langchain_tests.unit_tests import EmbeddingsUnitTests, ToolsUnitTests

from ldot_milvus.integrations.langchain import (
    LightningDOTEmbeddings,
    LightningDOTRetriever,
    LightningDOTTool,
    LightningDOTVectorStore,
)
from tests.integration.integrations.conftest import Photos


class TestRetriever(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def _place(self, photos: Photos) -> None:
        type(self).parameters = {**photos.fields, "rerank": 4}

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return LightningDOTRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return type(self).parameters

    @property
    def retriever_query_example(self) -> str:
        return "a red square"


class _Embeddings:
    @pytest.fixture(autouse=True)
    def _model(self, tiny_model: str) -> None:
        type(self).parameters = {"model": tiny_model}

    @property
    def embeddings_class(self) -> type[LightningDOTEmbeddings]:
        return LightningDOTEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return type(self).parameters


class TestEmbeddings(_Embeddings, EmbeddingsIntegrationTests):
    pass


class TestEmbeddingsUnit(_Embeddings, EmbeddingsUnitTests):
    pass


class _Tool:
    @pytest.fixture(autouse=True)
    def _photos(self, photos: Photos) -> None:
        type(self).parameters = {"retriever": LightningDOTRetriever(**photos.fields, k=2)}

    @property
    def tool_constructor(self) -> type[BaseTool]:
        return LightningDOTTool

    @property
    def tool_constructor_params(self) -> dict[str, Any]:
        return type(self).parameters

    @property
    def tool_invoke_params_example(self) -> dict[str, Any]:
        return {"query": "a red square"}


class TestTool(_Tool, ToolsIntegrationTests):
    pass


class TestToolUnit(_Tool, ToolsUnitTests):
    pass


class TestVectorStore(VectorStoreIntegrationTests):
    """The packaged model, since the tests expect that a text is nearest to itself."""

    @pytest.fixture
    def vectorstore(self, tmp_path_factory: pytest.TempPathFactory) -> VectorStore:
        folder = tmp_path_factory.mktemp("vectors")
        return LightningDOTVectorStore.from_texts([], LightningDOTEmbeddings("ldot-mini"), store=f"faiss:{folder}")
