"""An agent that searches photos and sees them: LangChain's agent with ``LightningDOTTool``.

Run ``make demo`` first (it ingests examples/photos) and ``pip install langchain``, then ``python examples/agent.py
"a dog that is tied up"``. The model is a local substitute; ``EXAMPLE_MODEL=anthropic:claude-sonnet-4-5`` takes a real
one (``local_model.py``).
"""

from __future__ import annotations

import sys

from langchain.agents import create_agent
from langchain_core.messages import HumanMessage, ToolMessage
from local_model import chat_model

from ldot_milvus import LightningDOTRetriever
from ldot_milvus.integrations.langchain import LightningDOTTool


def main(question: str) -> None:
    """Print the answer of the agent, and the photos that its tool found."""
    tool = LightningDOTTool(retriever=LightningDOTRetriever(k=3))
    agent = create_agent(chat_model(), [tool])
    messages = agent.invoke({"messages": [HumanMessage(question)]})["messages"]
    print(messages[-1].text)
    for found in (one for one in messages if isinstance(one, ToolMessage)):
        print("Photos:")
        for number, document in enumerate(found.artifact, start=1):
            print(f"  [{number}] {document.metadata['source']}")


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]) or "a dog that is tied up")
