"""A training run as a small TOML file: where the data is, what to start from, and the stages one after the other.

Defaults are the published fine-tuning recipe (LightningDOT, NAACL 2021) where a value has a published one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from ldot_milvus.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SHIPPED = Path(__file__).parent / "recipes"
Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Paths = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
Objectives = Literal["cmr", "vmlm", "smrm_features", "smrm_kl", "smrm_class"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(_Section):
    """Photos with captions, in any form that ``ldot eval`` reads."""

    train: Paths = []
    dev: Paths = []
    split: str = "train"  # of a Karpathy JSON
    dev_split: str = "val"
    photos: str | None = None  # the folder of the photos that a Karpathy JSON names
    regions: Paths = []  # region features instead of pixels: each photo's in any of these
    dev_regions: Paths = []  # those of the dev data; unset: ``regions``
    features: str | None = None  # where extracted regions are kept; unset: in the run's folder
    views: Count = 1  # of a photo: itself, then random crops, the first and every second one mirrored
    extraction: dict[str, Any] = {}  # the training photos' extractor, where it differs from the model's own


class Start(_Section):
    """A model to go on with, or the parts of a new one."""

    model: str | None = None  # packaged name, folder or hub id
    text: str | None = None  # a BERT to make a new dual encoder of: folder or hub id
    extractor: str | None = None  # the new one's region extractor: a model's name or a ResNet folder; none = regions
    image_layers: Count = 2  # of the new image encoder; they start as the last ones of ``text``
    config: dict[str, Any] = {}  # fields of LightningDOTConfig
    text_config: dict[str, Any] = {}  # of BertConfig, over those of ``text``
    image_config: dict[str, Any] = {}  # likewise
    reranker: dict[str, Any] = {}  # fields of RerankerConfig, for a model that has no re-ranker yet

    @model_validator(mode="after")
    def _one_of(self) -> Start:
        if (self.model is None) == (self.text is None):
            raise ValueError("give either model (to go on with) or text (to make a new one of)")
        return self


class Stage(_Section):
    """One training: of the dual encoder ("pretrain", "retrieval") or of the re-ranker ("rerank")."""

    name: str = Field(default="train", pattern=r"^[\w.-]+$")
    task: Literal["pretrain", "retrieval", "rerank"]
    epochs: Count | None = None  # of the learning rate's schedule; an epoch shows every caption once
    steps: Count | None = None  # instead of epochs
    stop: Count | None = None  # epochs after which it ends: a high rate to the end can generalise better
    patience: Count | None = None  # dev recalls in a row without a better one after which it ends
    evaluate_every: Count | None = None  # steps; an epoch if unset
    batch_size: Count = 64  # pairs a process; a text is compared with those of all processes
    hard_negatives: Whole = 0  # for each pair of a batch, so many that the model's own index finds near
    negative_pool: Count = 30  # they are drawn from this many of the nearest
    gradient_accumulation: Count = 1
    gradient_checkpointing: bool = False
    learning_rate: Positive = 2e-5
    text_learning_rate: Positive | None = None  # of the text encoder, where it differs
    weight_decay: NotNegative = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    warmup: NotNegative = 0.1  # below 1 a share of all steps, else steps
    schedule: Literal["linear", "cosine"] = "linear"
    max_gradient_norm: Positive = 2.0
    ema: Share = 0.0  # above 0 averaged weights are evaluated and kept
    frozen_text_layers: Whole | None = None  # the first, which stay as they came, like the word embeddings
    standardise: bool = False  # region features at mean 0, deviation 1 while training; folded into the weights after
    regions_kept: Count | None = None  # random ones of a photo's regions; all if unset
    text_tokens: int | None = Field(default=None, ge=3)  # the model's own limit if unset
    words_dropped: Share = 0.0
    feature_dropout: Share = 0.0
    soft_targets: Share = 0.0  # share of the target: photos with captions of nearly the same meaning
    soft_temperature: Positive = 0.05
    distilled: float = Field(default=0.0, ge=0, le=1)  # share of the loss: the own re-ranker's ranking
    teacher_temperature: Positive = 2.0
    margin: Positive = 0.2  # of a joint re-ranker's triplet loss
    masked: float = Field(default=0.15, gt=0, lt=1)  # share of words or regions that pre-training hides
    mix: dict[Objectives, float] = {}  # pre-training: how often each objective has its turn
    seed: Whole = 7

    @model_validator(mode="after")
    def _fits_together(self) -> Stage:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps")
        if self.batch_size % (1 + self.hard_negatives):
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of {1 + self.hard_negatives}: "
                f"a pair and its {self.hard_negatives} hard negatives"
            )
        if (self.task == "pretrain") != bool(self.mix):
            raise ValueError("mix (the turns of each objective) belongs to the task 'pretrain', which needs it")
        if min(self.mix.values(), default=0) < 0 or (self.mix and sum(self.mix.values()) == 0):
            raise ValueError("mix needs weights of 0 or more, and one above 0")
        only = {"standardise": self.standardise, "soft_targets": self.soft_targets, "distilled": self.distilled,
                "hard_negatives": self.hard_negatives}  # fmt: skip
        if self.task == "pretrain" and any(only.values()):
            given = ", ".join(name for name, value in only.items() if value)
            raise ValueError(f"{given}: not in pre-training")
        if self.task == "rerank" and self.distilled:
            raise ValueError("distilled: only the dual encoder learns from a re-ranker (task 'retrieval')")
        return self


class Finish(_Section):
    """What is done to the best model when all stages are over."""

    calibration_anchors: int | None = Field(default=None, ge=0)  # of hubness calibration; unset: as it started
    dot_weight: bool = False  # choose the weight of the dot product in re-ranking on the dev split
    storage: Literal["float32", "int8"] = "float32"
    fuller_storage: list[str] = []  # parts of names of tensors that int8 storage keeps in half precision


class Trainer(_Section):
    """How the machine is used."""

    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = "auto"  # auto: what is fast where it runs
    checkpoint_every: Count = 500  # steps; also after every evaluation
    log_every: Count = 20
    workers: int | None = Field(default=None, ge=0)  # processes that read batches ahead; unset: 4 with a GPU, else 0


class Recipe(_Section):
    """The whole file. What a table ``every_stage`` says holds for all stages that do not say otherwise."""

    data: Data = Data()
    start: Start
    stages: list[Stage] = Field(min_length=1)
    finish: Finish = Finish()
    trainer: Trainer = Trainer()

    @model_validator(mode="before")
    @classmethod
    def _with_every_stage(cls, content: Any) -> Any:
        if not isinstance(content, dict) or not isinstance(content.get("every_stage"), dict):
            return content
        stages = [{**content["every_stage"], **stage} for stage in content.get("stages", [])]
        return {name: value for name, value in content.items() if name != "every_stage"} | {"stages": stages}

    @model_validator(mode="after")
    def _names_differ(self) -> Recipe:
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stages need names of their own; these are {', '.join(names)}")
        return self


def read_recipe(name: str, changes: dict[str, Any] | None = None) -> Recipe:
    """A shipped recipe by name, or a file.

    Args:
        changes: values that replace the file's, by dotted place: ``{"data.train": ["a.tar"], "stages.0.epochs": 1}``.

    Raises:
        UsageError: no such recipe, not TOML, an unknown or wrong value; one line that names it.
    """
    path = SHIPPED / f"{name}.toml"
    if not path.is_file():
        path = Path(name)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        shipped = ", ".join(sorted(path.stem for path in SHIPPED.glob("*.toml")))
        raise UsageError(f"recipe {name!r} is neither shipped ({shipped}) nor a file that can be read") from error
    except ValueError as error:
        raise UsageError(f"{path}: not TOML ({error})") from error
    for place, value in (changes or {}).items():
        _put(content, place, value)
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        raise UsageError(f"{path}: {'; '.join(map(_told, error.errors()))}") from error
    for what, given in (("train", recipe.data.train), ("dev", recipe.data.dev)):
        if not given:
            raise UsageError(f"no {what} data: give photos with captions by --{what} PATH, or data.{what} in {path}")
    return recipe


def parse_change(text: str) -> tuple[str, Any]:
    """``PLACE=VALUE`` of the command line; the value as in TOML, or else as text.

    Raises:
        UsageError: without a place.
    """
    place, sign, value = text.partition("=")
    if not (sign and place.strip()):
        raise UsageError(f"--set {text!r}: give PLACE=VALUE, for example stages.0.batch_size=128")
    try:
        return place.strip(), tomllib.loads(f"value = {value}")["value"]
    except ValueError:
        return place.strip(), value


def _put(content: dict[str, Any], place: str, value: Any) -> None:
    *outer, last = place.split(".")
    target: Any = content
    try:
        for part in outer:
            target = target[int(part)] if isinstance(target, list) else target.setdefault(part, {})
        if isinstance(target, list):
            target[int(last)] = value
        else:
            target[last] = value
    except (ValueError, IndexError, TypeError, AttributeError) as error:
        raise UsageError(f"{place}: the recipe has no such place") from error


def _told(problem: Any) -> str:
    place = ".".join(map(str, problem["loc"]))
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        message = "no such setting"
    return f"{place}: {message}" if place else message
