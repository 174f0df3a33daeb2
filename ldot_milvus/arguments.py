"""Check and normalise the arguments of the Python API, one function for each kind; errors say what was given."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterable, Mapping, Set
from decimal import Decimal
from numbers import Real
from typing import TYPE_CHECKING, Any

from ldot_milvus.errors import UsageError, first_line, printable

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SHOWN = 60


def described(value: object) -> str:
    """Describe what was given, in a few words: its value if it is short, else its type, shape and dtype."""
    kind = type(value)
    package = kind.__module__.partition(".")[0]
    name = kind.__name__ if package in ("builtins", "numpy", "io", "_io") else f"{package}.{kind.__name__}"
    if value is None:
        return "None"
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None and isinstance(shape, tuple) and len(shape) > 0:
        return f"an array of shape {tuple(shape)} and dtype {str(dtype).removeprefix('torch.')} ({name})"
    if isinstance(value, (str, int, float, complex, Decimal)) or (shape == () and dtype is not None):
        return f"{shown(repr(value))} ({name})" if not isinstance(value, str) else shown(repr(value))
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"{len(value):,} bytes ({name})"
    if isinstance(value, (list, tuple, Set, Mapping)):
        return f"a {name} of {len(value):,}"
    article = "an" if name[:1].lower() in "aeiou" else "a"
    return f"{article} {name}"


def shown(text: str, limit: int = _SHOWN) -> str:
    """Return a text for a message: printable, in one line, and cut if it is long."""
    line = printable(text.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape"))
    return line if len(line) <= limit else f"{line[:limit]}..."


def whole_number(value: Any, name: str, least: int, most: int | None = None) -> int:
    """Return a count as an int: an integer of Python, NumPy or torch.

    Args:
        value: what the caller gave. True and False are refused, and so are 3.0 and "3".
        name: of the argument, for the message.
        least, most: the range; None for no upper end.

    Raises:
        UsageError: the value is no integer, or out of range.
    """
    try:
        number = None if _is_bool(value) or getattr(value, "shape", ()) != () else operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor of another type
        number = None
    if number is None or number < least or (most is not None and number > most):
        range = f"of at least {least}" if most is None else f"from {least:,} to {most:,}"
        raise UsageError(f"{name} is {described(value)}: give a whole number {range}")
    return number


def real_number(value: Any, name: str, least: float, most: float) -> float:
    """Return a number as a float: of Python, NumPy or torch, or a Decimal or Fraction.

    Args:
        value: what the caller gave. True, False and "0.5" are refused.
        name: of the argument, for the message.
        least, most: the range.

    Raises:
        UsageError: the value is no number, NaN, or out of range.
    """
    single = getattr(value, "shape", None) == () and callable(getattr(value, "item", None))
    plain = value.item() if single else value
    number = float(plain) if isinstance(plain, (Real, Decimal)) and not _is_bool(plain) else math.nan
    if not least <= number <= most:
        raise UsageError(f"{name} is {described(value)}: give a number from {least:,.10g} to {most:,.10g}")
    return number


def path_text(path: Any) -> str:
    """Return a path as text; bytes that are not UTF-8 become surrogates, as in Python's own paths.

    Raises:
        UsageError: it is neither a ``str`` nor a path object.
    """
    if isinstance(path, (str, os.PathLike)):
        return os.fsdecode(path)
    raise UsageError(f"{described(path)} is not a path: give a str or a pathlib.Path")


def listed(values: Any, what: str) -> Iterable[Any]:
    """Return an iterable of several things, or refuse a single one, which would iterate over its parts.

    Args:
        values: lists, tuples, generators, NumPy arrays, pandas Series and other iterables in a definite order.
        what: what it should contain, in the plural, for the message.

    Raises:
        UsageError: it is a single text, path, or file, a dictionary or a set, or no iterable.
    """
    single = isinstance(values, (str, bytes, bytearray, memoryview)) or hasattr(values, "read")
    unordered = isinstance(values, (Mapping, Set)) or hasattr(values, "columns")  # of a table: its iterator gives names
    if single or unordered or getattr(values, "shape", None) == ():
        raise UsageError(f"give a list of {what}, not {described(values)}")
    try:
        return iter(values)  # type: ignore[no-any-return]
    except TypeError as error:
        raise UsageError(f"give a list of {what}, not {described(values)}") from error


def to_array(value: Any) -> NDArray[Any]:
    """Convert an array, a list or a tensor to a NumPy array; a tensor may be on any device and require gradients.

    Raises:
        ValueError: its library cannot convert it; the message is of one line.
    """
    import numpy as np

    try:
        if hasattr(value, "detach"):  # torch
            value = value.detach().cpu()
            if str(value.dtype) == "torch.bfloat16":  # which NumPy does not have
                value = value.float()
        array: NDArray[Any] = np.asarray(value)
        return array
    except Exception as error:  # each library has its own, such as for sparse tensors
        raise ValueError(first_line(error)) from error


def _is_bool(value: object) -> bool:
    dtype = getattr(value, "dtype", None)
    return isinstance(value, bool) or str(dtype) in ("bool", "torch.bool")
