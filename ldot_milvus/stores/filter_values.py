"""Values of filters: Python's and NumPy's types become JSON scalars or times, in one place.

A time is a ``datetime``, a ``date``, or a text in one of these forms, all others being plain texts::

    2024-05-01    2024-05-01T10:00    2024-05-01 10:00:00.25    2024-05-01T10:00:00Z    2024-05-01T10:00:00+02:00

A date is its midnight, and a time without an offset is in UTC. Times are compared to the microsecond; further digits
are ignored.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import numpy as np

_DAY = 86_400_000_000
_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)(?:[T ](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?(?:Z|([+-])(\d\d):(\d\d)(?::(\d\d))?)?)?",
    re.ASCII,
)
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True)
class Time:
    """A moment that a filter compares with.

    Attributes:
        microseconds: since 1970-01-01T00:00Z.
    """

    microseconds: int

    def bounds(self, operator: str) -> tuple[str, str]:
        """Return texts between which every text of a time is for which the comparison is true.

        Args:
            operator: $eq, $gt, $gte, $lt or $lte.

        Returns:
            The lowest text, and the lowest one above, by code point. A text begins with its local date, which is less
            than a day before the date in UTC, or a day after it.
        """
        day = self.microseconds // _DAY + _EPOCH.toordinal()
        lowest, above = "0", ":"  # the digits are between them
        if operator in ("$eq", "$gt", "$gte") and day - 1 >= 1:
            lowest = date.fromordinal(day - 1).isoformat()
        if operator in ("$eq", "$lt", "$lte") and day + 2 <= date.max.toordinal():
            above = date.fromordinal(max(day + 2, 1)).isoformat()
        return lowest, above


Scalar = str | int | float | bool | None
Value = Scalar | Time


def microseconds(text: str) -> int | None:
    """Return the microseconds since 1970-01-01T00:00Z of a time; None for any other text."""
    found = _TIME.fullmatch(text)
    if found is None:
        return None
    year, month, day, hour, minute, second, fraction, sign, *offset = found.groups()
    try:
        days = date(int(year), int(month), int(day)).toordinal() - _EPOCH.toordinal()
    except ValueError:
        return None
    hours, minutes, seconds = int(hour or 0), int(minute or 0), int(second or 0)
    away = [int(part or 0) for part in offset]
    if hours > 23 or minutes > 59 or seconds > 59 or away[0] > 23 or away[1] > 59 or away[2] > 59:
        return None
    shift = (away[0] * 60 + away[1]) * 60 + away[2]
    total = (hours * 60 + minutes) * 60 + seconds - (-shift if sign == "-" else shift)
    return days * _DAY + total * 1_000_000 + int((fraction or "").ljust(6, "0")[:6])


def plain(value: Any) -> Any:
    """Return a value as a JSON scalar or a :class:`Time`; a value of no known type is returned as it is.

    NumPy scalars, members of enumerations, UUIDs, paths and decimals are converted. A text stays a text.
    """
    if isinstance(value, np.datetime64):
        value = value if np.isnat(value) else value.astype("datetime64[us]").item()
    elif isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        value = value.item()
    elif isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, datetime) and value == value:  # pandas.NaT differs from itself
        aware = value if value.utcoffset() is not None else value.replace(tzinfo=timezone.utc)
        return Time((aware - _EPOCH) // timedelta(microseconds=1))
    if isinstance(value, date) and not isinstance(value, datetime):
        return Time((value.toordinal() - _EPOCH.toordinal()) * _DAY)
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Decimal):
        return int(value) if value.is_finite() and value == value.to_integral_value() else float(value)
    return value


def listed(value: Any) -> list[Any] | None:
    """Return the members of a list, tuple, set, array or view; None for anything else, generators included."""
    if isinstance(value, (str, bytes, bytearray, Mapping)) or not isinstance(value, (Collection, np.ndarray)):
        return None
    if isinstance(value, np.ndarray) and value.ndim != 1:
        return None
    return list(value)
