"""Short name of :mod:`ldot_milvus.workers` for the command line: ``celery -A workers ...``."""

from ldot_milvus.workers import __getattr__  # creates the application at the first access to ``app``

__all__ = ["__getattr__"]
