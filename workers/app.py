"""The Celery application, configured by ``LDOT_`` settings. Nothing heavy is imported and nothing connects here."""

from __future__ import annotations

from celery import Celery

from ldot_milvus.settings import Settings


def make_app(settings: Settings) -> Celery:
    """A Celery application that loses nothing when a worker dies: late acknowledgement, one chunk at a time."""
    backend = settings.result_backend
    if backend is None and (settings.broker or "").startswith(("redis://", "rediss://")):
        backend = settings.broker
    app = Celery("ldot_milvus", broker=settings.broker, backend=backend, include=["workers.tasks"])
    app.conf.update(
        task_default_queue="ldot",
        task_serializer="json",
        result_serializer="json",
        accept_content=["json"],
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        broker_transport_options={"visibility_timeout": settings.visibility_timeout},
        result_expires=24 * 3600,
        broker_connection_retry_on_startup=True,
        worker_hijack_root_logger=False,
    )
    return app


app = make_app(Settings())
