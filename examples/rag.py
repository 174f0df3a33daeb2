"""Answer a question from photos: a LangChain chain over ``LightningDOTRetriever``.

Run ``make demo`` first (it ingests examples/photos), then ``python examples/rag.py "Where is the dog tied up?"``.
The chat model of this example repeats its input, so that the example runs without an account. Replace it with your own.
"""

from __future__ import annotations

import sys
from typing import Any

from langchain_core.documents import Document
from langchain_core.language_models import SimpleChatModel
from langchain_core.messages import BaseMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableParallel, RunnablePassthrough

from ldot_milvus import LightningDOTRetriever

PROMPT = ChatPromptTemplate.from_template(
    "Answer the question from these photos.\n\nPhotos:\n{photos}\n\nQuestion: {question}"
)


class EchoChatModel(SimpleChatModel):
    """A substitute for a chat model that answers with the description of the first photo in its prompt."""

    @property
    def _llm_type(self) -> str:
        return "echo"

    def _call(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> str:
        photos = str(messages[-1].content).split("Photos:\n")[1]
        return "The best photo shows: " + photos.splitlines()[0].removeprefix("[1] ")


def describe(documents: list[Document]) -> str:
    """Format the photos as numbered lines for the prompt."""
    return "\n".join(f"[{n}] {doc.page_content.splitlines()[0]}" for n, doc in enumerate(documents, start=1))


def main(question: str) -> None:
    """Print the answer and its sources."""
    retriever = LightningDOTRetriever(k=3, rerank=20)
    answer = (
        {"photos": lambda inputs: describe(inputs["documents"]), "question": lambda inputs: inputs["question"]}
        | PROMPT
        | EchoChatModel()
    )
    chain = RunnableParallel(documents=retriever, question=RunnablePassthrough()).assign(answer=answer)
    result = chain.invoke(question)
    print(result["answer"].content)
    print("Sources:")
    for number, document in enumerate(result["documents"], start=1):
        print(f"  [{number}] {document.metadata['source']} (score {document.metadata['rerank_score']:.2f})")


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]) or "Where is the dog tied up?")
