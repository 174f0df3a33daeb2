"""A run from a command's side: send its chunks or work them off here, wait, and sum up."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from ldot_milvus.workers.waiting import counted, send_all, unit, wait_for

if TYPE_CHECKING:
    from celery import Celery

    from ldot_milvus.ingest.chunks import Item, Perform
    from ldot_milvus.ingest.journal import FailedItem, Journal, Progress, Run
    from ldot_milvus.settings import Settings

LISTED = 20


def target_of(settings: Settings) -> dict[str, Any]:
    """Where a chunk goes: the same from the folder of a worker."""
    from ldot_milvus.stores.regions import absolute_region_address
    from ldot_milvus.stores.registry import parse_address

    return {
        "store": parse_address(settings.store).address,
        "collection": settings.collection,
        "model": settings.model,
        "region_store": settings.region_store and absolute_region_address(settings.region_store),
    }


def journal_of(settings: Settings) -> Journal:
    """The journal of the store that the settings name."""
    from ldot_milvus.ingest.journal import journal_address, open_journal

    return open_journal(journal_address(settings))


def carry_out(
    app: Celery,
    settings: Settings,
    task: str,
    items: Sequence[Item],
    *,
    chunk_size: int,
    wait: bool,
    target: dict[str, Any] | None = None,
) -> bool:
    """Do all items, by the workers or here, and print what became of them; whether nothing failed.

    Raises:
        StoreError: the broker, the journal or, without a broker, the store is away.
    """
    from ldot_milvus.ingest.chunks import chunks_of
    from ldot_milvus.ingest.journal import Run
    from ldot_milvus.stores.registry import parse_address
    from ldot_milvus.workers.broker import check_broker

    run = Run.new(task, target or target_of(settings), len(items))
    journal = journal_of(settings)
    place = where(run) if target else f"{settings.collection} in {settings.store}"
    if not settings.broker:
        click.echo(f"No broker is set (LDOT_BROKER): {_doing(run)} in this process.")
        _here(settings, journal, run, items, chunk_size)
        return _summarise(journal, run, place)
    check_broker(settings.broker)
    journal.start(run)
    chunks = list(chunks_of(run, items, chunk_size))
    send_all(chunks)
    click.echo(f"Enqueued {_counted(run)} in {counted(len(chunks), 'chunk')} to the workers: run {run.id}.")
    if not journal.address.startswith("redis") and parse_address(settings.store).journal is None:
        click.echo(
            f"The journal is the file {journal.address}: workers on other machines need one that they share, such as "
            "LDOT_RESULT_BACKEND=redis://HOST/0, here and there.",
            err=True,
        )
    if not wait:
        click.echo(f"See how it goes with: celery -A workers status {run.id}")
        return True
    wait_for(app, settings, journal, run, chunks)
    return _summarise(journal, run, place)


def _here(settings: Settings, journal: Journal, run: Run, items: Sequence[Item], chunk_size: int) -> None:
    from tqdm import tqdm

    from ldot_milvus.ingest.chunks import chunks_of, process_chunks_inline
    from ldot_milvus.stores import open_store

    with open_store(run.target["store"], run.target["collection"]) as store:
        perform = _performer(settings, run, store)
        journal.start(run)
        with tqdm(total=run.items, unit=f" {unit(run)}", disable=None, leave=False) as bar:
            for report in process_chunks_inline(chunks_of(run, items, chunk_size), journal, perform):
                bar.update(report.total)


def _performer(settings: Settings, run: Run, store: Any) -> Perform:
    if run.task == "change":
        from ldot_milvus.ingest.changes import change_rows

        return lambda items: change_rows(store, items, run.target["region_store"])
    from ldot_milvus.ingest.ingestor import Ingestor
    from ldot_milvus.sources import Source

    ingestor = Ingestor(
        store, run.target["model"], region_store=run.target["region_store"], device=settings.device,
        dtype=settings.dtype,
    )  # fmt: skip
    return lambda items: ingestor.ingest([Source.from_dict(item) for item in items])


def _summarise(journal: Journal, run: Run, place: str) -> bool:
    progress = journal.progress(run.id)
    assert progress is not None
    seconds = max(time.time() - run.started, 1e-3)
    click.echo(f"{place}: {outcome(progress)} in {seconds:.1f} s ({progress.done / seconds:.1f} {unit(run)}/s)")
    if run.task == "ingest" and progress.sums.get("unchanged", 0) == run.items:
        click.echo("Nothing new: every photo was there already.")
    failed = int(progress.sums.get("failed", 0))
    if failed:
        list_failures(journal.failures(run.id))
        click.echo("  again: celery -A workers failures --retry", err=True)
    return not failed


def list_failures(failures: Sequence[FailedItem]) -> None:
    """The first few, a line each."""
    for failure in failures[:LISTED]:
        click.echo(f"  failed: {failure.source}: {failure.reason}", err=True)
    if len(failures) > LISTED:
        click.echo(f"  ... and {len(failures) - LISTED} more: celery -A workers failures", err=True)


def where(run: Run) -> str:
    """The collection and its store."""
    return f"{run.target['collection']} in {run.target['store']}"


def outcome(progress: Progress) -> str:
    """What became of the items so far."""
    names = ("added", "updated", "unchanged", "failed") if progress.run.task == "ingest" else (
        "deleted", "updated", "unchanged", "failed")  # fmt: skip
    return ", ".join(f"{int(progress.sums.get(name, 0))} {name}" for name in names)


def listed(names: Iterable[str], count: int) -> None:
    """The first few names of many."""
    for number, name in enumerate(names):
        if number == LISTED:
            click.echo(f"  ... and {count - LISTED} more")
            return
        click.echo(f"  {name}")


def _doing(run: Run) -> str:
    return f"{'ingesting' if run.task == 'ingest' else 'changing'} {_counted(run)}"


def _counted(run: Run) -> str:
    return counted(run.items, "photo" if run.task == "ingest" else "row")
