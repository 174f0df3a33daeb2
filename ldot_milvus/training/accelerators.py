"""Set up accelerate for a run: devices, processes and precision."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, is_initialized
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, ProjectConfiguration

from ldot_milvus.errors import UsageError
from ldot_milvus.models.loading import has_fast_bfloat16
from ldot_milvus.training.recipe import Stage, Trainer


def accelerator_for(settings: Trainer, out: Path, stage: Stage | None = None) -> Accelerator:
    """Create the accelerator of this process.

    Args:
        settings: the recipe's ``trainer`` table.
        out: the run's folder, for TensorBoard.
        stage: the stage to train; None sets up the processes only.

    Raises:
        UsageError: this process has already trained with another precision.
    """
    mixed_precision = precision(settings.mixed_precision)
    if is_initialized() and AcceleratorState().mixed_precision != mixed_precision:
        raise UsageError(
            f"mixed_precision is {mixed_precision!r}, but this process has trained with another: start a new process"
        )
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # with this flag, accelerate also joins processes on CPUs
        mixed_precision=mixed_precision,
        gradient_accumulation_steps=1 if stage is None else stage.gradient_accumulation,
        step_scheduler_with_optimizer=False,  # the schedule counts steps, not samples
        log_with="tensorboard",
        project_config=ProjectConfiguration(str(out), logging_dir=str(out / "tensorboard")),
        kwargs_handlers=[
            # A step does not use all parameters: never the poolers, and only one head in pre-training.
            DistributedDataParallelKwargs(find_unused_parameters=True),
            # The other processes wait while the main process extracts features and evaluates.
            InitProcessGroupKwargs(timeout=timedelta(hours=24)),
        ],
    )
    if stage is not None:
        accelerator.init_trackers(stage.name)
    return accelerator


def precision(setting: str) -> str:
    """Return the precision of a run: "no", "fp16" or "bf16".

    "auto" selects the precision given to ``accelerate launch``, or else one that is faster than float32 on this device.
    """
    if setting != "auto":
        return setting
    launched_with = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")  # "no" is also the launcher's default
    if launched_with != "no":
        return launched_with
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return "bf16" if has_fast_bfloat16() else "no"
