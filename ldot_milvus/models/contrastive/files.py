"""The files of SigLIP, SigLIP 2, CLIP and models like it, read without torch."""

from __future__ import annotations

import json
import re
import string
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from ldot_milvus.models.pixels import CLIP_MEAN, CLIP_STD
from ldot_milvus.models.transformers_layout import TransformersFiles

if TYPE_CHECKING:
    from ldot_milvus.models.contrastive.embedder import ContrastiveEmbedder


class ContrastiveFiles(TransformersFiles):
    """The files of a dual encoder without a re-ranker.

    Attributes:
        full_length: True if the text encoder reads texts padded to their full length, without a mask.
        default_text_length: tokens of a text where the configuration omits it.
    """

    full_length: ClassVar[bool] = False
    default_text_length: ClassVar[int] = 77

    @property
    def text_length(self) -> int:
        """The largest number of tokens of a text."""
        return int(self.part("text").get("max_position_embeddings", self.default_text_length))

    @property
    @override
    def summary(self) -> str:
        return f"{super().summary}, photos of {self.image_size} x {self.image_size} pixels"

    def prepare(self, text: str) -> str:
        """Return a text as the tokenizer expects it."""
        return text

    @override
    def load(self, *, device: str | None = None, dtype: str | None = None) -> ContrastiveEmbedder:
        from ldot_milvus.models.contrastive.embedder import load_contrastive

        return load_contrastive(self, device=device, dtype=dtype)


class SiglipFiles(ContrastiveFiles):
    """SigLIP and SigLIP 2 of a fixed resolution.

    Texts are lower-cased and padded to the full length (github google-research/big_vision, README_siglip2.md), in which
    the last token is pooled. Tokenizers of SigLIP 2 keep capital letters, so it is done here.
    """

    network = "SiglipModel"
    full_length = True
    default_text_length = 64
    image_defaults: ClassVar = {
        "size": {"height": 224, "width": 224}, "image_mean": 0.5, "image_std": 0.5
    }  # fmt: skip

    @property
    @override
    def dim(self) -> int:
        text = self.part("text")
        return int(text.get("projection_size") or text.get("hidden_size", 768))

    @override
    def prepare(self, text: str) -> str:
        text = text.lower()
        if self._without_punctuation:
            text = re.sub(r"\s+", " ", text.translate(_NO_PUNCTUATION)).strip()
        return text

    @cached_property
    def _without_punctuation(self) -> bool:
        """Whether the tokenizer is SigLIP 1's, which removes punctuation (transformers, ``canonicalize_text``)."""
        try:
            config: Any = json.loads((self.folder / "tokenizer_config.json").read_text())
            return str(config.get("tokenizer_class")).startswith("SiglipTokenizer")
        except (OSError, ValueError, AttributeError):
            return False


class ClipFiles(ContrastiveFiles):
    """CLIP (OpenAI, OpenCLIP and others in transformers' layout)."""

    network = "CLIPModel"
    image_defaults: ClassVar = {
        "size": {"shortest_edge": 224}, "crop_size": 224, "do_center_crop": True, "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
    }  # fmt: skip

    @property
    @override
    def dim(self) -> int:
        return int(self.config.get("projection_dim", 512))


class MetaClip2Files(ClipFiles):
    """MetaCLIP 2: CLIP with a multilingual text encoder."""

    network = "MetaClip2Model"


class ChineseClipFiles(ClipFiles):
    """Chinese-CLIP: CLIP with a BERT for Chinese texts, which the authors cut to 52 tokens."""

    network = "ChineseCLIPModel"
    default_text_length = 512

    @property
    @override
    def text_length(self) -> int:
        return min(52, super().text_length)


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
