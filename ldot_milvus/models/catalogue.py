"""Published models that ldot-milvus reads: licences, sizes and figures, as plain data.

``ldot models`` prints it, and ``docs/models.md`` has the same figures (a test compares them). The figures are the
authors' own unless marked, and those of ldot-mini are from its model card. The weights stay under their own licences;
the package contains ldot-mini's alone.
"""

from __future__ import annotations

from dataclasses import dataclass

COCO, FLICKR30K, FLICKR8K = "COCO 5K", "Flickr30k", "Flickr8k dev"


@dataclass(frozen=True)
class Figure:
    """Recall in percent.

    Attributes:
        data: data set.
        text_to_image, image_to_text: share of the queries whose right answer comes first (R@1).
        setting: how the model was trained and used.
        source: where the figure is published.
        secondary: True if ``source`` quotes somebody else, or is not the authors of the model.
    """

    data: str
    text_to_image: float
    image_to_text: float
    setting: str
    source: str
    secondary: bool = False


@dataclass(frozen=True)
class Kept:
    """What re-ranking stores of a photo.

    Attributes:
        rows, width: shape of the stored matrix.
        rest: bytes that are stored beside it in float32 (a LightningDOT region has seven of box and one of confidence).
    """

    rows: int
    width: int
    rest: int = 0

    @property
    def float16(self) -> int:
        """Bytes with ``LDOT_REGION_DTYPE=float16``, without the file's header."""
        return self.rows * self.width * 2 + self.rest

    @property
    def int8(self) -> int:
        """Bytes with ``LDOT_REGION_DTYPE=int8``, without the file's header: a scale of four bytes for each row."""
        return self.rows * (self.width + 4) + self.rest


@dataclass(frozen=True)
class PublishedModel:
    """A model, or a pair of a model and a re-ranker, that people can take.

    Attributes:
        name: packaged name or hub id.
        family: ``model_type`` of its ``config.json`` (:data:`~ldot_milvus.models.registry.FAMILIES`).
        licence: of the weights, as far as it is known.
        size: of the networks, in words.
        settings: the environment variables to set.
        kept: what is stored of a photo beside its vector; None without a re-ranker.
        figures: the published ones.
        note: what else a user has to know.
        first_stage: hub id of the model under a re-ranker; None for a model.
    """

    name: str
    family: str
    licence: str
    size: str
    settings: str
    kept: Kept | None = None
    figures: tuple[Figure, ...] = ()
    note: str = ""
    first_stage: str | None = None


STAGES = {
    "lightningdot": "both stages: a dual encoder over regions, and cross-attention",
    "siglip": "first stage: SigLIP, and SigLIP 2 of a fixed resolution",
    "edje-reranker": "re-ranker over the image tokens of a first stage",
    "blip": "both stages: a dual encoder, and cross-attention over all vision states",
    "clip": "first stage",
    "metaclip_2": "first stage, multilingual",
    "chinese_clip": "first stage, for Chinese texts",
    "lightningdot-reranker": "re-ranker over the regions of a LightningDOT model",
}
"""What the models of each family do, in the order in which they are printed."""

_CARD = "its model card, ldot_milvus/pretrained/ldot-mini/README.md"
_LAVIS = "the authors, github salesforce/LAVIS, docs/benchmark.rst"
_BIG_VISION = "the authors, github google-research/big_vision, README_siglip2.md"
_EDJE = "the authors, arXiv 2510.06820"
_EDJE_QUOTES = "EDJE's authors, arXiv 2510.06820"
_TUNED = "fine-tuned, re-ranked"
_BLIP_LICENCE = "BSD-3-Clause"
_SIGLIP_LICENCE = "Apache-2.0 (the code; read the weights' card)"
_CLIP_LICENCE = "see its card: CLIP models have various licences"
_PULL_REQUEST = "its branch main has pickled weights only, so take refs/pr/5, which has safetensors"
_NO_SAFETENSORS = "without safetensors in the branch main, name a revision that has them, or use ldot convert"


def _siglip2(name: str, size: str, text_to_image: float, image_to_text: float, *others: Figure) -> PublishedModel:
    figure = Figure(COCO, text_to_image, image_to_text, "zero-shot", _BIG_VISION)
    return PublishedModel(name, "siglip", _SIGLIP_LICENCE, size, f"LDOT_MODEL={name}", figures=(figure, *others))


def _blip(data: str, size: str, kept: Kept, figure: Figure | None = None) -> PublishedModel:
    name = f"Salesforce/blip-itm-{data}"
    pull_request = data == "base-coco"
    return PublishedModel(
        name, "blip", _BLIP_LICENCE, f"{size} parameters, photos of 384 x 384",
        f"LDOT_MODEL={name}@refs/pr/5" if pull_request else f"LDOT_MODEL={name}",
        kept, (figure,) if figure else (), _PULL_REQUEST if pull_request else _NO_SAFETENSORS,
    )  # fmt: skip


PUBLISHED = (
    PublishedModel(
        "ldot-mini", "lightningdot", "Apache-2.0", "67 M parameters with the region extractor",
        "LDOT_MODEL=ldot-mini", Kept(49, 384, rest=49 * 8 * 4),
        (
            Figure(FLICKR8K, 37.9, 48.4, "fine-tuned, dot product", _CARD),
            Figure(FLICKR8K, 38.2, 48.3, _TUNED, _CARD),
        ),
        "the default; small, and trained on 6,000 photos; Flickr8k's dev split has 1,000 photos, COCO 5K has 5,000",
    ),
    _siglip2("google/siglip2-base-patch16-224", "vision part 86 M, photos of 224 x 224", 52.1, 68.9),
    _siglip2("google/siglip2-base-patch16-384", "vision part 86 M, photos of 384 x 384", 54.6, 71.4),
    _siglip2(
        "google/siglip2-large-patch16-384", "vision part 303 M, photos of 384 x 384", 55.3, 71.4,
        Figure(FLICKR30K, 82.3, 94.8, "zero-shot", _EDJE_QUOTES, secondary=True),
    ),
    _siglip2("google/siglip2-so400m-patch14-384", "vision part 400 M, photos of 384 x 384", 55.8, 71.7),
    PublishedModel(
        "shahafw/edje-vl-image-retrieval-reranker", "edje-reranker",
        "BSD-3-Clause (the code; read the weights' card)", "12 layers 384 wide, and an adapter",
        "LDOT_MODEL=google/siglip2-large-patch16-384 LDOT_RERANKER=FOLDER", Kept(64, 384),
        (
            Figure(FLICKR30K, 87.8, 96.5, "zero-shot, first 10 re-ranked", _EDJE),
            Figure(COCO, 64.9, 81.0, "fine-tuned, re-ranked", "not the authors' own table", secondary=True),
        ),
        "FOLDER is what ldot convert makes of the authors' checkpoint",
        "google/siglip2-large-patch16-384",
    ),
    _blip("base-coco", "224 M", Kept(577, 768), Figure(COCO, 64.5, 82.0, _TUNED, _LAVIS)),
    _blip("base-flickr", "224 M", Kept(577, 768), Figure(FLICKR30K, 87.5, 96.9, _TUNED, _LAVIS)),
    _blip("large-coco", "446 M", Kept(577, 1024)),
    _blip("large-flickr", "446 M", Kept(577, 1024)),
    PublishedModel(
        "openai/clip-vit-base-patch16", "clip", _CLIP_LICENCE, "photos of 224 x 224",
        "LDOT_MODEL=openai/clip-vit-base-patch16",
        figures=(Figure(FLICKR30K, 62.1, 81.3, "zero-shot", _EDJE_QUOTES, secondary=True),),
        note="EDJE's authors report 76.8 / 91.1 with a re-ranker trained for it",
    ),
    PublishedModel(
        "openai/clip-vit-large-patch14-336", "clip", _CLIP_LICENCE, "photos of 336 x 336",
        "LDOT_MODEL=openai/clip-vit-large-patch14-336",
        figures=(
            Figure(COCO, 36.5, 57.2, "zero-shot", "the project's notes, origin not recorded", secondary=True),
            Figure(FLICKR30K, 67.0, 86.5, "zero-shot", "the project's notes, origin not recorded", secondary=True),
        ),
    ),
)  # fmt: skip
"""The models, in the order in which they are printed."""


def published(name: str) -> PublishedModel | None:
    """Return the entry of a packaged name or hub id, with or without a revision; None if there is none."""
    return next((model for model in PUBLISHED if model.name == name.partition("@")[0]), None)


def size_in_words(size: int) -> str:
    """Return a number of bytes as "49 KB"; a KB is 1,000 bytes."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if size >= factor:
            value = size / factor
            return f"{value:.2f} {unit}" if value < 10 and unit != "KB" else f"{value:.0f} {unit}"
    return f"{size} B"
