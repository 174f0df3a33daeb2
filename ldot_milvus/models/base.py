"""What every model family gives: an :class:`Embedder`, perhaps a :class:`Reranker`, and the files of both.

Nothing outside :mod:`ldot_milvus.models` knows more of a model. Files are read without torch, so that a command with
nothing to encode starts at once; ``load`` is where a family imports what it computes with.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ldot_milvus.errors import ModelError
from ldot_milvus.images import ImageSource
from ldot_milvus.regions.base import Regions

Array = NDArray[np.float32]

Text = str | list[int]
"""A text, or its token ids, [CLS] and [SEP] included."""

ImageInput = ImageSource | Regions
"""A path, encoded bytes, a PIL image, or ready regions for a family that reads them."""

ImageFeatures = Any
"""What one pass over an image's pixels gives: its family's own, opaque to everything else."""

KeptImage = Mapping[str, NDArray[Any]]
"""What a re-ranker keeps of an image: named arrays, opaque to everything but the re-ranker."""


class Embedder(Protocol):
    """Texts and images to vectors that are compared by dot product. Threads may share one.

    Attributes:
        name: packaged name, folder or hub id, for messages.
        dim: width of the vectors.
        fingerprint: of everything that decides a vector (:attr:`ModelFiles.fingerprint`); a collection is bound to it.
        former_fingerprints: those to which earlier versions of ldot-milvus bound a collection of this model.
        least_side: pixels that both sides of a photo must keep where it is decoded at a reduced size; None where it
            must not be reduced.
        vocabulary_size: entries of the vocabulary whose token ids are taken in place of texts; None where texts only.
        reranker: the re-ranker that comes with the model, on the same device; None where there is none.
    """

    name: str
    dim: int

    @property
    def fingerprint(self) -> str: ...  # noqa: D102
    @property
    def former_fingerprints(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def least_side(self) -> int | None: ...  # noqa: D102
    @property
    def vocabulary_size(self) -> int | None: ...  # noqa: D102
    @property
    def reranker(self) -> Reranker | None: ...  # noqa: D102

    def encode_texts(self, texts: Sequence[Text]) -> Array:
        """Vectors of texts.

        Args:
            texts: at least one character each; long ones are cut to the model's limit of tokens.

        Returns:
            float32 (n, dim), as the model gives them: nothing is normalised afterwards.

        Raises:
            UsageError: a single string in the place of a list, or an empty text.
        """
        ...

    def encode_images(self, images: Sequence[ImageInput]) -> Array:
        """Vectors of images, float32 (n, dim).

        Raises:
            InputError: an image that cannot be read.
        """
        ...

    def image_features(self, images: Sequence[ImageInput]) -> list[ImageFeatures]:
        """The one pass over the pixels: what :meth:`encode_features` and :meth:`Reranker.keep` read.

        Raises:
            InputError: an image that cannot be read, or ready features that this model does not read.
            UsageError: the model reads ready features only.
        """
        ...

    def encode_features(self, features: Sequence[ImageFeatures]) -> Array:
        """Vectors, float32 (n, dim), of what :meth:`image_features` gave."""
        ...


class Reranker(Protocol):
    """Scores a text with an image, of which it reads nothing but what it kept. Threads may share one.

    Attributes:
        name: packaged name, folder or hub id, for messages.
        fingerprint: of everything that decides what is kept of an image (:attr:`RerankerFiles.fingerprint`); it names
            the folder of region data.
        former_fingerprints: those under which earlier versions of ldot-milvus stored the same region data.
        dot_weight: weight of the dot product that retrieval adds to a score.
    """

    name: str

    @property
    def fingerprint(self) -> str: ...  # noqa: D102
    @property
    def former_fingerprints(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def dot_weight(self) -> float: ...  # noqa: D102

    def keep(self, features: Sequence[ImageFeatures]) -> list[KeptImage]:
        """What to keep of images, given the features of the embedder that the re-ranker was loaded for.

        Raises:
            InputError: values that the kept precision cannot hold.
        """
        ...

    def check(self, kept: KeptImage) -> None:
        """Refuse a record that :meth:`keep` cannot have made, as a damaged file or another program leaves it.

        Raises:
            InputError: saying what is wrong with it.
        """

    def score(self, texts: Sequence[Text], kept: Sequence[KeptImage]) -> Array:
        """Scores of text i with image i, float32 (n,); higher is better.

        One text with many images, or one image with many texts, is such a list too: a model computes what concerns one
        side alone once for each distinct text, and may do so for each distinct record.
        """
        ...


class FilesOnDisk:
    """A folder whose ``config.json`` says its family by ``model_type``, read as little as possible."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration.

        Raises:
            ModelError: it cannot be read.
        """
        return read_config(self.name, self.folder)

    def _digest(self, start: str, files: Iterable[Path]) -> str:
        """SHA-256 over ``start`` and the bytes of files: its first 32 hex digits.

        Raises:
            ModelError: a file that cannot be read.
        """
        digest = hashlib.sha256(start.encode())
        for path in files:
            try:
                with path.open("rb") as file:
                    while block := file.read(1 << 20):
                        digest.update(block)
            except OSError as error:
                raise ModelError(f"model {self.name!r}: {path} cannot be read ({error.strerror})") from error
        return digest.hexdigest()[:32]


class ModelFiles(FilesOnDisk, ABC):
    """The files of a model that embeds; a family subclasses it and is registered under its ``model_type``."""

    @property
    @abstractmethod
    def dim(self) -> int:
        """Width of the model's vectors."""

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (first 32 hex digits) of everything that decides a vector: configuration and weights."""
        return self._digest(json.dumps(self.config, sort_keys=True), [self.folder / "model.safetensors"])

    @property
    def features_fingerprint(self) -> str:
        """Of everything that decides the features from which a re-ranker keeps something."""
        return self.fingerprint

    @property
    def former_fingerprints(self) -> tuple[str, ...]:
        """Those by which earlier versions of ldot-milvus named the same model in a collection."""
        return ()

    @property
    def summary(self) -> str:
        """What it is made of, in a few words for ``ldot doctor``."""
        return f"vectors of {self.dim}"

    def own_reranker(self) -> RerankerFiles | None:
        """The re-ranker that comes with the model."""
        return None

    @abstractmethod
    def load(self, *, device: str | None = None, dtype: str | None = None) -> Embedder:
        """Load the model.

        Args:
            device, dtype: see :func:`~ldot_milvus.models.loading.load_embedder`.

        Raises:
            ModelError: files that are missing or do not fit together.
        """


class RerankerFiles(FilesOnDisk, ABC):
    """The files of a re-ranker, together with those of the model whose image features it reads."""

    def __init__(self, name: str, folder: Path, model: ModelFiles) -> None:
        super().__init__(name, folder)
        self.model = model

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (first 32 hex digits) of everything that decides what is kept of an image."""
        about = json.dumps([self.model.features_fingerprint, self.config], sort_keys=True)
        return self._digest(about, [self.folder / "model.safetensors"])

    @property
    def former_fingerprints(self) -> tuple[str, ...]:
        """Those under which earlier versions of ldot-milvus stored the same region data."""
        return ()

    @abstractmethod
    def load(self, embedder: Embedder) -> Reranker:
        """Load the re-ranker for an embedder, on its device.

        Raises:
            ModelError: files that are missing or do not fit together, or an embedder whose features it does not read.
        """


def read_config(name: str, folder: Path) -> dict[str, Any]:
    """The ``config.json`` of a folder.

    Raises:
        ModelError: it is not there, or not JSON.
    """
    path = folder / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"model {name!r}: {path} cannot be read ({error})") from error
    return config
