"""Communication between the processes of a run in a step; in a single process, nothing is communicated."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world() -> int:
    """Return the number of processes in the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gathered(rows: Tensor) -> Tensor:
    """Gather ``rows`` (B, ...) of all processes, in order of process, with gradients to each process.

    The backward pass sums the gradients of a row over all processes. If all processes compute the same loss from the
    gathered rows, this gradient is too large by a factor of the number of processes. Data-parallel training then
    averages the gradients of the weights over processes, which divides by this factor: the result is the gradient of
    one process with the joint batch.
    """
    gathered_rows: Tensor = rows if world() == 1 else _Gathered.apply(rows)
    return gathered_rows


def gathered_sequences(rows: Tensor) -> Tensor:
    """Gather (B, L, ...) as :func:`gathered` does; if L differs between processes, pad with zeros to the largest."""
    if world() == 1:
        return rows
    longest = torch.tensor(rows.shape[1], device=rows.device)
    dist.all_reduce(longest, dist.ReduceOp.MAX)
    padding = [0, 0] * (rows.dim() - 2) + [0, int(longest) - rows.shape[1]]
    return gathered(nn.functional.pad(rows, padding))


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        rows_of_processes = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(world())]
        dist.all_gather(rows_of_processes, rows.contiguous())
        return torch.cat(rows_of_processes)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient.chunk(world())[dist.get_rank()]


def mean(values: Tensor) -> Tensor:
    """Return a loss whose mean over processes is the mean of all their values, however many each process has."""
    if world() == 1:
        return values.mean()
    count = torch.tensor(values.numel(), device=values.device)
    dist.all_reduce(count)
    return values.sum() * world() / count
