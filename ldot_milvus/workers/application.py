"""How the Celery application is made. Nothing heavy is imported and nothing connects here."""

from __future__ import annotations

from typing import Any

from celery import Celery
from celery.loaders.app import AppLoader
from kombu.entity import Queue

from ldot_milvus.ingest.tasks import INGEST, TASKS
from ldot_milvus.settings import Settings
from ldot_milvus.workers.logs import log_as_json
from ldot_milvus.workers.tasks import process_message

NAME = "ldot_milvus"
"""The application's ``main``, by which our commands tell it from another project's."""


class _Loader(AppLoader):  # type: ignore[misc]
    def read_configuration(self, *_: object, **__: object) -> dict[str, Any]:
        return {}  # not what CELERY_CONFIG_MODULE names


def make_app(settings: Settings) -> Celery:
    """A Celery application that loses nothing when a worker dies: late acknowledgement, one chunk at a time.

    Another project's process and environment are left alone, and leave it alone: it is not the process's current
    application, and CELERY_CONFIG_MODULE, CELERY_LOADER, CELERY_BROKER_URL and DJANGO_SETTINGS_MODULE are not read.
    """
    limit = settings.visibility_timeout
    # No result backend: what becomes of a chunk is in the journal, which outlives workers and any process that waits.
    app = Celery(NAME, broker=settings.broker, loader=_Loader, fixups=[], set_as_current=False)
    for task in TASKS.values():
        app.task(process_message, name=task.celery_name, bind=True, shared=False)  # shared: with every application
    app.conf.update(
        broker_read_url=settings.broker,  # these win over CELERY_BROKER_URL, and ``broker`` does not
        broker_write_url=settings.broker,
        task_default_queue=INGEST.queue,
        task_queues=[_queue(task.queue) for task in TASKS.values()],  # a worker without -Q takes all
        task_routes={task.celery_name: {"queue": task.queue} for task in TASKS.values()},
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_acks_late=True,
        task_reject_on_worker_lost=True,  # bounded by the journal, which counts how often a chunk was begun
        task_acks_on_failure_or_timeout=False,
        # Before the broker takes the worker for dead and hands the chunk to another one. Pools of processes only.
        task_soft_time_limit=0.8 * limit,
        task_time_limit=0.9 * limit,
        worker_prefetch_multiplier=1,
        worker_soft_shutdown_timeout=10,
        worker_hijack_root_logger=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,  # a chunk that is done is noted in the journal
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,  # a broker that is away is waited for
        broker_transport_options={
            "visibility_timeout": limit,
            # How often Redis is asked for chunks of dead workers: Celery's own 100 seconds is long for small chunks.
            "unacked_restore_interval": min(10, limit / 2),
            "unacked_restore_throttle": 1,
        },
    )
    if settings.log_format == "json":
        log_as_json()
    return app


def _queue(name: str) -> Queue:
    return Queue(name, routing_key=name)  # type: ignore[no-untyped-call]
