"""The training loop of a stage, in one process or in several."""

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
    """Runs a stage with its steps, evaluations and checkpoints, resuming from the last checkpoint in its folder.

    Args:
        accelerator: of this process.
        objective: computes the loss of a :class:`Batch`; its ``scorer`` is trained.
        batches: of this process.
        stage: the stage.
        settings: the recipe's ``trainer`` table.
        folder: of checkpoints and log.
        evaluate: measures a scorer's recall on the dev split; called in the main process.
        keep: saves a scorer's model as the best so far; called in the main process.
        mine: finds hard negatives with a scorer (see :mod:`.hard_negatives`); called in the main process before the
            first step and after every evaluation, if the stage has hard negatives.
        most_steps: maximum number of steps, for a trial.
    """

    def __init__(
        self, accelerator: Accelerator, objective: Any, batches: Batches, stage: Stage, settings: Trainer,
        folder: Path, *, evaluate: Callable[[Any], Figures], keep: Callable[[Any], None],
        mine: Callable[[Any], NDArray[np.int32]], most_steps: int | None = None,
    ) -> None:  # fmt: skip
        self._accelerator, self._batches, self._stage, self._settings = accelerator, batches, stage, settings
        self._folder, self._evaluate, self._keep, self._mine = folder, evaluate, keep, mine
        epoch = max(1, batches.epoch_length // stage.gradient_accumulation)
        self._interval = stage.evaluate_every or epoch
        total = stage.steps or epoch * (stage.epochs or 1)
        if most_steps is not None:
            total = min(total, most_steps)
        self._end = min(total, epoch * stage.stop) if stage.stop else total
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
        """Train to the end of the stage.

        Raises:
            TrainingError: the loss is not finite.
            InputError: a photo's regions cannot be read.
        """
        self._started = time.perf_counter()
        progress = load_checkpoint(self._accelerator, self._folder, self._average)
        self._truncate_log(progress.step)
        if progress.step:
            log.info("%s: resuming from step %d of %d", self._stage.name, progress.step, self._end)
        main = self._accelerator.is_main_process
        shown = {"total": self._end, "initial": progress.step, "desc": self._stage.name, "unit": "step"}
        with logging_redirect_tqdm(), tqdm(**shown, disable=None if main else True) as bar:
            while not progress.finished:
                start = progress.step // self._interval * self._interval
                self._update_hard_negatives(start)
                for step in self._steps(progress.step, min(self._end, start + self._interval)):
                    progress.step = step
                    bar.update()
                    evaluates = step % self._interval == 0 or step == self._end
                    saves = step % self._settings.checkpoint_every == 0
                    # A resumed run starts a new mean, so a mean also ends with every checkpoint.
                    if step % self._settings.log_every == 0 or evaluates or saves:
                        losses = self._log(step)
                        bar.set_postfix(losses)
                        if bar.disable:
                            listed = ", ".join(f"{name} {loss}" for name, loss in losses.items())
                            log.info("%s, step %d of %d: loss: %s", self._stage.name, step, self._end, listed)
                    if saves and not evaluates:
                        save_checkpoint(self._accelerator, self._folder, progress, self._average)
                self._evaluate_on_dev(progress)
                save_checkpoint(self._accelerator, self._folder, progress, self._average)

    def _steps(self, done: int, end: int) -> Iterator[int]:
        """Run the steps from ``done`` + 1 to ``end``, and yield the number of each."""
        accelerator, batches_per_step = self._accelerator, self._stage.gradient_accumulation
        self._model.train()
        for number, batch in enumerate(self._loader(done * batches_per_step, end * batches_per_step), start=1):
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
            if number % batches_per_step == 0:
                self._schedule.step()
                step = done + number // batches_per_step
                if self._average is not None:
                    decay = min(self._stage.ema, (step + 1) / (step + 10))
                    update_average(self._average, accelerator.unwrap_model(self._model).scorer, decay)
                yield step

    def _loader(self, start: int, end: int) -> DataLoader[Batch | LdotError]:
        workers = self._settings.workers
        if workers is None:
            workers = 4 if self._accelerator.device.type == "cuda" else 0
        sampler: Any = range(start, end)
        # A loader draws a random number, and a resumed run creates one loader more: use a separate generator.
        generator = torch.Generator()
        return DataLoader(self._batches, batch_size=None, sampler=sampler, num_workers=workers, generator=generator)

    def _trained(self) -> Any:
        """Return the scorer that is evaluated and saved."""
        return self._average or self._accelerator.unwrap_model(self._model).scorer

    def _evaluate_on_dev(self, progress: StageProgress) -> None:
        """Evaluate on the dev split, save the model if it is the best so far, and decide if the stage is finished."""
        shared: list[Any] = [None]
        if self._accelerator.is_main_process:
            trained = self._trained().eval()
            shared = [self._evaluate(trained)]
            mean = mean_recall(shared[0])
            if mean > progress.best:
                self._keep(trained)
            self._write({"step": progress.step, "dev": shared[0], "mean": round(mean, 3)})
            listed = ", ".join(
                f"{way.replace('_', ' ')} {' / '.join(f'{value:.1f}' for value in cuts.values())}"
                for way, cuts in shared[0].items()
            )
            log.info("%s, step %d of %d: dev R@1/5/10: %s", self._stage.name, progress.step, self._end, listed)
        figures: Figures = broadcast_object_list(shared)[0]
        mean = mean_recall(figures)
        named = {f"dev/{way} {cut}": value for way, cuts in figures.items() for cut, value in cuts.items()}
        self._accelerator.log({**named, "dev/mean": mean}, step=progress.step)
        progress.waited = 0 if mean > progress.best else progress.waited + 1
        progress.best = max(mean, progress.best)
        out_of_patience = self._stage.patience is not None and progress.waited >= self._stage.patience
        progress.finished = out_of_patience or progress.step >= self._end

    def _update_hard_negatives(self, step: int) -> None:
        """Find hard negatives with the model at ``step``; a resumed run reads the file that it wrote then."""
        if not self._stage.hard_negatives:
            return
        path = self._folder / f"hard-negatives-{step:09}.npy"
        shared: list[Any] = [None]
        if self._accelerator.is_main_process:
            if not path.exists():
                hard = self._mine(self._trained().eval())
                for older in self._folder.glob("hard-negatives-*.npy"):
                    older.unlink()
                self._folder.mkdir(parents=True, exist_ok=True)
                with path.with_suffix(".tmp").open("wb") as file:
                    np.save(file, hard)
                path.with_suffix(".tmp").rename(path)
            shared = [np.load(path).shape]
        shape = broadcast_object_list(shared)[0]
        hard = np.load(path) if self._accelerator.is_main_process else np.zeros(shape, np.int32)
        broadcasted: Tensor = broadcast(torch.from_numpy(hard).to(self._accelerator.device))
        self._batches.hard = broadcasted.cpu().numpy()

    def _log(self, step: int) -> dict[str, str]:
        """Write the mean losses since the last call to the log and TensorBoard, and return them as text."""
        own_means = {name: torch.stack(values).mean() for name, values in self._losses.items()}
        self._losses.clear()
        losses = {name: float(self._accelerator.reduce(loss, "mean")) for name, loss in sorted(own_means.items())}
        if not all(map(math.isfinite, losses.values())):
            raise TrainingError(
                f"{self._stage.name}, step {step}: the loss is {losses}; lower learning_rate, or train with "
                "mixed_precision bf16 or no"
            )
        rate = self._schedule.get_last_lr()[0]
        named = {f"loss/{name}": loss for name, loss in losses.items()}
        self._accelerator.log({**named, "learning rate": rate}, step=step)
        self._write({"step": step, "loss": losses, "learning_rate": rate})
        return {name: f"{loss:.3f}" for name, loss in losses.items()}

    def _write(self, entry: dict[str, Any]) -> None:
        if self._accelerator.is_main_process:
            self._folder.mkdir(parents=True, exist_ok=True)
            seconds = round(time.perf_counter() - self._started, 1)
            with (self._folder / "log.jsonl").open("a") as file:
                file.write(json.dumps({**entry, "seconds": seconds}) + "\n")

    def _truncate_log(self, step: int) -> None:
        """Remove the lines of steps after ``step`` from the log: a resumed run writes them again."""
        path = self._folder / "log.jsonl"
        if self._accelerator.is_main_process and path.exists():
            lines = path.read_text().splitlines(keepends=True)
            complete = [line for line in lines if line.endswith("}\n")]
            path.write_text("".join(line for line in complete if json.loads(line)["step"] <= step))


def mean_recall(figures: Figures) -> float:
    """Return the mean recall over both directions and all cuts, by which the best model is selected."""
    return float(np.mean([value for way in figures.values() for value in way.values()]))


def optimizer_of(objective: Any, stage: Stage) -> torch.optim.AdamW:
    """Create AdamW with weight decay for matrices only, and the stage's learning rate for the text encoder."""
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
    """Return the factor of the learning rate by step: a linear warm-up, then half a cosine to zero."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))

    return factor


def linear(total: int, warmup: int) -> Callable[[int], float]:
    """Return the factor of the learning rate by step: a linear warm-up, then a linear decay to zero."""

    def factor(step: int) -> float:
        return (step + 1) / warmup if step < warmup else max(0.0, (total - step) / max(1, total - warmup))

    return factor


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Update ``average`` to the exponential moving average of the weights, in place."""
    for averaged, current in zip(average.parameters(), model.parameters(), strict=True):
        averaged.lerp_(current, 1 - decay)
