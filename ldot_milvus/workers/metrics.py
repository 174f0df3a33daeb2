"""The command ``celery -A workers metrics``: export journal and queue metrics to Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click
from celery.bin.base import handle_preload_options

from ldot_milvus.cli.common import STORE_HELP, one_line_errors, settings_with
from ldot_milvus.cli.output import say
from ldot_milvus.workers.command import LdotCommand, application

if TYPE_CHECKING:
    from celery import Celery

    from ldot_milvus.ingest.journal import Journal


@click.command(cls=LdotCommand)
@click.option(
    "--port", type=click.IntRange(1, 65535), default=9464, show_default=True, metavar="PORT", help="Port to listen on."
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="Address to listen on; 0.0.0.0 listens on all.",
)
@click.option("--store", metavar="ADDRESS", help=STORE_HELP)
@click.pass_context
@handle_preload_options  # type: ignore[untyped-decorator]
@one_line_errors
def metrics(ctx: click.Context, port: int, host: str, store: str | None) -> None:
    """Serve Prometheus metrics of all workers.

    Serves http://HOST:PORT/metrics until interrupted. The metrics are read from the journal and the broker, so one
    process covers all workers, and the counts survive the death of any worker.
    """
    from ldot_milvus.errors import UsageError
    from ldot_milvus.ingest.journal import journal_of

    try:
        from prometheus_client import REGISTRY, start_http_server
    except ImportError as error:
        raise UsageError("metrics require prometheus-client: pip install 'ldot-milvus[metrics]'") from error

    settings = settings_with(store=store)
    journal = journal_of(settings)
    REGISTRY.register(Exporter(journal, application(ctx) if settings.broker else None))
    try:
        server, thread = start_http_server(port, host)
    except OSError as error:
        raise UsageError(f"cannot listen on {host}:{port} ({error.strerror}): choose another --port") from error
    say(f"Serving metrics of the journal {journal.address} at http://{host}:{port}/metrics")
    try:
        thread.join()
    except KeyboardInterrupt:
        server.shutdown()


class Exporter:
    """A Prometheus collector that reads the journal and the broker at each scrape.

    If one of them is unreachable, its metrics are omitted and its ``ldot_up`` is 0.

    Args:
        journal: source of the counts.
        app: the application whose queues are measured; None without a broker.
    """

    def __init__(self, journal: Journal, app: Celery | None) -> None:
        self._journal = journal
        self._app = app

    def collect(self) -> Iterator[Any]:
        """Yield the metric families, as prometheus_client requires."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        from ldot_milvus.errors import StoreError

        up = GaugeMetricFamily("ldot_up", "1 if the journal or broker answers, else 0.", labels=["part"])
        try:
            sums, failures = self._journal.totals(), len(self._journal.failures())
            up.add_metric(["journal"], 1)
        except StoreError:
            sums, failures = None, 0
            up.add_metric(["journal"], 0)
        if sums is not None:
            photos = CounterMetricFamily("ldot_photos", "Photos processed, by outcome.", labels=["outcome"])
            for outcome in ("added", "updated", "unchanged", "failed", "near_duplicates"):
                photos.add_metric([outcome], sums.get(outcome, 0))
            yield photos
            yield CounterMetricFamily("ldot_deleted_rows", "Rows deleted.", value=sums.get("deleted", 0))
            yield CounterMetricFamily("ldot_read_bytes", "Bytes of photos read.", value=sums.get("bytes", 0))
            yield CounterMetricFamily("ldot_chunks", "Chunks finished.", value=sums.get("chunks", 0))
            yield _labelled(
                CounterMetricFamily("ldot_failures", "Photos that failed, by reason.", labels=["reason"]), sums
            )
            yield _labelled(
                CounterMetricFamily(
                    "ldot_seconds", "Seconds per stage, summed over all workers; stages overlap.", labels=["stage"]
                ),
                sums,
            )
            yield GaugeMetricFamily("ldot_failures_listed", "Failures not yet retried or cleared.", failures)
        if self._app is not None:
            try:
                yield self._depths(self._app)
                up.add_metric(["broker"], 1)
            except Exception:  # the clients of the brokers raise many types, and the scrape must succeed
                up.add_metric(["broker"], 0)
        yield up

    def _depths(self, app: Celery) -> Any:
        from prometheus_client.core import GaugeMetricFamily

        from ldot_milvus.workers.broker import queue_depths

        depth = GaugeMetricFamily("ldot_queue_depth", "Chunks waiting for a worker.", labels=["queue"])
        for queue, waiting in queue_depths(app).items():
            depth.add_metric([queue], waiting)
        return depth


def _labelled(family: Any, sums: dict[str, float]) -> Any:
    """Add the sums named ``failures:REASON`` or ``seconds:STAGE`` to ``family``, one label value each."""
    prefix = family.name.removeprefix("ldot_") + ":"
    for name, value in sorted(sums.items()):
        if name.startswith(prefix):
            family.add_metric([name.removeprefix(prefix)], value)
    return family
