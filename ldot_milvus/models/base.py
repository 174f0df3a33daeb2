"""Interfaces of a model family: an :class:`Embedder`, optionally a :class:`Reranker`, and the files of both.

The rest of the package uses models through these interfaces only. The file classes read a model's folder without
importing torch, so that a command with nothing to encode starts at once; ``load`` imports the computing libraries.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from ldot_milvus.errors import ModelError
from ldot_milvus.images import ImageSource
from ldot_milvus.regions.base import Regions

Array = NDArray[np.float32]

Text = str | list[int]
"""A text, or its token ids, [CLS] and [SEP] included."""

ImageInput = ImageSource | Regions
"""An image in one of the forms of :data:`~ldot_milvus.images.ImageSource` (a path, an address, encoded bytes, an open
file, an array, a tensor, a PIL image), or precomputed regions for a family that reads regions."""

ImageFeatures = Any
"""Features computed in one pass over an image's pixels. Only the model family that computed them can read them."""

KeptImage = Mapping[str, NDArray[Any]]
"""Region data: the named arrays that a re-ranker stores for an image. Only the re-ranker can read them."""


class Embedder(Protocol):
    """Encodes texts and images as vectors that are compared by dot product. Instances are thread-safe.

    Attributes:
        name: packaged name, folder or hub id, for messages.
        dim: width of the vectors.
        fingerprint: hash of everything that determines a vector (:attr:`ModelFiles.fingerprint`). A collection is
            bound to it.
        former_fingerprints: fingerprints to which earlier versions of ldot-milvus bound this model's collections.
        least_side: minimum length in pixels of both sides of a photo that is decoded at a reduced size; None if
            photos must be decoded at full size (:attr:`ModelFiles.least_side`).
        vocabulary_size: size of the vocabulary whose token ids are accepted instead of texts; None if the model
            accepts texts only.
        reranker: the model's own re-ranker, on the same device; None if it has none.
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

    def encode_texts(self, texts: Iterable[Text]) -> Array:
        """Encode texts as vectors.

        Args:
            texts: n texts of at least one character: a list, a generator, a NumPy array, a pandas Series, ... Texts
                longer than the model's token limit are truncated.

        Returns:
            float32 (n, dim), the model's own output: nothing is normalised afterwards. No text gives (0, dim).

        Raises:
            UsageError: ``texts`` is a single string instead of a list, or a text is empty or not a ``str``.
        """
        ...

    def encode_images(self, images: Iterable[ImageInput]) -> Array:
        """Encode images as vectors.

        Args:
            images: n images: a list, a generator, a pandas Series, or an array of four dimensions, a batch.

        Returns:
            float32 (n, dim), the model's own output: nothing is normalised afterwards. No image gives (0, dim).

        Raises:
            InputError: an image cannot be read.
            UsageError: ``images`` is a single image instead of a list.
        """
        ...

    def image_features(self, images: Iterable[ImageInput]) -> list[ImageFeatures]:
        """Compute the input of :meth:`encode_features` and :meth:`Reranker.keep` in one pass over the pixels.

        Returns:
            One entry for each image, in order.

        Raises:
            InputError: an image cannot be read, or precomputed features do not fit the model.
            UsageError: the model reads precomputed features only.
        """
        ...

    def encode_features(self, features: Sequence[ImageFeatures]) -> Array:
        """Encode the features that :meth:`image_features` returned as vectors, float32 (n, dim)."""
        ...


class Reranker(Protocol):
    """Scores pairs of a text and an image from the image's region data. Instances are thread-safe.

    Attributes:
        name: packaged name, folder or hub id, for messages.
        fingerprint: hash of everything that determines the region data of an image
            (:attr:`RerankerFiles.fingerprint`). It names the folder of region data.
        former_fingerprints: fingerprints under which earlier versions of ldot-milvus stored the same region data.
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
        """Convert image features to the region data that is stored for re-ranking.

        Args:
            features: from the embedder for which the re-ranker was loaded, or from the re-ranker's own pass
                (:class:`SecondPassReranker`).

        Returns:
            The region data of each image, in order.

        Raises:
            InputError: a value is out of range for the stored precision.
        """
        ...

    def check(self, kept: KeptImage) -> None:
        """Validate region data that was read from a store: the file may be damaged or written by another program.

        Raises:
            InputError: :meth:`keep` cannot have produced this record. The message says why.
        """

    def score(self, texts: Iterable[Text], kept: Sequence[KeptImage]) -> Array:
        """Score text i with image i.

        To score one text with many images, or one image with many texts, repeat it: the part of the computation that
        depends on the text alone runs once for each distinct text.

        Args:
            texts: n texts.
            kept: the region data of n images.

        Returns:
            float32 (n,); higher is better.
        """
        ...


class SecondPassReranker(Reranker, Protocol):
    """A re-ranker that reads the pixels itself, for embedders whose image features it cannot read.

    ``RerankerFiles.load`` returns one where that is so. :meth:`Reranker.keep` then takes the output of
    :meth:`image_features`, and ingestion passes over the pixels twice; :func:`image_features` chooses.

    Attributes:
        least_side: as :attr:`Embedder.least_side`.
    """

    @property
    def least_side(self) -> int | None: ...  # noqa: D102

    def image_features(self, images: Iterable[ImageInput]) -> list[ImageFeatures]:
        """Compute the input of :meth:`Reranker.keep`.

        Raises:
            InputError: an image cannot be read, or is given in a form that the re-ranker does not read.
        """
        ...


class FilesOnDisk:
    """A model's folder. The ``model_type`` in its ``config.json`` names the family; files are read on demand.

    Attributes:
        hub_files: names and patterns of the files that are downloaded of a hub repository; empty for all.
        source: hub id and commit of a model from the hub, ``owner/name@commit``; None for a folder.
    """

    hub_files: ClassVar[tuple[str, ...]] = ()
    source: str | None = None

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder

    def check(self) -> None:
        """Refuse what cannot work, without loading anything. It is called whenever a model is found by its name.

        Raises:
            ModelError: files are missing, or the configuration is not supported.
        """

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of ``config.json``.

        Raises:
            ModelError: the file is missing or is not JSON.
        """
        return read_config(self.name, self.folder)

    def _digest(self, start: str, files: Iterable[Path]) -> str:
        """Return the first 32 hex digits of the SHA-256 over ``start`` and the contents of ``files``.

        Raises:
            ModelError: a file cannot be read.
        """
        try:
            return _digest_of(start, tuple((path, (stat := path.stat()).st_mtime_ns, stat.st_size) for path in files))
        except OSError as error:
            raise ModelError(f"model {self.name!r}: {error.filename} cannot be read ({error.strerror})") from error


@lru_cache(maxsize=64)
def _digest_of(start: str, files: tuple[tuple[Path, int, int], ...]) -> str:
    """Hash files, each version once in a process: a search asks for a fingerprint before and after it loads a model."""
    digest = hashlib.sha256(start.encode())
    for path, *_ in files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:32]


class ModelFiles(FilesOnDisk, ABC):
    """The files of an embedding model. Each family has a subclass, registered under its ``model_type``."""

    @property
    @abstractmethod
    def dim(self) -> int:
        """Width of the model's vectors."""

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that determines a vector, the configuration and the weights: 32 hex digits."""
        return self._digest(json.dumps(self.config, sort_keys=True), [self.folder / "model.safetensors"])

    @property
    def features_fingerprint(self) -> str:
        """Hash of everything that determines the image features, the input of a re-ranker: 32 hex digits."""
        return self.fingerprint

    @property
    def token_width(self) -> int | None:
        """Width of the image tokens in the model's features (:func:`.patches.tokens_of`); None if it is not known."""
        return None

    @property
    def former_fingerprints(self) -> tuple[str, ...]:
        """Fingerprints to which earlier versions of ldot-milvus bound this model's collections."""
        return ()

    @property
    def least_side(self) -> int | None:
        """The embedder's ``least_side``. Photos are decoded before the model is loaded, in case none can be read."""
        return None

    @property
    def summary(self) -> str:
        """The model's components in a few words, for ``ldot doctor``."""
        return f"vectors of {self.dim}"

    def own_reranker(self) -> RerankerFiles | None:
        """Return the files of the model's own re-ranker; None if it has none."""
        return None

    @abstractmethod
    def load(self, *, device: str | None = None, dtype: str | None = None) -> Embedder:
        """Load the model.

        Args:
            device, dtype: see :func:`~ldot_milvus.models.loading.load_embedder`.

        Raises:
            UsageError: the device or dtype is unknown.
            ModelError: files are missing or do not fit together.
        """


class RerankerFiles(FilesOnDisk, ABC):
    """The files of a re-ranker.

    Args:
        name: packaged name, folder or hub id, for messages.
        folder: the re-ranker's folder.
        model: the model whose image features the re-ranker reads.
    """

    def __init__(self, name: str, folder: Path, model: ModelFiles) -> None:
        super().__init__(name, folder)
        self.model = model

    def check(self) -> None:
        """Refuse what cannot work, above all :attr:`model` if its image features are not what the re-ranker reads.

        Raises:
            ModelError: files are missing, the configuration is not supported, or the re-ranker cannot be combined with
                the model: the message names both, and a model that would work.
        """

    @property
    def least_side(self) -> int | None:
        """The ``least_side`` of photos for both stages: the model's, unless the re-ranker makes a pass of its own."""
        return self.model.least_side

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that determines the region data of an image: 32 hex digits."""
        about = json.dumps([self.model.features_fingerprint, self.config], sort_keys=True)
        return self._digest(about, [self.folder / "model.safetensors"])

    @property
    def former_fingerprints(self) -> tuple[str, ...]:
        """Fingerprints under which earlier versions of ldot-milvus stored the same region data."""
        return ()

    @abstractmethod
    def load(self, embedder: Embedder) -> Reranker:
        """Load the re-ranker for an embedder, on the embedder's device.

        Raises:
            ModelError: files are missing or do not fit together, or the re-ranker cannot read the embedder's features.
        """


def read_config(name: str, folder: Path) -> dict[str, Any]:
    """Read the ``config.json`` of a folder.

    Args:
        name: the model's name, for the message.
        folder: the model's folder.

    Raises:
        ModelError: the file is missing or is not JSON.
    """
    path = folder / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"model {name!r}: {path} cannot be read ({error})") from error
    return config
