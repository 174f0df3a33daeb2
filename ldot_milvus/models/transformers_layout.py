"""Folders in transformers' own layout, as published checkpoints have it, read without torch.

::

    config.json                                          sizes of the networks
    model.safetensors                                    weights, or model.safetensors.index.json and its shards
    preprocessor_config.json (or processor_config.json)  how photos are prepared
    tokenizer.json, tokenizer_config.json, ...           the tokenizer
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from ldot_milvus.errors import ModelError, reason
from ldot_milvus.forks import computation
from ldot_milvus.models.base import ModelFiles

if TYPE_CHECKING:
    import torch

    from ldot_milvus.models.pixels import Preparation

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model",
)  # fmt: skip
PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"


class TransformersFiles(ModelFiles):
    """The files of an embedding model in transformers' layout.

    Attributes:
        network: name of the model's class in transformers.
        image_defaults: values of the family's image processor for keys that its configuration omits.
        default_image_size: side of the network's input in pixels where the configuration omits it.
    """

    network: ClassVar[str]
    default_image_size: ClassVar[int] = 224
    image_defaults: ClassVar[Mapping[str, Any]]
    hub_files: ClassVar[tuple[str, ...]] = (
        "config.json", WEIGHTS, INDEX, "model-*-of-*.safetensors", PREPROCESSOR, PROCESSOR, *TOKENIZER
    )  # fmt: skip

    @override
    def check(self) -> None:
        architectures = self.config.get("architectures") or [self.network]
        if self.network not in architectures:
            raise ModelError(
                f"model {self.name!r} is a {architectures[0]}, and retrieval needs a {self.network}: name such a model"
            )
        _ = self.weights, self.preparation

    @cached_property
    def weights(self) -> list[Path]:
        """The safetensors files.

        Raises:
            ModelError: there are none, or a shard is missing.
        """
        if (self.folder / WEIGHTS).is_file():
            return [self.folder / WEIGHTS]
        if not (self.folder / INDEX).is_file():
            repository = self.name.partition("@")[0]
            where = f"a revision that has them, as {repository}@refs/pr/NUMBER"
            if self.folder.exists() and Path(self.name).expanduser().is_dir():
                where = "a folder that has them"
            raise ModelError(
                f"model {self.name!r} has no {WEIGHTS}, and pickled weights are not loaded, because loading one runs "
                f"the code in it: name {where}, or convert its pytorch_model.bin in a folder with ldot convert"
            )
        try:
            names = set(json.loads((self.folder / INDEX).read_text())["weight_map"].values())
            shards = sorted(self.folder / Path(name).name for name in names)
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise ModelError(f"model {self.name!r}: {INDEX} lists no shards: copy the model again") from error
        missing = [shard.name for shard in shards if not shard.is_file()]
        if missing:
            raise ModelError(f"model {self.name!r} lacks {', '.join(missing[:3])}: copy or download it again")
        return shards

    @property
    def tokenizer_files(self) -> list[Path]:
        """The tokenizer's files, as far as they exist."""
        return [path for name in TOKENIZER if (path := self.folder / name).is_file()]

    @cached_property
    def image_processor(self) -> dict[str, Any]:
        """The configuration of the image processor.

        Raises:
            ModelError: there is none, or it is not JSON.
        """
        nested = not (self.folder / PREPROCESSOR).is_file() and (self.folder / PROCESSOR).is_file()
        path = self.folder / (PROCESSOR if nested else PREPROCESSOR)
        try:
            content = json.loads(path.read_text())
            config = content["image_processor"] if nested else content
            return dict(config)
        except (OSError, ValueError, KeyError, TypeError) as error:
            why = reason(error) if isinstance(error, (OSError, ValueError)) else "it describes no image processor"
            raise ModelError(f"model {self.name!r}: {path} cannot be read ({why}): copy it from the model") from error

    @cached_property
    def preparation(self) -> Preparation:
        """How photos are prepared.

        Raises:
            ModelError: the configuration is missing, is not supported, or is for another input size.
        """
        from ldot_milvus.models.pixels import read_preparation

        try:
            preparation = read_preparation(self.image_processor, self.image_defaults)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"model {self.name!r}: its image processor is not supported: {error}") from error
        side = self.image_size
        if preparation.output != (side, side):
            height, width = preparation.output
            raise ModelError(
                f"model {self.name!r} reads {side} x {side} pixels, and its image processor makes {width} x {height}: "
                "copy config.json and the image processor's configuration from one model"
            )
        return preparation

    @property
    def image_size(self) -> int:
        """Height and width of the network's input in pixels."""
        return int(self.part("vision").get("image_size", self.default_image_size))

    @property
    @override
    def token_width(self) -> int:
        return int(self.part("vision").get("hidden_size", 768))

    def part(self, name: str) -> dict[str, Any]:
        """Return the configuration of the "text" or "vision" part; it omits what has transformers' default value."""
        part: dict[str, Any] = self.config.get(f"{name}_config") or {}
        return part

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that determines a vector, 32 hex digits.

        That is the configuration, the weights, the tokenizer and the image processor.
        """
        config = {name: value for name, value in self.config.items() if not name.startswith("ldot_")}
        return self._hash([config, self.image_processor], [*self.weights, *self.tokenizer_files])

    @cached_property
    def features_fingerprint(self) -> str:
        """Hash of everything that determines the vision states: their configuration, preparation and all weights."""
        return self._hash(["vision", self.part("vision"), self.image_processor], self.weights)

    def _hash(self, about: Any, files: list[Path]) -> str:
        return self._digest(json.dumps([about, [(path.name, file_hash(path)) for path in files]], sort_keys=True), [])


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, 64 hex digits.

    A weight file in the hub's cache is a link to a file that is named by its SHA-256, and is not read.

    Raises:
        ModelError: the file cannot be read.
    """
    try:
        if path.is_symlink() and path.resolve().parent.name == "blobs":
            blob = path.resolve().name
            if re.fullmatch(r"[0-9a-f]{64}", blob):
                return blob
        about = os.stat(path)
        return _file_hash(path, about.st_size, about.st_mtime_ns)
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({reason(error)})") from error


@lru_cache(maxsize=64)
def _file_hash(path: Path, size: int, changed: int) -> str:
    """The hash of a file in one state: gigabytes of weights are read once in a process, not once a fingerprint."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def load_network(files: TransformersFiles, device: torch.device, dtype: torch.dtype, **options: Any) -> Any:
    """Load the network of a model for inference.

    Args:
        files: the model's files.
        device, dtype: where the network runs and in which precision.
        options: arguments of transformers' ``from_pretrained``.

    Raises:
        ModelError: tensors are missing, unknown or of another shape, or a file is damaged.
    """
    import transformers
    from safetensors import SafetensorError

    from ldot_milvus.models.loading import QuietTransformers
    from ldot_milvus.weights import load_exactly

    _ = files.weights  # refuses a folder of pickles
    network = getattr(transformers, files.network)
    try:
        with computation, QuietTransformers():
            model, _ = load_exactly(partial(network.from_pretrained, files.folder), files.name, dtype=dtype, **options)
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"model {files.name!r} cannot be loaded: {first}") from error
    return model.to(device).eval().requires_grad_(False)
