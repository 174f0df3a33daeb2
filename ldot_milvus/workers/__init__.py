"""The Celery application: ``celery -A workers worker``, ``celery -A workers enqueue PATH...``."""

from ldot_milvus.workers.app import app

__all__ = ["app"]
