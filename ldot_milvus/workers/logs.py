"""JSON log format of the workers, one object per line, for ``LDOT_LOG_FORMAT=json``."""

from __future__ import annotations

import json
import logging
from typing import Any

from celery.signals import after_setup_logger, after_setup_task_logger
from typing_extensions import override

# Attributes of every log record; all others come from the ``extra`` of a message.
_STANDARD = vars(logging.makeLogRecord({})).keys() | {"message", "asctime", "data"}


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON: time, level, logger, process, message and the fields of ``extra``."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        values: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{record.msecs:03.0f}",
            "level": record.levelname,
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
        }
        values.update({name: value for name, value in vars(record).items() if name not in _STANDARD})
        if record.exc_info:
            values["exception"] = self.formatException(record.exc_info)
        return json.dumps(values, default=str)


def log_as_json() -> None:
    """Make all loggers that Celery sets up after this call write JSON."""
    for signal in (after_setup_logger, after_setup_task_logger):
        signal.connect(_reformat, weak=False)


def _reformat(logger: logging.Logger, **_: Any) -> None:
    for handler in logger.handlers:
        handler.setFormatter(JsonFormatter())
