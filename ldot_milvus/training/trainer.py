"""The loop: every stage of every recipe runs through here, on one processor or on many."""

from __future__ import annotations

import copy
import json
import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ldot_milvus.errors import LdotError, TrainingError
from ldot_milvus.training.batches import Batch, Batches
from ldot_milvus.training.checkpoints import StageProgress, load_checkpoint, save_checkpoint
from ldot_milvus.training.dual import Figures
from ldot_milvus.training.recipe import Stage, Trainer

log = logging.getLogger(__name__)


class StageRun:
    """One stage: steps, evaluations and checkpoints, from where its folder says that it stopped.

    Args:
        objective: gives the loss of a :class:`Batch`; its ``scorer`` is what is trained.
        evaluate: recalls of a scorer on the dev split; called in the main process.
        keep: writes a scorer's model as the best so far; called in the main process.
        mine: hard negatives (see :mod:`.hard_negatives`) by a scorer; called in the main process after every
            evaluation, where the stage wants them.
        most_steps: an end for a smoke run.
    """

    def __init__(
        self, accelerator: Accelerator, objective: Any, batches: Batches, stage: Stage, settings: Trainer,
        folder: Path, *, evaluate: Callable[[Any], Figures], keep: Callable[[Any], None],
        mine: Callable[[Any], NDArray[np.int32]], most_steps: int | None = None,
    ) -> None:  # fmt: skip
        self._accelerator, self._batches, self._stage, self._settings = accelerator, batches, stage, settings
        self._folder, self._evaluate, self._keep, self._mine = folder, evaluate, keep, mine
        an_epoch = max(1, batches.an_epoch // stage.gradient_accumulation)
        self._interval = stage.evaluate_every or an_epoch
        total = stage.steps or an_epoch * (stage.epochs or 1)
        if most_steps is not None:
            total = min(total, most_steps)
        self._end = min(total, an_epoch * stage.stop) if stage.stop else total
        optimizer = optimizer_of(objective, stage)
        warmup = round(stage.warmup * total) if stage.warmup < 1 else round(stage.warmup)
        shape = cosine if stage.schedule == "cosine" else linear
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, shape(total, warmup))
        self._average: Any = None
        if stage.ema:
            self._average = copy.deepcopy(objective.scorer).requires_grad_(False).to(accelerator.device)
        self._model, self._optimizer, self._schedule = accelerator.prepare(objective, optimizer, schedule)
        self._losses: dict[str, list[Tensor]] = defaultdict(list)

    def run(self) -> None:
        """Train to the end.

        Raises:
            TrainingError: the loss is no number any more.
            InputError: a photo's regions cannot be read.
        """
        self._started = time.perf_counter()
        progress = load_checkpoint(self._accelerator, self._folder, self._average)
        self._forget_after(progress.step)
        if progress.step:
            log.info("%s: going on from step %d of %d", self._stage.name, progress.step, self._end)
        main = self._accelerator.is_main_process
        shown = {"total": self._end, "initial": progress.step, "desc": self._stage.name, "unit": "step"}
        with logging_redirect_tqdm(), tqdm(**shown, disable=None if main else True) as bar:
            while not progress.finished:
                start = progress.step // self._interval * self._interval
                self._take_hard_negatives(start)
                for step in self._steps(progress.step, min(self._end, start + self._interval)):
                    progress.step = step
                    bar.update()
                    judged = step % self._interval == 0 or step == self._end
                    saved = step % self._settings.checkpoint_every == 0
                    if step % self._settings.log_every == 0 or judged or saved:  # a run that goes on begins a new mean
                        told = self._log(step)
                        bar.set_postfix(told)
                        if bar.disable:
                            listed = ", ".join(f"{name} {loss}" for name, loss in told.items())
                            log.info("%s, step %d of %d: loss: %s", self._stage.name, step, self._end, listed)
                    if saved and not judged:
                        save_checkpoint(self._accelerator, self._folder, progress, self._average)
                self._judge(progress)
                save_checkpoint(self._accelerator, self._folder, progress, self._average)

    def _steps(self, done: int, end: int) -> Iterator[int]:
        """Take the steps after ``done``; gives the number of each."""
        accelerator, parts = self._accelerator, self._stage.gradient_accumulation
        self._model.train()
        for number, batch in enumerate(self._loader(done * parts, end * parts), start=1):
            if isinstance(batch, LdotError):
                raise batch
            with accelerator.accumulate(self._model):
                loss = self._model(batch.to(accelerator.device))
                accelerator.backward(loss)
                self._losses[batch.objective].append(loss.detach())
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(self._model.parameters(), self._stage.max_gradient_norm)
                self._optimizer.step()
                self._optimizer.zero_grad()
            if number % parts == 0:
                self._schedule.step()
                step = done + number // parts
                if self._average is not None:
                    decay = min(self._stage.ema, (step + 1) / (step + 10))
                    update_average(self._average, accelerator.unwrap_model(self._model).scorer, decay)
                yield step

    def _loader(self, start: int, end: int) -> DataLoader[Batch | LdotError]:
        workers = self._settings.workers
        if workers is None:
            workers = 4 if self._accelerator.device.type == "cuda" else 0
        sampler: Any = range(start, end)
        # A generator of its own: a loader draws a number, and a run that goes on makes one more of them.
        own = torch.Generator()
        return DataLoader(self._batches, batch_size=None, sampler=sampler, num_workers=workers, generator=own)

    def _trained(self) -> Any:
        """The scorer that is evaluated and kept."""
        return self._average or self._accelerator.unwrap_model(self._model).scorer

    def _judge(self, progress: StageProgress) -> None:
        """Evaluate on the dev split; keep what is the best so far, and see whether to go on."""
        told: list[Any] = [None]
        if self._accelerator.is_main_process:
            trained = self._trained().eval()
            told = [self._evaluate(trained)]
            mean = mean_recall(told[0])
            if mean > progress.best:
                self._keep(trained)
            self._write({"step": progress.step, "dev": told[0], "mean": round(mean, 3)})
            listed = ", ".join(
                f"{way.replace('_', ' ')} {' / '.join(f'{value:.1f}' for value in cuts.values())}"
                for way, cuts in told[0].items()
            )
            log.info("%s, step %d of %d: dev R@1/5/10: %s", self._stage.name, progress.step, self._end, listed)
        figures: Figures = broadcast_object_list(told)[0]
        mean = mean_recall(figures)
        named = {f"dev/{way} {cut}": value for way, cuts in figures.items() for cut, value in cuts.items()}
        self._accelerator.log({**named, "dev/mean": mean}, step=progress.step)
        progress.waited = 0 if mean > progress.best else progress.waited + 1
        progress.best = max(mean, progress.best)
        enough = self._stage.patience is not None and progress.waited >= self._stage.patience
        progress.finished = enough or progress.step >= self._end

    def _take_hard_negatives(self, step: int) -> None:
        """Those of the model at ``step``; from the file of an earlier run that got further than that."""
        if not self._stage.hard_negatives:
            return
        path = self._folder / f"hard-negatives-{step:09}.npy"
        found: list[Any] = [None]
        if self._accelerator.is_main_process:
            if not path.exists():
                hard = self._mine(self._trained().eval())
                for older in self._folder.glob("hard-negatives-*.npy"):
                    older.unlink()
                self._folder.mkdir(parents=True, exist_ok=True)
                with path.with_suffix(".tmp").open("wb") as file:
                    np.save(file, hard)
                path.with_suffix(".tmp").rename(path)
            found = [np.load(path).shape]
        shape = broadcast_object_list(found)[0]
        hard_here = np.load(path) if self._accelerator.is_main_process else np.zeros(shape, np.int32)
        shared: Tensor = broadcast(torch.from_numpy(hard_here).to(self._accelerator.device))
        self._batches.hard = shared.cpu().numpy()

    def _log(self, step: int) -> dict[str, str]:
        """Mean losses since the last time, to the log, TensorBoard and the progress bar."""
        losses = {name: torch.stack(values).mean() for name, values in self._losses.items()}
        self._losses.clear()
        told = {name: float(self._accelerator.reduce(loss, "mean")) for name, loss in sorted(losses.items())}
        if not all(map(math.isfinite, told.values())):
            raise TrainingError(
                f"{self._stage.name}, step {step}: the loss is {told}; lower learning_rate, or train with "
                "mixed_precision bf16 or no"
            )
        rate = self._schedule.get_last_lr()[0]
        named = {f"loss/{name}": loss for name, loss in told.items()}
        self._accelerator.log({**named, "learning rate": rate}, step=step)
        self._write({"step": step, "loss": told, "learning_rate": rate})
        return {name: f"{loss:.3f}" for name, loss in told.items()}

    def _write(self, entry: dict[str, Any]) -> None:
        if self._accelerator.is_main_process:
            self._folder.mkdir(parents=True, exist_ok=True)
            seconds = round(time.perf_counter() - self._started, 1)
            with (self._folder / "log.jsonl").open("a") as file:
                file.write(json.dumps({**entry, "seconds": seconds}) + "\n")

    def _forget_after(self, step: int) -> None:
        """Take lines out of the log that will be written again."""
        path = self._folder / "log.jsonl"
        if self._accelerator.is_main_process and path.exists():
            lines = path.read_text().splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("}\n")]
            path.write_text("".join(line for line in whole if json.loads(line)["step"] <= step))


def mean_recall(figures: Figures) -> float:
    """Mean of all recalls of both directions: what "best" means."""
    return float(np.mean([value for way in figures.values() for value in way.values()]))


def optimizer_of(objective: Any, stage: Stage) -> torch.optim.AdamW:
    """AdamW; weight decay for matrices alone, and a learning rate of its own for the text encoder."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((objective.scorer.is_text(name), parameter.dim() >= 2), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": (stage.text_learning_rate if text else None) or stage.learning_rate,
                "weight_decay": stage.weight_decay if matrix else 0.0,
            }
            for (text, matrix), parameters in groups.items()
        ],
        betas=stage.betas,
    )


def cosine(total: int, warmup: int) -> Callable[[int], float]:
    """Factor of the learning rate at each step: linear warm-up, then half a cosine to zero."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))

    return factor


def linear(total: int, warmup: int) -> Callable[[int], float]:
    """Factor of the learning rate at each step: linear warm-up, then linear to zero."""

    def factor(step: int) -> float:
        return (step + 1) / warmup if step < warmup else max(0.0, (total - step) / max(1, total - warmup))

    return factor


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Exponential moving average of the weights."""
    for kept, new in zip(average.parameters(), model.parameters(), strict=True):
        kept.lerp_(new, 1 - decay)
