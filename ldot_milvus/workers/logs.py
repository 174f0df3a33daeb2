"""A worker's log as JSON, one object a line, where ``LDOT_LOG_FORMAT=json`` asks for it."""

from __future__ import annotations

import json
import logging
from typing import Any

from celery.signals import after_setup_logger, after_setup_task_logger

# What every log record has; the rest of its attributes came with the message.
_USUAL = vars(logging.makeLogRecord({})).keys() | {"message", "asctime", "data"}


class JsonFormatter(logging.Formatter):
    """Time, level, logger, message, and whatever the message was logged with (``extra``)."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        values: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{record.msecs:03.0f}",
            "level": record.levelname,
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
        }
        values.update({name: value for name, value in vars(record).items() if name not in _USUAL})
        if record.exc_info:
            values["exception"] = self.formatException(record.exc_info)
        return json.dumps(values, default=str)


def log_as_json() -> None:
    """From now on the loggers that Celery sets up write JSON."""
    for signal in (after_setup_logger, after_setup_task_logger):
        signal.connect(_reformat, weak=False)


def _reformat(logger: logging.Logger, **_: Any) -> None:
    for handler in logger.handlers:
        handler.setFormatter(JsonFormatter())
