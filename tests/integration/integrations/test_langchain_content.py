"""Found photos as the content of messages: blocks, the tool, and the examples."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.messages import HumanMessage, ToolCall
from PIL import Image

from ldot_milvus.errors import CollectionNotFound, UsageError
from ldot_milvus.integrations.langchain import LightningDOTRetriever, LightningDOTTool, photo_blocks
from tests.conftest import PHOTOS
from tests.integration.integrations.conftest import Photos

QUERY = "a red square"


def opened(block: dict[str, Any]) -> Image.Image:
    """Decode an image block of LangChain's standard form."""
    assert block.keys() == {"type", "base64", "mime_type"}
    assert (block["type"], block["mime_type"]) == ("image", "image/jpeg")
    image = Image.open(io.BytesIO(base64.b64decode(block["base64"])))
    image.load()
    return image


@pytest.fixture
def retriever(photos: Photos) -> LightningDOTRetriever:
    return LightningDOTRetriever(**photos.fields, k=6, longest_side=300)


def test_documents_become_texts_and_pictures(retriever: LightningDOTRetriever) -> None:
    documents = retriever.invoke(QUERY)
    blocks = photo_blocks(documents, longest_side=300)
    assert [block["type"] for block in blocks] == ["text", "image"] * 6
    for number, document in enumerate(documents, start=1):
        text, image = blocks[2 * number - 2 : 2 * number]
        assert text["text"] == f"[{number}] {document.page_content}"
        assert max(opened(image).size) == min(300, document.metadata["width"])
    assert blocks == photo_blocks(retriever.invoke(QUERY, content="image"))
    assert HumanMessage(blocks).content_blocks == blocks


def test_a_photo_that_is_gone_is_told(retriever: LightningDOTRetriever, tmp_path: Path) -> None:
    document = retriever.invoke(QUERY, k=1)[0]
    document.metadata["source"] = str(tmp_path / "gone.jpg")
    (block,) = photo_blocks([document])
    assert block["text"].endswith("(the picture cannot be read)")


def test_documents_of_others_are_text_alone(tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"not ours")
    foreign = Document("a text", metadata={"source": str(tmp_path / "secret.jpg")})
    assert photo_blocks([foreign]) == [{"type": "text", "text": "[1] a text"}]


async def test_the_tool_shows_photos_and_keeps_documents(retriever: LightningDOTRetriever) -> None:
    tool = LightningDOTTool(retriever=retriever.model_copy(update={"k": 2}))
    call = ToolCall(name=tool.name, args={"query": QUERY}, id="1", type="tool_call")
    answer = tool.invoke(call)
    assert [block["type"] for block in answer.content] == ["text", "image"] * 2
    assert max(opened(answer.content[1]).size) <= 300
    assert answer.artifact == retriever.invoke(QUERY, k=2)
    later = await tool.ainvoke(call)
    assert (later.content, later.artifact) == (answer.content, answer.artifact)
    assert tool.args == {
        "query": {
            "description": "what the photos show, in a few words", "minLength": 1, "title": "Query", "type": "string",
        }
    }  # fmt: skip


def test_the_tool_says_when_there_is_nothing(retriever: LightningDOTRetriever) -> None:
    nothing = retriever.model_copy(update={"filter": {"width": 1}})
    answer = LightningDOTTool(retriever=nothing).invoke(
        ToolCall(name="search_photos", args={"query": QUERY}, id="1", type="tool_call")
    )
    assert answer.content == [{"type": "text", "text": "No photo was found."}]
    assert answer.artifact == []


def test_the_tool_refuses_an_empty_query_and_raises_faults_of_the_store(retriever: LightningDOTRetriever) -> None:
    from pydantic import ValidationError

    with pytest.raises(ValidationError, match="at least 1 character"):
        LightningDOTTool(retriever=retriever).invoke({"query": "  "})
    lost = retriever.model_copy(update={"collection": "lost"})
    with pytest.raises(CollectionNotFound):
        LightningDOTTool(retriever=lost).invoke({"query": QUERY})
    with pytest.raises(UsageError, match="takes no argument 'top_k'"):
        LightningDOTTool(retriever=retriever, top_k=3)


@pytest.mark.slow
def test_the_examples_answer_from_what_they_see(run: Callable[..., Any]) -> None:
    """The chain and the agent on the sample photos with the packaged model, as the README shows them."""
    ingested = run("celery", "-A", "workers", "enqueue", str(PHOTOS), "--metadata", str(PHOTOS / "photos.jsonl"))
    assert ingested.returncode == 0, ingested.stderr
    for example, question in (("rag.py", "Where is the dog tied up?"), ("agent.py", "a dog that is tied up")):
        done = run("python", str(PHOTOS.parent / example), question)
        assert done.returncode == 0, done.stderr
        assert "I see 3 pictures (320 x 480, " in done.stdout
        assert "tied to a fire hydrant" in done.stdout
        assert "[1] " in done.stdout.partition("000000377575.jpg")[0]


def test_a_variable_gives_the_examples_a_real_model(monkeypatch: pytest.MonkeyPatch) -> None:
    chat_models = pytest.importorskip("langchain.chat_models", reason="langchain is in the extra examples")
    monkeypatch.setattr(chat_models, "init_chat_model", lambda name: f"model {name}")
    monkeypatch.syspath_prepend(str(PHOTOS.parent))
    import local_model

    assert isinstance(local_model.chat_model(), local_model.LocalModel)
    monkeypatch.setenv("EXAMPLE_MODEL", "openai:gpt-5-mini")
    assert local_model.chat_model() == "model openai:gpt-5-mini"
