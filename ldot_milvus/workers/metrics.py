"""``celery -A workers metrics``: the journal and the queues as a page for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click
from celery.bin.base import handle_preload_options

from ldot_milvus.cli.common import one_line_errors, settings_with
from ldot_milvus.workers.command import LdotCommand, application

if TYPE_CHECKING:
    from celery import Celery

    from ldot_milvus.ingest.journal import Journal


@click.command(cls=LdotCommand)
@click.option("--port", type=click.IntRange(1, 65535), default=9464, show_default=True, help="Port to answer at.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to answer at; 0.0.0.0 for all.")
@click.option("--store", help="Address of the store (default: LDOT_STORE, 'faiss:./ldot-data').")
@click.pass_context
@handle_preload_options  # type: ignore[untyped-decorator]
@one_line_errors
def metrics(ctx: click.Context, port: int, host: str, store: str | None) -> None:
    """Serve metrics for Prometheus at /metrics, until stopped: of all workers together, from the journal.

    One such process is enough for any number of workers, and no worker's death takes counts with it.
    """
    from ldot_milvus.errors import UsageError
    from ldot_milvus.workers.running import journal_of

    try:
        from prometheus_client import REGISTRY, start_http_server
    except ImportError as error:
        raise UsageError("metrics need prometheus-client: pip install 'ldot-milvus[metrics]'") from error

    settings = settings_with(store=store)
    journal = journal_of(settings)
    REGISTRY.register(Exporter(journal, application(ctx) if settings.broker else None))
    try:
        server, thread = start_http_server(port, host)
    except OSError as error:
        raise UsageError(f"port {port} of {host} cannot be used ({error.strerror}): choose another --port") from error
    click.echo(f"Metrics of the journal {journal.address} at http://{host}:{port}/metrics")
    try:
        thread.join()
    except KeyboardInterrupt:
        server.shutdown()


class Exporter:
    """Reads the journal and the broker at each scrape; a part that is away leaves its metrics out and ``up`` at 0."""

    def __init__(self, journal: Journal, app: Celery | None) -> None:
        self._journal = journal
        self._app = app

    def collect(self) -> Iterator[Any]:
        """The metrics as prometheus_client wants them."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        from ldot_milvus.errors import StoreError

        up = GaugeMetricFamily("ldot_up", "Whether this part answers.", labels=["part"])
        try:
            sums, failures = self._journal.totals(), len(self._journal.failures())
            up.add_metric(["journal"], 1)
        except StoreError:
            sums, failures = None, 0
            up.add_metric(["journal"], 0)
        if sums is not None:
            photos = CounterMetricFamily("ldot_photos", "Photos done with, by what became of them.", labels=["outcome"])
            for outcome in ("added", "updated", "unchanged", "failed"):
                photos.add_metric([outcome], sums.get(outcome, 0))
            yield photos
            yield CounterMetricFamily("ldot_deleted_rows", "Rows deleted.", value=sums.get("deleted", 0))
            yield CounterMetricFamily("ldot_read_bytes", "Bytes of photos read.", value=sums.get("bytes", 0))
            yield CounterMetricFamily("ldot_chunks", "Chunks ended.", value=sums.get("chunks", 0))
            yield _labelled(
                CounterMetricFamily("ldot_failures", "Photos that failed, by reason.", labels=["reason"]), sums
            )
            yield _labelled(
                CounterMetricFamily(
                    "ldot_seconds", "Seconds in each stage, of all workers; stages overlap.", labels=["stage"]
                ),
                sums,
            )
            yield GaugeMetricFamily("ldot_failures_listed", "Failures that wait for --retry or --clear.", failures)
        if self._app is not None:
            try:
                yield self._depths(self._app)
                up.add_metric(["broker"], 1)
            except Exception:  # whatever its client raises: the page is answered all the same
                up.add_metric(["broker"], 0)
        yield up

    def _depths(self, app: Celery) -> Any:
        from prometheus_client.core import GaugeMetricFamily

        from ldot_milvus.workers.broker import queue_depths

        depth = GaugeMetricFamily("ldot_queue_depth", "Chunks that wait for a worker.", labels=["queue"])
        for queue, waiting in queue_depths(app).items():
            depth.add_metric([queue], waiting)
        return depth


def _labelled(family: Any, sums: dict[str, float]) -> Any:
    """The sums named ``failures:REASON`` or ``seconds:STAGE``, one a label."""
    prefix = family.name.removeprefix("ldot_") + ":"
    for name, value in sorted(sums.items()):
        if name.startswith(prefix):
            family.add_metric([name.removeprefix(prefix)], value)
    return family
