"""How a run uses the machine, or the machines."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, is_initialized
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, ProjectConfiguration

from ldot_milvus.errors import UsageError
from ldot_milvus.training.recipe import Stage, Trainer


def accelerator_for(settings: Trainer, out: Path, stage: Stage | None = None) -> Accelerator:
    """accelerate's view of the processes of this run, set up for a stage.

    Raises:
        UsageError: this process has trained with another precision.
    """
    chosen = precision(settings.mixed_precision)
    if is_initialized() and AcceleratorState().mixed_precision != chosen:
        raise UsageError(f"mixed_precision is {chosen!r}, and this process has trained with another: start a new one")
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # told so, accelerate joins processes on processors too
        mixed_precision=chosen,
        gradient_accumulation_steps=1 if stage is None else stage.gradient_accumulation,
        step_scheduler_with_optimizer=False,  # the schedule counts steps, not samples
        log_with="tensorboard",
        project_config=ProjectConfiguration(str(out), logging_dir=str(out / "tensorboard")),
        kwargs_handlers=[
            # A step uses what its objective needs: never the poolers, in pre-training one of the heads.
            DistributedDataParallelKwargs(find_unused_parameters=True),
            # One process extracts features and evaluates while the others wait.
            InitProcessGroupKwargs(timeout=timedelta(hours=24)),
        ],
    )
    if stage is not None:
        accelerator.init_trackers(stage.name)
    return accelerator


def precision(asked: str) -> str:
    """What "auto" means here: what ``accelerate launch`` was told, or what is faster than float32 on this processor."""
    if asked != "auto":
        return asked
    told = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")  # "no" is its default too
    if told != "no":
        return told
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    # Where a CPU has no bfloat16 it is emulated, and sixty times slower than float32.
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "no"
