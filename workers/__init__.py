"""``celery -A workers`` is ``celery -A ldot_milvus.workers``: a short name for the command line, and nothing else."""

from ldot_milvus.workers import __getattr__  # the application is made when it is first asked for

__all__ = ["__getattr__"]
