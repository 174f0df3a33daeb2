"""The broker: whether it is there, told at once and not after Celery's own long series of attempts; what it holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ldot_milvus.errors import StoreError, first_line

if TYPE_CHECKING:
    from celery import Celery

SECONDS = 5


def check_broker(broker: str) -> str:
    """The broker's address without its password, if it answers within some seconds.

    Raises:
        StoreError: it does not, or it is of no kind that kombu knows.
    """
    from kombu.connection import Connection
    from kombu.exceptions import OperationalError
    from kombu.utils.url import maybe_sanitize_url

    address = str(maybe_sanitize_url(broker))
    try:
        with Connection(broker, connect_timeout=SECONDS) as connection:  # type: ignore[no-untyped-call]
            connection.ensure_connection(max_retries=2, interval_start=0.2, timeout=SECONDS)
    except (OperationalError, OSError, ImportError, KeyError) as error:
        raise StoreError(
            f"the broker at LDOT_BROKER ({address}) does not answer ({first_line(error)}): start it, or unset "
            "LDOT_BROKER to ingest in this process"
        ) from error
    return address


def queue_depths(app: Celery) -> dict[str, int]:
    """Chunks that wait in each queue; those that a worker has taken are not counted.

    Raises:
        OSError or a kombu error where the broker is away.
    """
    from amqp.exceptions import NotFound

    depths = {}
    for queue in app.conf.task_queues:
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=5)
            try:
                declared = connection.default_channel.queue_declare(queue.name, passive=True)
                depths[queue.name] = int(declared.message_count)
            except (NotFound, *connection.channel_errors):  # nobody has sent anything there yet
                depths[queue.name] = 0
    return depths
