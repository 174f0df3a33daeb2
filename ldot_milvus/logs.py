"""Records of logs: without secrets and control characters, and as JSON."""

from __future__ import annotations

import json
import logging
from typing import Any

from typing_extensions import override

from ldot_milvus.errors import printable
from ldot_milvus.redaction import masked

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
            values["exception"] = record.exc_text or self.formatException(record.exc_info)
        return json.dumps(values, default=str)


class CleanRecords(logging.Filter):
    """Hides secrets and escapes control characters in messages and tracebacks; line breaks stay."""

    @override
    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = _clean(record.getMessage()), None
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = _clean(record.exc_text)
        return True


def _clean(text: str) -> str:
    return "\n".join(map(printable, masked(text).split("\n")))
