"""Output of the commands: lines that no data can turn into something else, and JSON."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any, NoReturn

import click

from ldot_milvus.errors import UsageError, printable
from ldot_milvus.redaction import masked


def say(*lines: str, err: bool = False) -> None:
    """Print lines: without control characters and secrets, and in characters that the terminal has.

    A character that the encoding of the terminal lacks is escaped, as in ``\\u65e5``.

    Args:
        lines: each is printed as one line, even if a file name in it contains a line break.
        err: print to standard error.

    Raises:
        UsageError: the output cannot be written, as on a full disk.
    """
    stream = sys.stderr if err else sys.stdout
    if stream is not None:  # as in a process that was started without one
        with _writing():
            click.echo("\n".join(line_for(stream, line) for line in lines), file=stream)


def say_json(value: Any, *, indent: int | None = None) -> None:
    """Print a value as JSON in UTF-8, whatever the encoding of the terminal.

    Control characters in strings, and halves of characters, are escaped as JSON has it. Secrets are hidden.

    Args:
        value: values that JSON has.
        indent: spaces per level; None prints one line.

    Raises:
        UsageError: the output cannot be written.
    """
    if sys.stdout is None:
        return
    text = json.dumps(_without_secrets(value), ensure_ascii=False, indent=indent)
    if not text.isprintable():
        text = "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)
    with _writing():
        click.echo(text.encode() if hasattr(sys.stdout, "buffer") else text)


def stop(error: Exception) -> NoReturn:
    """Print an error as one line and end the program with status 2."""
    say(f"Error: {error}", err=True)
    raise SystemExit(2)


def line_for(stream: IO[str] | None, text: str) -> str:
    """Return a text as one line that a stream can show, see :func:`say`."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return printable(masked(text)).encode(encoding, "backslashreplace").decode(encoding)


def _without_secrets(value: Any) -> Any:
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, Mapping):
        return {name: _without_secrets(one) for name, one in value.items()}
    return [_without_secrets(one) for one in value] if isinstance(value, Sequence) else value


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.EPIPE:  # click ends the program quietly
            raise
        raise UsageError(f"the output cannot be written ({error.strerror}): free some space") from error
