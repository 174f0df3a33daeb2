"""What the processes of one run share in a step; with one process each of these is the identity."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gathered(rows: Tensor) -> Tensor:
    """``rows`` (B, ...) of all processes, in order of process, with gradients to each.

    The backward pass adds up what every process says of a row. Where all of them compute the same loss from what was
    gathered, a row's gradient comes out as many times too large as there are processes, and the mean over processes
    that data-parallel training takes of the weights' gradients takes that out again: they are those of one process
    with the joined batch.
    """
    gathered_rows: Tensor = rows if world() == 1 else _Gathered.apply(rows)
    return gathered_rows


def gathered_sequences(rows: Tensor) -> Tensor:
    """As :func:`gathered` for (B, L, ...) whose L differs between processes: padded with zeros to the longest."""
    if world() == 1:
        return rows
    longest = torch.tensor(rows.shape[1], device=rows.device)
    dist.all_reduce(longest, dist.ReduceOp.MAX)
    padding = [0, 0] * (rows.dim() - 2) + [0, int(longest) - rows.shape[1]]
    return gathered(nn.functional.pad(rows, padding))


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(world())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient.chunk(world())[dist.get_rank()]


def mean(values: Tensor) -> Tensor:
    """A loss whose mean over processes is the mean of the values of all of them, however many each has."""
    if world() == 1:
        return values.mean()
    count = torch.tensor(values.numel(), device=values.device)
    dist.all_reduce(count)
    return values.sum() * world() / count
