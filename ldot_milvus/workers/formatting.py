"""Format the output of the commands. Nothing is printed here."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ldot_milvus.ingest.journal import FailedItem, Progress, Run
    from ldot_milvus.ingest.report import NearDuplicate
    from ldot_milvus.ingest.target import Target
    from ldot_milvus.sources.selection import Skipped

MAX_NAMES = 3
"""Number of near-duplicates that a summary names."""

MAX_LISTED = 20
"""Number of names that a list shows."""


def counted(count: int, noun: str) -> str:
    """Format a number and its noun: ``1 row``, ``2 rows``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def first_names(names: Iterable[str], count: int) -> list[str]:
    """Format the first :data:`MAX_LISTED` of ``count`` names as one line each."""
    lines = [f"  {name}" for name in islice(names, MAX_LISTED)]
    return lines + ([f"  ... and {count - MAX_LISTED} more"] if count > MAX_LISTED else [])


def describe_target(target: Target) -> str:
    """Format a target: ``COLLECTION in STORE``."""
    return f"{target.collection} in {target.store}"


def outcome(progress: Progress) -> str:
    """Format the counts of a run: ``3 added, 0 updated, 1 unchanged, 0 failed``."""
    from ldot_milvus.ingest.tasks import TASKS

    task = TASKS.get(progress.run.task)
    names = task.counters if task else ("failed",)  # a task of another version
    counts = [f"{int(progress.sums.get(name, 0))} {name}" for name in names]
    near_duplicates = int(progress.sums.get("near_duplicates", 0))
    return ", ".join(counts + ([counted(near_duplicates, "near-duplicate")] if near_duplicates else []))


def near_duplicates_line(count: int, examples: Sequence[NearDuplicate]) -> str:
    """Format how many near-duplicates were left out.

    Args:
        count: their number.
        examples: the first of them; empty if workers have left them out, which name them in their logs.
    """
    names = ", ".join(map(str, examples)) + ", ..." * (count > len(examples))
    where = names if examples else "named in the logs of the workers"
    return f"Seen and not ingested: near-duplicates: {count:,} ({where})"


def skipped_lines(skipped: Skipped) -> list[str]:
    """Format what a listing saw and did not ingest, one line for each reason."""
    return ["Seen and not ingested:", *(f"  {line}" for line in skipped.lines())]


def failure_lines(failures: Sequence[FailedItem], command: str) -> list[str]:
    """Format the first :data:`MAX_LISTED` failures of a run, one per line, and the command that retries them.

    Args:
        failures: all failures of the run.
        command: the program and its application, such as ``celery -A workers``.
    """
    lines = [f"  failed: {failure.source}: {failure.reason}" for failure in failures[:MAX_LISTED]]
    if len(failures) > MAX_LISTED:
        lines.append(f"  ... and {len(failures) - MAX_LISTED} more: {command} failures")
    return [*lines, f"  retry with: {command} failures --retry"]


def failure_line(failure: FailedItem) -> str:
    """Format a failure as one line, with its time and its number of attempts."""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(failure.time))
    return f"{when}  attempt {failure.attempt}  {failure.source}: {failure.reason}"


def progress_line(progress: Progress) -> str:
    """Format the state of a run as one line."""
    run = progress.run
    state = "complete" if progress.complete else f"waiting: {progress.trouble}" if progress.trouble else "not complete"
    return f"{run.id}  {run.task} {describe_target(run.target)}: {_share(progress)}, {state}; {outcome(progress)}"


def progress_report(progress: Progress, now: float) -> list[str]:
    """Format the state of a run as several lines: target, times, rate, counts and seconds per stage.

    Args:
        progress: the state.
        now: the current time, in seconds since 1970.
    """
    run, left = progress.run, progress.seconds_left
    remaining = "unknown time left" if left is None else f"{_duration(left)} left"
    state = "complete" if progress.complete else f"{remaining}, {progress.working} chunks in progress"
    lines = [
        f"run {run.id}: {run.task} {describe_target(run.target)}",
        f"started {_when(run)}, last change {_duration(now - progress.changed)} ago",
        f"{_share(progress)}, {progress.rate:.1f}/s, {state}",
        outcome(progress),
    ]
    stages = {name.partition(":")[2]: value for name, value in progress.sums.items() if name.startswith("seconds:")}
    if stages:
        lines.append("seconds: " + ", ".join(f"{stage} {value:.1f}" for stage, value in sorted(stages.items())))
    if progress.trouble:
        lines.append(f"waiting: {progress.trouble}")
    return lines


def _share(progress: Progress) -> str:
    items = progress.run.items
    return f"{progress.done:,} of {items:,} ({100 * progress.done / items if items else 100:.0f} %)"


def _when(run: Run) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(run.started))


def _duration(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
