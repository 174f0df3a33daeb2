"""The Celery application: ``celery -A workers worker``, ``celery -A workers enqueue PATH...``."""

from workers.app import app

__all__ = ["app"]
