"""Logs of the workers: without secrets and control characters, and as JSON for ``LDOT_LOG_FORMAT=json``."""

from __future__ import annotations

import logging
from typing import Any

from celery.signals import after_setup_logger, after_setup_task_logger

from ldot_milvus.logs import CleanRecords, JsonFormatter


def log_cleanly() -> None:
    """Make all loggers that Celery sets up after this call clean their records."""
    for signal in (after_setup_logger, after_setup_task_logger):
        signal.connect(_add_filter, weak=False)


def _add_filter(logger: logging.Logger, **_: Any) -> None:
    for handler in logger.handlers:
        if not any(isinstance(one, CleanRecords) for one in handler.filters):
            handler.addFilter(CleanRecords())


def log_as_json() -> None:
    """Make all loggers that Celery sets up after this call write JSON."""
    for signal in (after_setup_logger, after_setup_task_logger):
        signal.connect(_reformat, weak=False)


def _reformat(logger: logging.Logger, **_: Any) -> None:
    for handler in logger.handlers:
        handler.setFormatter(JsonFormatter())
