"""``celery -A workers`` is ``celery -A ldot_milvus.workers``: a short name for the command line, and nothing else."""

from ldot_milvus.workers import app

__all__ = ["app"]
