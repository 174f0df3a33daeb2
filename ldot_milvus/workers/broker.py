"""Ask the broker, always with a time limit: whether it answers, the lengths of its queues, and who listens to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ldot_milvus.errors import StoreError, first_line

if TYPE_CHECKING:
    from celery import Celery

TIMEOUT = 5
"""Seconds to wait for the broker. Celery's own retries would take minutes."""

SOCKET_LIMITS = {
    "socket_connect_timeout": TIMEOUT, "socket_timeout": TIMEOUT,  # Redis
    "read_timeout": TIMEOUT, "write_timeout": TIMEOUT,  # RabbitMQ
}  # fmt: skip
"""Transport options of kombu that limit each operation on a connection, TLS handshakes included."""


def broker_errors(connection: Any) -> tuple[type[Exception], ...]:
    """Return the exception types with which the broker of a kombu connection fails or refuses something."""
    from kombu.exceptions import OperationalError

    return (OperationalError, OSError, *connection.connection_errors, *connection.channel_errors)


def check_broker(broker: str) -> str:
    """Check that the broker answers within a few seconds.

    Args:
        broker: the broker's URL.

    Returns:
        The URL with the password masked.

    Raises:
        StoreError: the broker does not answer, refuses the connection, or kombu has no transport for the URL.
    """
    from kombu.connection import Connection
    from kombu.exceptions import OperationalError
    from kombu.utils.url import maybe_sanitize_url

    try:
        address = str(maybe_sanitize_url(broker))
    except ValueError as error:  # its text may contain a part of the password
        raise StoreError(
            "LDOT_BROKER is not a valid address: give redis://HOST/0 or amqp://USER:PASSWORD@HOST//, with characters "
            "such as / and @ in the password written as %2F and %40"
        ) from error
    try:
        connection = Connection(  # type: ignore[no-untyped-call]
            broker, connect_timeout=TIMEOUT, transport_options=dict(SOCKET_LIMITS)
        )
        errors = broker_errors(connection)
    except (ImportError, KeyError) as error:
        raise StoreError(
            f"LDOT_BROKER ({address}) names a broker that kombu cannot use ({first_line(error)}): give redis://HOST/0 "
            "or amqp://USER:PASSWORD@HOST//, or install the package of its transport"
        ) from error
    try:
        with connection:
            connection.ensure_connection(  # type: ignore[no-untyped-call]
                max_retries=2, interval_start=0.2, timeout=TIMEOUT
            )
    except (OperationalError, OSError) as error:
        raise StoreError(
            f"the broker at LDOT_BROKER ({address}) does not answer ({first_line(error)}): start it, or unset "
            "LDOT_BROKER to ingest in this process"
        ) from error
    except errors as error:
        raise StoreError(
            f"the broker at LDOT_BROKER ({address}) refuses the connection ({first_line(error)}): check the user, the "
            "password and the virtual host in the address"
        ) from error
    return address


def queue_depths(app: Celery) -> dict[str, int]:
    """Count the waiting chunks of each queue, without those that a worker has received.

    Returns:
        Queue name to number of chunks.

    Raises:
        StoreError: the broker is unreachable.
    """
    return {queue.name: _declared(app, queue.name)[0] for queue in app.conf.task_queues}


def has_worker(app: Celery, queue: str) -> bool:
    """Return whether a worker listens to the queue.

    RabbitMQ knows the consumers of a queue. Other brokers do not: there the workers are asked, and one that processes a
    chunk in a pool of the kind ``solo`` does not answer.

    Raises:
        StoreError: the broker is unreachable.
    """
    _, consumers = _declared(app, queue)
    if consumers is not None:
        return consumers > 0
    replies = app.control.inspect(timeout=1).active_queues() or {}
    return any(consumed["name"] == queue for queues in replies.values() for consumed in queues)


def _declared(app: Celery, queue: str) -> tuple[int, int | None]:
    """Return the numbers of waiting chunks and of consumers of a queue; None if the broker does not know consumers."""
    from amqp.exceptions import NotFound

    with app.connection_for_write(transport_options=dict(SOCKET_LIMITS)) as connection:
        try:
            connection.ensure_connection(max_retries=1, timeout=TIMEOUT)
            counts_consumers = connection.transport.driver_type == "amqp"
            try:
                declared = connection.default_channel.queue_declare(queue, passive=True)
            except (NotFound, *connection.channel_errors):  # a queue exists from its first message on
                return 0, 0 if counts_consumers else None
            return int(declared.message_count), int(declared.consumer_count) if counts_consumers else None
        except broker_errors(connection) as error:
            raise StoreError(f"the broker does not answer ({first_line(error)})") from error
