"""Send chunks to the broker: each is confirmed by the broker, or the command fails within a time limit."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ldot_milvus.workers.broker import SOCKET_LIMITS, broker_errors

if TYPE_CHECKING:
    from celery import Celery

    from ldot_milvus.ingest.chunks import Chunk

SEND_SECONDS = 10.0
"""Time limit for sending one chunk, including attempts to reach a broker that restarts."""


def send(app: Celery, chunk: Chunk) -> None:
    """Send a chunk to the queue of its task.

    Raises:
        StoreError: the broker did not confirm the chunk within :data:`SEND_SECONDS`.
    """
    with _producer(app) as producer:
        _send(app, producer, chunk)


def send_all(app: Celery, chunks: Sequence[Chunk]) -> None:
    """Send chunks to their queues.

    Raises:
        StoreError: the broker did not confirm a chunk within :data:`SEND_SECONDS`; the message says how many chunks
            were sent.
    """
    from ldot_milvus.errors import StoreError

    with _producer(app) as producer:
        for number, chunk in enumerate(chunks):
            try:
                _send(app, producer, chunk)
            except StoreError as error:
                raise StoreError(
                    f"{error}; {number} of {len(chunks)} chunks were sent: when the broker accepts chunks again, "
                    "repeat the command, which skips what is already done"
                ) from error


@contextmanager
def _producer(app: Celery) -> Iterator[Any]:
    """Open a connection whose operations have time limits and whose messages RabbitMQ confirms.

    It is not one of the application's pool, because a worker's events must not wait for confirmations.
    """
    options = {"confirm_publish": True, **dict.fromkeys(SOCKET_LIMITS, SEND_SECONDS)}
    with app.connection_for_write(transport_options=options) as connection:
        yield app.amqp.Producer(connection, auto_declare=False)


def _send(app: Celery, producer: Any, chunk: Chunk) -> None:
    from ldot_milvus.errors import StoreError, first_line

    deadline = time.monotonic() + SEND_SECONDS

    def check_deadline(error: Exception, _: float) -> None:
        """Called by kombu before another attempt."""
        # A chunk that was not confirmed in time may be in the broker's buffers: another attempt would only double it.
        if isinstance(error, TimeoutError) or time.monotonic() > deadline:
            raise StoreError(_unconfirmed(error)) from error

    policy = {
        "max_retries": 5, "interval_start": 0.2, "interval_step": 0.5, "interval_max": 2, "errback": check_deadline,
    }  # fmt: skip
    try:
        # Time limits in the message would override those of the worker that processes the chunk.
        app.tasks[chunk.task.celery_name].apply_async(
            (chunk.to_dict(),), producer=producer, retry=True, retry_policy=policy, time_limit=None,
            soft_time_limit=None, timeout=SEND_SECONDS, confirm_timeout=SEND_SECONDS,
        )  # fmt: skip
    except broker_errors(producer.connection) as error:
        producer.connection.collect()  # a connection that RabbitMQ blocks would not close
        raise StoreError(f"the broker did not accept a chunk ({first_line(error)})") from error


def _unconfirmed(error: Exception) -> str:
    from ldot_milvus.errors import first_line

    return (
        f"the broker did not confirm a chunk within {SEND_SECONDS:g} s ({first_line(error)}; RabbitMQ confirms none "
        "while it is short of memory or disk space: see rabbitmqctl status)"
    )
