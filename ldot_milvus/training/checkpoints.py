"""Where a run stands, on disk: written whole or not at all, so that a kill at any moment leaves the last one."""

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
    """How far a stage is.

    Attributes:
        step: steps of the optimiser that are done.
        best: mean dev recall of the best evaluation; -1 before the first.
        waited: evaluations since then.
        finished: nothing is left to do.
    """

    step: int = 0
    best: float = -1.0
    waited: int = 0
    finished: bool = False


def save_checkpoint(accelerator: Accelerator, folder: Path, progress: StageProgress, average: nn.Module | None) -> None:
    """Write model, optimiser, learning rate, random states, averaged weights and progress; the one before is removed.

    Every process calls this.
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
    """Go back to the last checkpoint that was written whole; fresh progress where there is none."""
    found = newest(folder)
    if found is None:
        return StageProgress()
    accelerator.load_state(str(found))
    if average is not None:
        average.load_state_dict(load_file(found / "average.safetensors"))
    return read_progress(folder)


def read_progress(folder: Path) -> StageProgress:
    """What the last checkpoint says of a stage."""
    found = newest(folder)
    return StageProgress() if found is None else StageProgress(**json.loads((found / "progress.json").read_text()))


def newest(folder: Path) -> Path | None:
    """The last checkpoint that was written whole."""
    return max((path for path in folder.glob("step-*") if path.suffix != ".tmp"), default=None)


def replace_folder(target: Path, write: Callable[[Path], None]) -> None:
    """``write`` a folder beside ``target`` and put it in its place; see :func:`recovered` for a kill in between."""
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
    """A copy that may be changed and removed, also where the source may not; without names that fit ``left_out``."""
    ignore = shutil.ignore_patterns(*left_out)
    shutil.copytree(source, target, ignore=ignore, copy_function=shutil.copyfile, dirs_exist_ok=True)
    for folder in (target, *filter(Path.is_dir, target.rglob("*"))):
        folder.chmod(folder.stat().st_mode | stat.S_IRWXU)


def recovered(target: Path) -> Path:
    """``target`` after a kill: what was in its place before, where the new one did not get there."""
    old = target.with_name(f"{target.name}.old")
    if old.exists() and not target.exists():
        with suppress(FileNotFoundError):  # another process of the run did it
            old.rename(target)
    return target
