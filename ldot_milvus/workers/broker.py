"""Ask the broker, always with a time limit: whether it answers, the lengths of its queues, and who listens to them."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

from ldot_milvus.errors import StoreError, UsageError, first_line
from ldot_milvus.redaction import masked

if TYPE_CHECKING:
    from celery import Celery

TIMEOUT = 5
"""Seconds to wait for the broker. Celery's own retries would take minutes."""

SOCKET_LIMITS = {
    "socket_connect_timeout": TIMEOUT, "socket_timeout": TIMEOUT,  # Redis
    "read_timeout": TIMEOUT, "write_timeout": TIMEOUT,  # RabbitMQ
}  # fmt: skip
"""Transport options of kombu that limit each operation on a connection, TLS handshakes included."""


_REFUSALS = ("access_refused", "not_allowed", "username-password", "wrongpass", "noauth", "authentication")
"""Words in the messages of brokers that refuse a user, a password or a virtual host."""


class BrokerRefusal(StoreError):
    """The broker answers and refuses the connection, which waiting does not change."""


def broker_errors(connection: Any) -> tuple[type[Exception], ...]:
    """Return the exception types with which the broker of a kombu connection fails or refuses something."""
    from kombu.exceptions import OperationalError

    return (OperationalError, OSError, *connection.connection_errors, *connection.channel_errors)


def check_transport(broker: str) -> None:
    """Check that kombu has a transport for the URL, without importing it.

    Raises:
        UsageError: it has none.
    """
    from kombu.transport import TRANSPORT_ALIASES

    for url in broker.split(";"):
        name = url.partition("://")[0].partition("+")[0]
        if name not in TRANSPORT_ALIASES and "." not in name:
            raise _unusable(masked(broker), f"No such transport: {name}")


def _unusable(address: str, why: str) -> UsageError:
    return UsageError(
        f"LDOT_BROKER ({address}) names a broker that kombu cannot use ({why}): give redis://HOST/0 or "
        "amqp://USER:PASSWORD@HOST//, or install the package of its transport"
    )


def check_broker(broker: str, queue: str | None = None) -> str:
    """Check that the broker answers within a few seconds.

    Args:
        broker: the broker's URL, as :class:`~ldot_milvus.settings.Settings` accepts it.
        queue: also send a message to a queue of a name that begins with this, and delete it; None sends nothing.

    Returns:
        The URL with the password masked.

    Raises:
        BrokerRefusal: the broker refuses the connection.
        StoreError: the broker does not answer or accepts no message.
        UsageError: kombu has no transport for the URL.
    """
    from kombu.connection import Connection
    from kombu.exceptions import OperationalError

    check_transport(broker)
    address = masked(broker)
    try:
        connection = Connection(  # type: ignore[no-untyped-call]
            broker, connect_timeout=TIMEOUT, transport_options={**SOCKET_LIMITS, "confirm_publish": queue is not None}
        )
        errors = broker_errors(connection)
    except ImportError as error:
        raise _unusable(address, first_line(error)) from error
    try:
        with connection:
            connection.ensure_connection(  # type: ignore[no-untyped-call]
                max_retries=2, interval_start=0.2, timeout=TIMEOUT
            )
            if queue is not None:
                _try_to_send(connection, f"{queue}.doctor-{secrets.token_hex(8)}", address)
    except (OperationalError, OSError) as error:
        if any(word in str(error).lower() for word in _REFUSALS):
            raise _refusal(address, error) from error
        raise StoreError(
            f"the broker at LDOT_BROKER ({address}) does not answer ({first_line(error)}): start it, or unset "
            "LDOT_BROKER to ingest in this process"
        ) from error
    except errors as error:
        raise _refusal(address, error) from error
    return address


def _refusal(address: str, error: Exception) -> BrokerRefusal:
    return BrokerRefusal(
        f"the broker at LDOT_BROKER ({address}) refuses the connection ({first_line(error)}): check the user, the "
        "password and the virtual host in the address"
    )


def _try_to_send(connection: Any, name: str, address: str) -> None:
    """Send a message to a temporary queue, and delete the queue.

    Raises:
        StoreError: the broker does not accept one of these.
    """
    try:
        channel = connection.channel()
        channel.queue_declare(name, durable=False, exclusive=True, auto_delete=True)
        connection.Producer(channel).publish(
            "", exchange="", routing_key=name, delivery_mode=1, timeout=TIMEOUT, confirm_timeout=TIMEOUT
        )
        channel.queue_purge(name)  # in Redis, a queue without messages does not exist
        channel.queue_delete(name)
    except broker_errors(connection) as error:
        connection.collect()  # a connection that RabbitMQ blocks would not close
        raise StoreError(
            f"the broker at LDOT_BROKER ({address}) answers, but accepts no message ({first_line(error)}): check the "
            "permissions of the user, its memory and its disk, and that it is not a read-only replica"
        ) from error


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
