"""The files of a BLIP retrieval model, read without torch."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from ldot_milvus.errors import ModelError
from ldot_milvus.models.base import Embedder, RerankerFiles
from ldot_milvus.models.pixels import CLIP_MEAN, CLIP_STD
from ldot_milvus.models.transformers_layout import TransformersFiles

if TYPE_CHECKING:
    from ldot_milvus.models.blip.embedder import BlipEmbedder
    from ldot_milvus.models.blip.reranker import BlipReranker

FIRST_TOKEN = "ldot_first_token"
"""Key of ``config.json``: the token at the start of a text that is matched with an image.

"enc", the default, is [ENC], with which the authors train and evaluate; "cls" is [CLS], which transformers' own class
leaves there.
"""

HEAD_WIDTH = 64


class BlipFiles(TransformersFiles):
    """The files of a BLIP retrieval model (transformers' ``BlipForImageTextRetrieval``)."""

    network = "BlipForImageTextRetrieval"
    default_image_size = 384
    image_defaults: ClassVar = {
        "size": {"height": 384, "width": 384}, "image_mean": CLIP_MEAN, "image_std": CLIP_STD
    }  # fmt: skip

    @property
    @override
    def dim(self) -> int:
        return int(self.config.get("image_text_hidden_size", 256))

    @property
    def states_shape(self) -> tuple[int, int]:
        """Number and width of the vision states of a photo."""
        vision = self.part("vision")
        side = self.image_size // int(vision.get("patch_size", 16))
        return side * side + 1, int(vision.get("hidden_size", 768))

    @property
    def first_token(self) -> str:
        """ "enc" or "cls", see :data:`FIRST_TOKEN`."""
        return str(self.config.get(FIRST_TOKEN, "enc"))

    @property
    @override
    def summary(self) -> str:
        return f"{super().summary}, photos of {self.image_size} x {self.image_size} pixels"

    @override
    def check(self) -> None:
        super().check()
        if self.first_token not in ("enc", "cls"):
            raise ModelError(f"model {self.name!r}: {FIRST_TOKEN} is {self.first_token!r}: give 'enc' or 'cls'")
        text = self.part("text")
        width, heads = int(text.get("hidden_size", 768)), int(text.get("num_attention_heads", 8))
        if width != heads * HEAD_WIDTH:
            raise ModelError(
                f"model {self.name!r} has text attention heads that are {width / heads:g} wide, and BLIP was trained "
                f"with {HEAD_WIDTH}: the scores would be wrong, because transformers' default of 8 heads got into this "
                f"copy; set num_attention_heads of text_config in config.json to {max(1, width // HEAD_WIDTH)}, or "
                "take Salesforce's repository"
            )

    @override
    def own_reranker(self) -> BlipRerankerFiles:
        return BlipRerankerFiles(self.name, self.folder, self)

    @override
    def load(self, *, device: str | None = None, dtype: str | None = None) -> BlipEmbedder:
        from ldot_milvus.models.blip.embedder import load_blip

        return load_blip(self, device=device, dtype=dtype)


class BlipRerankerFiles(RerankerFiles):
    """The re-ranker of a BLIP retrieval model, over the states of its own vision transformer.

    Under another model it makes its own pass over the pixels, so it can be combined with every model that reads photos.
    """

    @cached_property
    def blip(self) -> BlipFiles:
        """The files of the whole network."""
        return BlipFiles(self.name, self.folder)

    least_side = None  # photos are decoded at full size, also for its own pass under another model

    @override
    def check(self) -> None:
        self.blip.check()

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that determines the vision states; the same under every first stage: 32 hex digits."""
        return self.blip.features_fingerprint

    @override
    def load(self, embedder: Embedder) -> BlipReranker:
        from ldot_milvus.models.blip.reranker import load_blip_reranker

        return load_blip_reranker(self, embedder)
