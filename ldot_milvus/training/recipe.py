"""Recipes: a TOML file that describes a training run by its data, its initial model and its stages in order.

Defaults are those of the published fine-tuning (LightningDOT, NAACL 2021) where a value was published.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from ldot_milvus.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SHIPPED = Path(__file__).parent / "recipes"
PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
PathText = Annotated[str, AfterValidator(os.path.expanduser)]
Paths = Annotated[list[PathText], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
EDJE_SCORINGS = ("compressed", "uncompressed", "aligned")
"""Values of ``start.reranker.scoring`` that make an EDJE re-ranker."""
Objectives = Literal["cmr", "vmlm", "smrm_features", "smrm_kl", "smrm_class"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(_Section):
    """Photos with captions, in any form that ``ldot eval`` reads."""

    train: Paths = []
    dev: Paths = []
    split: str = "train"  # of a Karpathy JSON
    dev_split: str = "val"
    photos: PathText | None = None  # the folder of the photos that a Karpathy JSON names
    regions: Paths = []  # region features, used instead of pixels
    dev_regions: Paths = []  # region features of the dev data; unset: ``regions``
    features: PathText | None = None  # the folder of extracted regions; unset: in the run's folder
    views: PositiveInt = 1  # number of views: the photo, then random crops, mirrored for odd numbers
    extraction: dict[str, Any] = {}  # options of the training photos' extractor that differ from the model's


class Labels(_Section):
    """Label names of the initial model: a second path from pixels to language."""

    classifier: str  # folder of an EfficientNet-Lite with labels.json, or a model that has label names
    names: str | None = None  # JSON list of label names in the classifier's order; unset: the classifier's labels.json
    text: str | None = None  # sentence encoder, a BERT; unset: ``start.text``, or that of the model's label names
    shared_layers: NonNegativeInt = 2  # first text layers that it shares with the text encoder, which never trains them
    dim: PositiveInt = 126  # width of their block in a vector
    weight: PositiveFloat = 0.3  # of the label names in the score
    temperature: PositiveFloat = 0.7  # of the classifier's softmax
    cells: PositiveInt = 3  # along each side of a photo
    features: bool = False  # a region's features are followed by the classifier's and by the names' vectors in it


class Start(_Section):
    """The initial model: an existing one, or the components of a new one."""

    model: str | None = None  # packaged name, folder or hub id
    text: str | None = None  # folder or hub id of a BERT, from which a new dual encoder is made
    extractor: str | None = None  # its region extractor: a model's name or a folder of weights; unset: none
    image_layers: PositiveInt = 2  # of the new image encoder, initialised with the last layers of ``text``
    config: dict[str, Any] = {}  # fields of LightningDOTConfig
    text_config: dict[str, Any] = {}  # fields of BertConfig that replace those of ``text``
    image_config: dict[str, Any] = {}  # likewise, for the image encoder
    reranker: dict[str, Any] = {}  # fields of RerankerConfig, for a model without a re-ranker; or of EdjeConfig
    labels: Labels | None = None  # label names, new or instead of the model's; unset: the model stays as it is

    @model_validator(mode="after")
    def _one_of(self) -> Start:
        if (self.model is None) == (self.text is None):
            raise ValueError("give either model (to train it further) or text (to make a new model from it)")
        if self.trains_edje and (self.model is None or self.labels is not None):
            raise ValueError("a compressed re-ranker reads the tokens of an existing model: give model, without labels")
        return self

    @property
    def trains_edje(self) -> bool:
        """True if the run makes an EDJE re-ranker, in a folder of its own, over the tokens of ``model``."""
        return self.reranker.get("scoring") in EDJE_SCORINGS


class Stage(_Section):
    """A stage of training: of the dual encoder ("pretrain", "retrieval") or of the re-ranker ("rerank")."""

    name: str = Field(default="train", pattern=r"^[\w.-]+$")
    task: Literal["pretrain", "retrieval", "rerank"]
    epochs: PositiveInt | None = None  # of the learning rate's schedule; an epoch shows every caption once
    steps: PositiveInt | None = None  # of the schedule, instead of epochs
    stop: PositiveInt | None = None  # end after this number of epochs: a high final rate can generalise better
    patience: PositiveInt | None = None  # end after this number of consecutive evaluations without a better dev recall
    evaluate_every: PositiveInt | None = None  # steps; unset: an epoch
    batch_size: PositiveInt = 64  # pairs per process; a text is compared with the photos of all processes
    captions_per_photo: PositiveInt = 1  # in a batch, for which the photo is encoded once
    hard_negatives: NonNegativeInt = 0  # hard negatives of each pair in a batch
    negative_pool: PositiveInt = 30  # number of nearest wrong answers from which they are drawn
    gradient_accumulation: PositiveInt = 1
    gradient_checkpointing: bool = False
    learning_rate: PositiveFloat = 2e-5
    text_learning_rate: PositiveFloat | None = None  # of the text encoder; unset: ``learning_rate``
    weight_decay: NonNegativeFloat = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    warmup: NonNegativeFloat = 0.1  # below 1: fraction of all steps; else: steps
    schedule: Literal["linear", "cosine"] = "linear"
    max_gradient_norm: PositiveFloat = 2.0
    ema: Fraction = 0.0  # decay of averaged weights, which are evaluated and saved if it is above 0
    frozen_text_layers: NonNegativeInt | None = None  # first text layers that are not trained, with the word embeddings
    standardise: bool = False  # train on region features of mean 0 and deviation 1; the weights absorb the scale after
    regions_kept: PositiveInt | None = None  # number of random regions of a photo in a batch; unset: all
    region_features: PositiveInt | None = None  # first features of a region that the network reads; unset: all
    text_tokens: int | None = Field(default=None, ge=3)  # maximum tokens of a caption; unset: the model's limit
    words_dropped: Fraction = 0.0
    feature_dropout: Fraction = 0.0
    soft_targets: Fraction = 0.0  # fraction of the target for photos with captions of similar meaning
    soft_temperature: PositiveFloat = 0.05
    distilled: float = Field(default=0.0, ge=0, le=1)  # fraction of the loss that distils a re-ranker
    teacher: str | None = None  # re-ranker that a compressed one distils; else the model's own is distilled
    teacher_temperature: PositiveFloat = 2.0
    loss: Literal["matching", "alignment"] = "matching"  # of a compressed re-ranker: of its pairs, or its alignment
    margin: PositiveFloat = 0.2  # of a joint re-ranker's triplet loss
    masked: float = Field(default=0.15, gt=0, lt=1)  # fraction of words or regions that pre-training masks
    mix: dict[Objectives, float] = {}  # relative frequency of each objective in pre-training
    seed: NonNegativeInt = 7

    @model_validator(mode="after")
    def _fits_together(self) -> Stage:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps")
        if self.batch_size % (1 + self.hard_negatives):
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of {1 + self.hard_negatives}: "
                f"a pair and its {self.hard_negatives} hard negatives"
            )
        if self.captions_per_photo > 1 and (self.task == "pretrain" or self.hard_negatives):
            raise ValueError(
                "captions_per_photo: pre-training and hard negatives have pairs of one caption, set it to 1"
            )
        if self.batch_size % self.captions_per_photo:
            raise ValueError(
                f"batch_size {self.batch_size} counts pairs: give a multiple of captions_per_photo, "
                f"{self.captions_per_photo}"
            )
        if (self.task == "pretrain") != bool(self.mix):
            raise ValueError("mix (the frequency of each objective) belongs to the task 'pretrain', which requires it")
        if min(self.mix.values(), default=0) < 0 or (self.mix and sum(self.mix.values()) == 0):
            raise ValueError("mix requires weights of at least 0, one of them above 0")
        only = {"standardise": self.standardise, "soft_targets": self.soft_targets, "distilled": self.distilled,
                "hard_negatives": self.hard_negatives, "region_features": self.region_features}  # fmt: skip
        if self.task == "pretrain" and any(only.values()):
            given = ", ".join(name for name, value in only.items() if value)
            raise ValueError(f"{given}: not supported in pre-training, remove it")
        if self.task != "rerank" and self.teacher is not None:
            raise ValueError("teacher: only a compressed re-ranker has another teacher than the model's own re-ranker")
        if self.teacher is not None and not self.distilled:
            raise ValueError("teacher: has no effect without distilled, its share of the loss")
        return self


class Finish(_Section):
    """Steps after the last stage, applied to its best model."""

    principal_dim: PositiveInt | None = None  # principal directions of what is learned; unset: as the initial model's
    canonical_dim: NonNegativeInt = 0  # of canonical correlations, computed anew; 0: as the initial model's
    calibration_anchors: int | None = Field(default=None, ge=0)  # of hubness calibration; unset: as the initial model's
    dot_weight: bool = False  # select the weight of the dot product in re-ranking on the dev split
    probability: bool = False  # fit the probability of a hit on the dev split
    storage: Literal["float32", "int8"] = "float32"
    fuller_storage: list[str] = []  # int8 storage stores tensors whose names contain one of these in half precision

    @property
    def reads_all_photos(self) -> bool:
        """True if parts of the dual encoder are computed from all training photos, not from the anchors' alone."""
        return bool(self.canonical_dim or self.principal_dim)


class Trainer(_Section):
    """Use of the machine."""

    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = "auto"  # auto: the fastest precision of the device
    checkpoint_every: PositiveInt = 500  # steps; also after every evaluation
    log_every: PositiveInt = 20  # steps
    workers: int | None = Field(default=None, ge=0)  # processes that prefetch batches; unset: 4 with a GPU, else 0


class Recipe(_Section):
    """A complete recipe. The values of a table ``every_stage`` apply to all stages that do not override them."""

    data: Data = Data()
    start: Start
    stages: list[Stage] = []
    finish: Finish = Finish()
    trainer: Trainer = Trainer()

    @property
    def changes_vectors(self) -> bool:
        """True if the run changes the dual encoder: by a stage, by label names or by what is computed after."""
        computed = self.start.labels is not None or self.finish.reads_all_photos
        return computed or any(stage.task != "rerank" for stage in self.stages)

    @model_validator(mode="before")
    @classmethod
    def _with_every_stage(cls, content: Any) -> Any:
        if not isinstance(content, dict) or not isinstance(content.get("every_stage"), dict):
            return content
        stages = [{**content["every_stage"], **stage} for stage in content.get("stages", [])]
        return {name: value for name, value in content.items() if name != "every_stage"} | {"stages": stages}

    @model_validator(mode="after")
    def _changes_something(self) -> Recipe:
        if not self.stages and not self.changes_vectors:
            raise ValueError("stages: give at least one, start.labels or finish.canonical_dim or finish.principal_dim")
        return self

    @model_validator(mode="after")
    def _names_differ(self) -> Recipe:
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stages need different names; these are {', '.join(names)}")
        return self

    @model_validator(mode="after")
    def _fits_the_reranker(self) -> Recipe:
        aligned = self.start.reranker.get("scoring") == "aligned"
        for stage in self.stages:
            if not self.start.trains_edje and stage.task == "rerank" and stage.distilled:
                raise ValueError(
                    f"{stage.name}: distilled: only the dual encoder (task 'retrieval') and a compressed re-ranker "
                    "(start.reranker.scoring) can be distilled"
                )
            if self.start.trains_edje and stage.task != "rerank":
                raise ValueError(f"{stage.name}: a compressed re-ranker has a run of its own, of stages 'rerank' alone")
            if self.start.trains_edje and not aligned and stage.distilled and stage.teacher is None:
                raise ValueError(f"{stage.name}: distilled: name the teacher of a compressed re-ranker")
            if stage.loss == "alignment" and not aligned:
                raise ValueError(
                    f"{stage.name}: loss: only a re-ranker with start.reranker.scoring 'aligned' has an alignment"
                )
            unsupported = stage.soft_targets or stage.captions_per_photo > 1 or stage.region_features
            if self.start.trains_edje and unsupported:
                raise ValueError(
                    f"{stage.name}: a compressed re-ranker supports none of soft_targets, captions_per_photo and "
                    "region_features: remove them"
                )
        return self


def read_recipe(name: str, changes: dict[str, Any] | None = None) -> Recipe:
    """Read a recipe.

    Args:
        name: of a shipped recipe, or path of a file.
        changes: values that replace the file's, by dotted key: ``{"data.train": ["a.tar"], "stages.0.epochs": 1}``.

    Raises:
        UsageError: the recipe does not exist or is not TOML, or a value is unknown or invalid. The message names it in
            one line.
    """
    path = SHIPPED / f"{name}.toml"
    if not path.is_file():
        path = Path(name).expanduser()
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        shipped = ", ".join(sorted(path.stem for path in SHIPPED.glob("*.toml")))
        raise UsageError(f"recipe {name!r} is neither shipped ({shipped}) nor a file that can be read") from error
    except ValueError as error:
        raise UsageError(f"{path}: not TOML ({error})") from error
    for key, value in (changes or {}).items():
        _set_value(content, key, value)
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        raise UsageError(f"{path}: {'; '.join(map(_describe, error.errors()))}") from error
    for split, paths in (("train", recipe.data.train), ("dev", recipe.data.dev)):
        if not paths:
            raise UsageError(f"no {split} data: give photos with captions by --{split} PATH, or data.{split} in {path}")
    return recipe


def parse_change(text: str) -> tuple[str, Any]:
    """Parse ``KEY=VALUE`` of the command line; a value that is not TOML is a string.

    Raises:
        UsageError: the key is missing.
    """
    key, sign, value = text.partition("=")
    if not (sign and key.strip()):
        raise UsageError(f"--set {text!r}: give PLACE=VALUE, for example stages.0.batch_size=128")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except ValueError:
        return key.strip(), value


def _set_value(content: dict[str, Any], key: str, value: Any) -> None:
    *outer, last = key.split(".")
    target: Any = content
    try:
        for name in outer:
            target = target[int(name)] if isinstance(target, list) else target.setdefault(name, {})
        if isinstance(target, list):
            target[int(last)] = value
        else:
            target[last] = value
    except (ValueError, IndexError, TypeError, AttributeError) as error:
        raise UsageError(f"{key}: the recipe has no such setting") from error


def _describe(problem: Any) -> str:
    key = ".".join(map(str, problem["loc"]))
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        message = "no such setting"
    return f"{key}: {message}" if key else message
