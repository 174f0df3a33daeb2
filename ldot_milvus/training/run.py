"""``ldot train``: run the stages of a recipe in order, each from the best model of the one before.

::

    OUT/run.json            the recipe and data of the run; a run with others is refused
    OUT/start/              the initial model of a recipe with ``start.text`` or ``start.labels``
    OUT/features/           extracted regions of the photos
    OUT/STAGE/step-N/       the last checkpoint
    OUT/STAGE/best/         the best model so far, a complete model folder
    OUT/STAGE/log.jsonl     losses and dev recalls; also for TensorBoard in OUT/tensorboard
    OUT/model/              the result
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from ldot_milvus.errors import UsageError
from ldot_milvus.evaluation.datasets import Pair, read_pairs
from ldot_milvus.models.lightningdot.bundle import Bundle, load_extractor
from ldot_milvus.models.lightningdot.files import RERANKER, find_lightningdot
from ldot_milvus.models.loading import load_model
from ldot_milvus.regions import Regions
from ldot_milvus.training.accelerators import accelerator_for
from ldot_milvus.training.batches import Batches, tokenize
from ldot_milvus.training.checkpoints import copy_folder, newest, read_progress, recovered, replace_folder
from ldot_milvus.training.data import CaptionedPhotos, cache_name, evenly, photos_of
from ldot_milvus.training.dual import caption_embeddings
from ldot_milvus.training.finish import anchors_of, finish
from ldot_milvus.training.labels import add_labels
from ldot_milvus.training.masking import Vocabulary
from ldot_milvus.training.recipe import Recipe, Stage
from ldot_milvus.training.stages import CARD, Task, task_of
from ldot_milvus.training.start import new_model
from ldot_milvus.training.trainer import StageRun
from ldot_milvus.weights import store_apart

log = logging.getLogger(__name__)

CENTRED = 1000
"""Number of training captions whose mean is the centre of texts for label names."""

FIRST_STAGE = ("first-stage-train.npz", "first-stage-dev.npz")
"""The first stage's vectors, for a compressed re-ranker."""


def train(recipe: Recipe, out: str | Path, *, most_steps: int | None = None) -> Path:
    """Run a recipe, or resume it where an earlier call stopped.

    Args:
        recipe: the recipe.
        out: the run's folder.
        most_steps: maximum number of steps of every stage, for a trial; None runs the recipe completely.

    Returns:
        The folder of the trained model.

    Raises:
        UsageError: data, model and recipe do not fit together, or ``out`` contains another run.
        InputError: a photo cannot be read.
        TrainingError: the loss is not finite.
    """
    from ldot_milvus.training.token_run import TokenRun  # here, because it extends the class below

    run_class = TokenRun if recipe.start.trains_edje else Run
    return run_class(recipe, Path(out).expanduser().absolute(), most_steps).run()


class Run:
    """A run of a LightningDOT model's stages: a model goes in, a model comes out of each."""

    def __init__(self, recipe: Recipe, out: Path, most_steps: int | None) -> None:
        self._recipe, self._out, self._most_steps = recipe, out, most_steps
        self._accelerator = accelerator_for(recipe.trainer, out)
        self._main = self._accelerator.is_main_process
        data = recipe.data
        self._pairs = {
            "train": read_pairs(data.train, regions=data.regions, photos=data.photos, split=data.split),
            "dev": read_pairs(
                data.dev, regions=data.dev_regions or data.regions, photos=data.photos, split=data.dev_split
            ),
        }
        self._claim_folder()

    def run(self) -> Path:
        """Run all stages, then the steps after them."""
        result = recovered(self._out / "model")
        if result.exists():
            log.info("%s exists already, nothing to train", result)
            return result
        self._origin = folder = self._start()
        self._read_photos()
        for stage in self._recipe.stages:
            best = recovered(self._out / stage.name / "best")
            if not read_progress(self._out / stage.name).finished:
                self._stage(stage, folder, best)
            folder = best
        if self._main:
            replace_folder(result, lambda target: self._finish(folder, target))
        self._accelerator.wait_for_everyone()
        return result

    def _claim_folder(self) -> None:
        """Record this run in ``out``, and refuse the folder if it contains another run."""
        recipe = self._recipe.model_dump(mode="json")
        recipe["trainer"] = {"mixed_precision": recipe["trainer"]["mixed_precision"]}  # other settings change no weight
        current = {"recipe": recipe, "max_steps": self._most_steps, "processes": self._accelerator.num_processes,
                   "photos": {split: cache_name(pairs, "") for split, pairs in self._pairs.items()}}  # fmt: skip
        file = self._out / "run.json"
        stale: tuple[str, ...] = ()
        if file.exists():
            recorded = json.loads(file.read_text())
            different = [f"{key} is {old}, not {new}" for key, old, new in _differences(recorded, current)]
            stages = [str(stage["name"]) for stage in recorded["recipe"]["stages"]]
            if different and any(newest(self._out / stage) for stage in stages):
                raise UsageError(
                    f"{self._out} contains another run ({'; '.join(different[:3])}): give another --out, or remove it"
                )
            stale = ("start", "caption_embeddings.npy", *FIRST_STAGE, *stages) if different else ()
        self._accelerator.wait_for_everyone()
        if self._main:
            self._out.mkdir(parents=True, exist_ok=True)
            for name in stale:  # of a run that ended before its first checkpoint
                _remove(self._out / name)
            file.write_text(json.dumps(current, indent=1))

    def _start(self) -> Path:
        start = self._recipe.start
        if start.model is not None and start.labels is None:
            return find_lightningdot(start.model).folder
        folder = self._out / "start"
        if self._main and not recovered(folder).exists():
            replace_folder(folder, self._new_model)
        self._accelerator.wait_for_everyone()
        return folder

    def _new_model(self, target: Path) -> None:
        start = self._recipe.start
        if start.model is None:
            new_model(start, target)
        else:
            copy_folder(find_lightningdot(start.model).folder, target, CARD)
            store_apart(target / RERANKER)
        if start.labels is not None:
            pairs = self._pairs["train"]
            captions = [pairs[row].captions[0] for row in evenly(len(pairs), CENTRED)]
            add_labels(start.labels, start.labels.text or start.text, target, captions)

    def _read_photos(self) -> None:
        self._read_regions(load_model(str(self._origin), device="cpu", dtype="float32"))

    def _read_regions(self, bundle: Bundle) -> None:
        data, pairs = self._recipe.data, self._pairs["train"]
        if self._recipe.stages or self._recipe.finish.reads_all_photos:
            self._train = self._photos(pairs, bundle, data.extraction, views=data.views)
        else:  # the photos of the calibration's anchors alone
            rows = evenly(len(pairs), max(1, anchors_of(self._recipe, self._origin)))
            self._train = self._photos([pairs[row] for row in rows], bundle, {})
        self._dev = self._photos(self._pairs["dev"], bundle, {})

    def _finish(self, best: Path, target: Path) -> None:
        finish(self._recipe, self._origin, best, target, self._train, self._dev)

    def _photos(
        self, pairs: Sequence[Pair], bundle: Bundle, extraction: dict[str, Any], views: int = 1
    ) -> CaptionedPhotos:
        model = bundle.encoder.config
        extractor, name = None, "given"
        if not isinstance(pairs[0].load(), Regions):
            extractor = load_extractor(bundle.files, self._accelerator.device, torch.float32, extraction)
            sources: list[Any] = [{**(model.region_extractor or {}), **extraction}]
            sources.append(_digest(bundle.files.extractor_files))
            if model.label_count:
                sources += [model.label_classifier, _digest(bundle.files.label_files)]
            name = cache_name(pairs, json.dumps(sources, sort_keys=True))
        folder = Path(self._recipe.data.features or self._out / "features") / name
        with self._accelerator.main_process_first():  # the other processes then read the extracted regions
            return photos_of(pairs, extractor, folder, width=model.region_dim, views=views, labels=model.label_count)

    def _stage(self, stage: Stage, folder: Path, best: Path) -> None:
        """Train a stage: the initial model is in ``folder``, the result goes to ``best``."""
        log.info("%s: %s, %d photos", stage.name, stage.task, len(self._train))
        bundle = load_model(str(folder), device="cpu", dtype="float32")
        torch.manual_seed(stage.seed)
        accelerator = accelerator_for(self._recipe.trainer, self._out, stage)
        task = task_of(stage, self._recipe.start, bundle, self._train, self._dev, accelerator.device)
        config = bundle.encoder.config
        batches = Batches(
            task.train,
            tokenize(bundle.tokenizer, task.train, stage.text_tokens or config.max_text_length,
                     config.text_config.vocab_size),
            stage,
            Vocabulary.of(bundle.tokenizer),
            process=accelerator.process_index,
            processes=accelerator.num_processes,
            caption_embeddings=self._caption_embeddings() if stage.soft_targets else None,
        )  # fmt: skip
        self._train_stage(stage, accelerator, task, batches, best)

    def _train_stage(self, stage: Stage, accelerator: Accelerator, task: Task, batches: Batches, best: Path) -> None:
        torch.manual_seed(stage.seed + accelerator.process_index)  # a different dropout in each process
        StageRun(
            accelerator, task.objective, batches, stage, self._recipe.trainer, self._out / stage.name,
            evaluate=task.evaluate,
            keep=lambda scorer: replace_folder(best, lambda target: task.write(scorer, target)),
            mine=task.mine, most_steps=self._most_steps,
        ).run()  # fmt: skip
        for tracker in accelerator.trackers:
            tracker.finish()
        accelerator.free_memory()

    def _caption_embeddings(self) -> torch.Tensor:
        """Compute or read the caption embeddings by the initial model's text encoder."""
        file = self._out / "caption_embeddings.npy"
        if self._main and not file.exists():
            log.info("embedding the captions of %d photos", len(self._train))
            bundle = load_model(str(self._origin), device=str(self._accelerator.device), dtype="float32")
            embeddings: NDArray[np.float32] = caption_embeddings(bundle, self._train).numpy()
            with file.with_suffix(".tmp").open("wb") as opened:
                np.save(opened, embeddings)
            file.with_suffix(".tmp").rename(file)
        self._accelerator.wait_for_everyone()
        return torch.from_numpy(np.load(file))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def _digest(files: Sequence[Path]) -> str:
    """Return the SHA-256 over the names and contents of files."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def _differences(old: Any, new: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """Return dotted path, old value and new value of every difference between two JSON values."""
    if not (isinstance(old, dict | list) and type(old) is type(new)):
        return [] if old == new else [(path, old, new)]
    if isinstance(new, list):
        old, new = dict(enumerate(old)), dict(enumerate(new))
    differences = []
    for key in {**old, **new}:
        differences += _differences(
            old.get(key), new.get(key), f"{path}.{key}".removeprefix(".").removeprefix("recipe.")
        )
    return differences
