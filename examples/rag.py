"""Answer a question from photos: a LangChain chain that shows the found pictures to a vision-language model.

Run ``make demo`` first (it ingests examples/photos), then ``python examples/rag.py "Where is the dog tied up?"``. The
model is a local substitute, so that the example runs without an account. ``EXAMPLE_MODEL=openai:gpt-5-mini`` takes a
real one (``local_model.py``).
"""

from __future__ import annotations

import sys
from typing import Any

from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableLambda, RunnableParallel, RunnablePassthrough
from local_model import chat_model

from ldot_milvus import LightningDOTRetriever
from ldot_milvus.integrations.langchain import photo_blocks


def message(inputs: dict[str, Any]) -> list[HumanMessage]:
    """Return the question with the found photos: a caption and a picture of each."""
    task = {"type": "text", "text": f"Answer the question from these photos: {inputs['question']}"}
    return [HumanMessage([task, *photo_blocks(inputs["documents"])])]


def main(question: str) -> None:
    """Print the answer and its sources."""
    retriever = LightningDOTRetriever(k=3, rerank=20)
    answer = RunnableLambda(message) | chat_model()
    chain = RunnableParallel(documents=retriever, question=RunnablePassthrough()).assign(answer=answer)
    result = chain.invoke(question)
    print(result["answer"].text)
    print("Sources:")
    for number, document in enumerate(result["documents"], start=1):
        print(f"  [{number}] {document.metadata['source']} (score {document.metadata['rerank_score']:.2f})")


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]) or "Where is the dog tied up?")
