"""A LangChain embedding model for texts and photos."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.embeddings import Embeddings
from typing_extensions import override

from ldot_milvus.integrations.langchain.backend import ModelFields
from ldot_milvus.models.base import Embedder, ImageInput
from ldot_milvus.models.registry import find_model


class LightningDOTEmbeddings(ModelFields, Embeddings):
    """A LangChain embedding model for texts and photos. Compare its vectors by inner product.

    The model is loaded at its first use, once for the whole process.

    Args:
        model: packaged name, folder or hub id, or an embedder; None takes the setting ``LDOT_MODEL``.

    Raises:
        ModelError: the model's files are missing or incomplete.
        UsageError: no model has that name.

    Attributes:
        embedder: the embedder that computes the vectors.
    """

    def __init__(self, model: str | Embedder | None = None, **unknown: Any) -> None:
        super().__init__(model=model, **unknown)
        if isinstance(model, str):
            find_model(model)

    @override
    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Encode texts.

        Returns:
            One vector of ``embedder.dim`` values for each text.
        """
        return self.embedder.encode_texts(texts).tolist()  # type: ignore[no-any-return]

    @override
    def embed_query(self, text: str) -> list[float]:
        """Encode one text as a vector of ``embedder.dim`` values."""
        return self.embed_documents([text])[0]

    def embed_image(self, uris: Sequence[ImageInput]) -> list[list[float]]:
        """Encode photos.

        Args:
            uris: the photos: paths, or anything else that ``Embedder.encode_images`` takes.

        Returns:
            One vector of ``embedder.dim`` values for each photo.

        Raises:
            InputError: a photo cannot be read or decoded.
        """
        return self.embedder.encode_images(uris).tolist()  # type: ignore[no-any-return]
