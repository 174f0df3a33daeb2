"""The Celery application and its configuration. Creating it opens no connection and imports nothing heavy."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from celery import Celery
from celery.loaders.app import AppLoader
from celery.signals import worker_init
from kombu.entity import Queue

from ldot_milvus.ingest.tasks import INGEST, TASKS
from ldot_milvus.settings import QUEUE, Settings
from ldot_milvus.workers.broker import TIMEOUT, BrokerRefusal, check_broker, check_transport
from ldot_milvus.workers.logs import log_as_json, log_cleanly
from ldot_milvus.workers.tasks import process_message

NAME = "ldot_milvus"
"""The application's ``main``, which distinguishes it from the applications of other projects."""


class _Loader(AppLoader):  # type: ignore[misc]
    """A loader that ignores CELERY_CONFIG_MODULE."""

    def read_configuration(self, *_: object, **__: object) -> dict[str, Any]:
        return {}


def make_app(settings: Settings) -> Celery:
    """Create the Celery application: late acknowledgement and one chunk per worker at a time, so no chunk is lost.

    The application does not interfere with other projects in the same process or environment. It does not become the
    process's current application, and CELERY_CONFIG_MODULE, CELERY_LOADER, CELERY_BROKER_URL and
    DJANGO_SETTINGS_MODULE are not read.

    Args:
        settings: broker, queue, visibility time-out and log format.

    Raises:
        UsageError: kombu has no transport for the broker.
    """
    if settings.broker is not None:
        check_transport(settings.broker)
    limit = settings.visibility_timeout
    queues = {task.celery_name: task.queue(settings.queue) for task in TASKS.values()}
    # There is no result backend: the journal records the outcome of each chunk, and outlives workers and waiting
    # processes.
    app = Celery(NAME, broker=settings.broker, loader=_Loader, fixups=[], set_as_current=False)
    for task in TASKS.values():
        # shared=True would register the task with every application of the process.
        app.task(process_message, name=task.celery_name, bind=True, shared=False)
    app.conf.update(
        broker_read_url=settings.broker,  # unlike ``broker``, these two take precedence over CELERY_BROKER_URL
        broker_write_url=settings.broker,
        task_default_queue=INGEST.queue(settings.queue),
        task_queues=[_queue(queue) for queue in queues.values()],  # a worker without -Q consumes from all of them
        task_routes={name: {"queue": queue} for name, queue in queues.items()},
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_acks_late=True,
        task_reject_on_worker_lost=True,  # the journal counts how often a chunk was started, which bounds the retries
        task_acks_on_failure_or_timeout=False,
        # The limits expire before the broker considers the worker dead and delivers the chunk to another one. Only
        # process pools enforce them.
        task_soft_time_limit=0.8 * limit,
        task_time_limit=0.9 * limit,
        worker_prefetch_multiplier=1,
        worker_soft_shutdown_timeout=10,
        worker_hijack_root_logger=False,
        worker_log_color=False if os.environ.get("NO_COLOR") else None,  # None: colours on a terminal
        worker_cancel_long_running_tasks_on_connection_loss=False,  # the journal records the chunk when it is finished
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,  # wait for an unreachable broker without limit
        broker_transport_options={
            "visibility_timeout": limit,
            # Interval in seconds at which chunks of dead workers are restored in Redis. Celery's default of 100 s is
            # long for small chunks.
            "unacked_restore_interval": min(10, limit / 2),
            "unacked_restore_throttle": 1,
            # A Redis that stops answering must not block a worker or a command for ever.
            "socket_connect_timeout": TIMEOUT,
            "socket_timeout": 2 * TIMEOUT,
        },
    )
    worker_init.connect(partial(_check_at_start, app, settings), weak=False)
    if settings.queue != QUEUE:
        _separate(app, settings.queue)
    log_cleanly()
    if settings.log_format == "json":
        log_as_json()
    return app


def _check_at_start(app: Celery, settings: Settings, sender: Any, **_: Any) -> None:
    """Refuse to start a worker whose settings no chunk can use; a broker that does not answer is waited for."""
    from ldot_milvus.cli.output import stop
    from ldot_milvus.errors import StoreError, UsageError
    from ldot_milvus.stores.index_spec import IndexSpec
    from ldot_milvus.stores.regions import absolute_region_address
    from ldot_milvus.stores.registry import parse_address

    if sender.app is not app:
        return
    try:
        parse_address(settings.store)
        IndexSpec.parse(settings.index)
        if settings.region_store is not None:
            absolute_region_address(settings.region_store)
        if settings.broker is not None:
            check_broker(settings.broker)
    except (UsageError, BrokerRefusal) as error:
        stop(error)
    except StoreError:
        return


def _separate(app: Celery, name: str) -> None:
    """Separate from other deployments on the broker what has one name for all Celery applications by default.

    These are the exchanges of ``celery status``, ``celery control`` and ``celery events``, and Redis' record of chunks
    that a worker has taken, which each application returns to the queue after its own visibility time-out.
    """
    app.conf.update(control_exchange=f"{name}:control", event_exchange=f"{name}:events")
    app.conf.broker_transport_options.update(
        {f"unacked{part}_key": f"{name}:unacked{part}" for part in ("", "_index", "_mutex")}
    )


def _queue(name: str) -> Queue:
    return Queue(name, routing_key=name)  # type: ignore[no-untyped-call]
