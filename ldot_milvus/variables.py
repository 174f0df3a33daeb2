"""Environment variables with the prefix ``LDOT_``, and the file of such variables that ``LDOT_ENV_FILE`` names."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache

from ldot_milvus.errors import UsageError, printable, reason

logger = logging.getLogger(__name__)

PREFIX = "LDOT_"
ENV_FILE = f"{PREFIX}ENV_FILE"
"""The variable that names a file of variables."""

_OF_TESTS = f"{PREFIX}TEST_"
_told: set[str] = set()


@dataclass(frozen=True)
class Variable:
    """A variable with a value.

    Attributes:
        name: its name, as it was found.
        value: its value without white space at the ends, which files with Windows line ends leave there; not empty.
        origin: "environment", or the absolute path of the file.
    """

    name: str
    value: str
    origin: str


def read_variables(fields: Iterable[str]) -> dict[str, Variable]:
    """Read the variables that are set; an empty one, or one of white space, is not set.

    Args:
        fields: names without the prefix, in lower case.

    Returns:
        Variables by these names. Those of the environment go before those of the file. Letter case does not matter,
        but a name in capitals goes before others.

    Raises:
        UsageError: the file cannot be read.
    """
    found = _found()
    return {field: found[field] for field in fields if field in found}


def unknown_variables(fields: Iterable[str]) -> dict[str, str]:
    """Find variables with the prefix that are no settings.

    Args:
        fields: names of the settings without the prefix, in lower case.

    Returns:
        What to tell about each, by its name.
    """
    known = {*fields, ENV_FILE.removeprefix(PREFIX).lower()}
    messages = {}
    for field, variable in _found().items():
        if field not in known and not variable.name.upper().startswith(_OF_TESTS):
            where = "" if variable.origin == "environment" else f" in {variable.origin}"
            hint = nearest(variable.name.upper(), [f"{PREFIX}{name.upper()}" for name in sorted(known)])
            messages[variable.name] = f"{printable(variable.name)}{where} is no setting{hint}"
    return messages


def warn_of_unknown(fields: Iterable[str]) -> None:
    """Log a warning for each variable with the prefix that is no setting, once in a process."""
    for name, message in unknown_variables(fields).items():
        if name not in _told:
            _told.add(name)
            logger.warning("%s", message)


def nearest(name: str, names: Iterable[str]) -> str:
    """Return ``: did you mean NAME?`` for the most similar name; an empty text if none is similar."""
    similar = get_close_matches(name, list(names), 1)
    return f": did you mean {similar[0]}?" if similar else ""


def stamp(name: str) -> object:
    """Return a value that changes when a variable, or the file of variables, does.

    Args:
        name: the variable's name, in capitals.
    """
    path = _file()
    try:
        status = None if path is None else os.stat(path)
    except OSError:
        status = None
    return os.environ.get(name), path, None if status is None else (status.st_mtime_ns, status.st_size, status.st_ino)


def _found() -> dict[str, Variable]:
    """Return all variables with the prefix that have a value, by their names without it in lower case."""
    path = _file()
    sources: list[tuple[Mapping[str, str | None], str]] = [(os.environ, "environment")]
    if path is not None:
        sources.insert(0, (_contents(path), path))
    found: dict[str, Variable] = {}
    for variables, origin in sources:
        for name in sorted(variables, key=lambda name: (name.isupper(), name)):
            value = (variables[name] or "").strip()
            if name.upper().startswith(PREFIX) and value:
                found[name.upper().removeprefix(PREFIX).lower()] = Variable(name, value, origin)
    return found


def _file() -> str | None:
    named = os.environ.get(ENV_FILE, "").strip()
    return _absolute(named) if named else None


@lru_cache(maxsize=8)  # a process that changes its folder keeps its file
def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def _contents(path: str) -> dict[str, str | None]:
    from dotenv import dotenv_values

    try:
        with open(path, encoding="utf-8-sig") as file:
            return dotenv_values(stream=file)
    except (OSError, ValueError) as error:
        why = "it is not in UTF-8" if isinstance(error, UnicodeDecodeError) else reason(error)
        raise UsageError(
            f"{ENV_FILE} names {printable(path)}, which cannot be read ({why}): give the path of a file with lines "
            "such as LDOT_STORE=faiss:./ldot-data"
        ) from error
