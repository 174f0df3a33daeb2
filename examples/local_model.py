"""The chat model of the examples: a local substitute, or a real one by the variable ``EXAMPLE_MODEL``."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolCall
from langchain_core.outputs import ChatGeneration, ChatResult
from PIL import Image


def chat_model() -> BaseChatModel:
    """Return the model of ``EXAMPLE_MODEL``, such as ``openai:gpt-5-mini``, or a substitute that needs no account.

    A real model needs ``pip install langchain`` and the package of its provider, for instance ``langchain-openai``.
    """
    name = os.environ.get("EXAMPLE_MODEL")
    if not name:
        return LocalModel()
    from langchain.chat_models import init_chat_model

    model: BaseChatModel = init_chat_model(name)
    return model


class LocalModel(BaseChatModel):
    """A substitute for a vision-language model: it opens the pictures that it is shown, and repeats the first caption.

    If it has a tool, it answers a person by a call of the tool.
    """

    tool: str | None = None

    @property
    def _llm_type(self) -> str:
        return "local"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> LocalModel:  # type: ignore[override]
        """Return the model with the first of these tools."""
        return LocalModel(tool=tools[0].name)

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        last = messages[-1]
        if self.tool is not None and isinstance(last, HumanMessage):
            call = ToolCall(name=self.tool, args={"query": last.text}, id="1", type="tool_call")
            answer = AIMessage("", tool_calls=[call])
        else:
            answer = AIMessage(_described(last))
        return ChatResult(generations=[ChatGeneration(message=answer)])


def _described(message: BaseMessage) -> str:
    blocks = message.content_blocks
    pictures = [Image.open(io.BytesIO(base64.b64decode(block["base64"]))) for block in blocks if "base64" in block]
    captions = [block["text"] for block in blocks if block["type"] == "text" and block["text"].startswith("[")]
    if not captions:
        return "No photo was found."
    sizes = ", ".join(f"{picture.width} x {picture.height}" for picture in pictures)
    return (
        f"I see {len(pictures)} pictures ({sizes}). The first shows: {captions[0].removeprefix('[1] ').splitlines()[0]}"
    )
