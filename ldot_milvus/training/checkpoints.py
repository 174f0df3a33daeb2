"""Write and read checkpoints atomically: a run killed at any moment leaves its last complete checkpoint."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn


@dataclass
class StageProgress:
    """Progress of a stage.

    Attributes:
        step: number of completed optimiser steps.
        best: mean dev recall of the best evaluation; -1 before the first one.
        waited: number of evaluations since the best one.
        finished: True if the stage is complete.
    """

    step: int = 0
    best: float = -1.0
    waited: int = 0
    finished: bool = False


def save_checkpoint(accelerator: Accelerator, folder: Path, progress: StageProgress, average: nn.Module | None) -> None:
    """Write a checkpoint and remove older ones. Every process must call this.

    A checkpoint contains model, optimiser, learning rate, random states, averaged weights and progress.
    """
    target = folder / f"step-{progress.step:09}"
    unfinished = target.with_suffix(".tmp")
    if accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(unfinished))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if average is not None:
            save_file(average.state_dict(), unfinished / "average.safetensors")
        (unfinished / "progress.json").write_text(json.dumps(asdict(progress)))
        unfinished.rename(target)
        for older in folder.glob("step-*"):
            if older != target:
                shutil.rmtree(older)
    accelerator.wait_for_everyone()


def load_checkpoint(accelerator: Accelerator, folder: Path, average: nn.Module | None) -> StageProgress:
    """Load the last complete checkpoint, and return its progress; initial progress if there is no checkpoint."""
    checkpoint = newest(folder)
    if checkpoint is None:
        return StageProgress()
    accelerator.load_state(str(checkpoint))
    if average is not None:
        average.load_state_dict(load_file(checkpoint / "average.safetensors"))
    return read_progress(folder)


def read_progress(folder: Path) -> StageProgress:
    """Read the progress of the last complete checkpoint; initial progress if there is no checkpoint."""
    checkpoint = newest(folder)
    if checkpoint is None:
        return StageProgress()
    return StageProgress(**json.loads((checkpoint / "progress.json").read_text()))


def newest(folder: Path) -> Path | None:
    """Return the last complete checkpoint; None if there is none."""
    return max((path for path in folder.glob("step-*") if path.suffix != ".tmp"), default=None)


def replace_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Write a folder beside ``target``, then rename it to ``target``; see :func:`recovered` for a kill in between."""
    unfinished, old = target.with_name(f"{target.name}.tmp"), target.with_name(f"{target.name}.old")
    for path in (unfinished, old):
        shutil.rmtree(path, ignore_errors=True)
    unfinished.mkdir(parents=True)
    write(unfinished)
    if target.exists():
        target.rename(old)
    unfinished.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def copy_folder(source: Path, target: Path, *left_out: str) -> None:
    """Copy a folder except names that match ``left_out``; the copy is writable even if the source is read-only."""
    ignore = shutil.ignore_patterns(*left_out)
    shutil.copytree(source, target, ignore=ignore, copy_function=shutil.copyfile, dirs_exist_ok=True)
    for folder in (target, *filter(Path.is_dir, target.rglob("*"))):
        folder.chmod(folder.stat().st_mode | stat.S_IRWXU)


def recovered(target: Path) -> Path:
    """Return ``target``, restoring its previous version if :func:`replace_folder` was killed before its last step."""
    old = target.with_name(f"{target.name}.old")
    if old.exists() and not target.exists():
        with suppress(FileNotFoundError):  # another process of the run did it
            old.rename(target)
    return target
