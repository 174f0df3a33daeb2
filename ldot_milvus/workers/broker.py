"""Check the broker's availability within seconds, and read the lengths of its queues."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ldot_milvus.errors import StoreError, first_line

if TYPE_CHECKING:
    from celery import Celery

TIMEOUT = 5
"""Seconds to wait for the broker. Celery's own retries would take minutes."""


def check_broker(broker: str) -> str:
    """Check that the broker answers within a few seconds.

    Args:
        broker: the broker's URL.

    Returns:
        The URL with the password masked.

    Raises:
        StoreError: the broker does not answer, or kombu has no transport for the URL.
    """
    from kombu.connection import Connection
    from kombu.exceptions import OperationalError
    from kombu.utils.url import maybe_sanitize_url

    address = str(maybe_sanitize_url(broker))
    try:
        with Connection(broker, connect_timeout=TIMEOUT) as connection:  # type: ignore[no-untyped-call]
            connection.ensure_connection(max_retries=2, interval_start=0.2, timeout=TIMEOUT)
    except (OperationalError, OSError, ImportError, KeyError) as error:
        raise StoreError(
            f"the broker at LDOT_BROKER ({address}) does not answer ({first_line(error)}): start it, or unset "
            "LDOT_BROKER to ingest in this process"
        ) from error
    return address


def queue_depths(app: Celery) -> dict[str, int]:
    """Count the waiting chunks of each queue, without those that a worker has received.

    Returns:
        Queue name to number of chunks.

    Raises:
        OSError, kombu.exceptions.OperationalError: the broker is unreachable.
    """
    from amqp.exceptions import NotFound

    depths = {}
    for queue in app.conf.task_queues:
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=5)
            try:
                declared = connection.default_channel.queue_declare(queue.name, passive=True)
                depths[queue.name] = int(declared.message_count)
            except (NotFound, *connection.channel_errors):  # a queue exists from its first message on
                depths[queue.name] = 0
    return depths
