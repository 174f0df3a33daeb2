"""Help texts, error handling and settings that several commands share."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from ldot_milvus.cli.output import say, stop

if TYPE_CHECKING:
    from ldot_milvus.models.base import Embedder
    from ldot_milvus.settings import Settings

STORE_HELP = "Address of the vector store (default: $LDOT_STORE or 'faiss:./ldot-data')."
COLLECTION_HELP = "Name of the collection (default: $LDOT_COLLECTION or 'images')."
MODEL_HELP = "Model: packaged name, folder or hub id (default: $LDOT_MODEL or 'ldot-mini')."
RERANKER_HELP = "Re-ranker: folder, hub id or 'none' (default: $LDOT_RERANKER or the model's own)."

_FILTER = '{"width": {"$gte": 640}}'

F = TypeVar("F", bound=Callable[..., None])


def one_line_errors(command: F) -> F:
    """Decorate a command to print an :class:`~ldot_milvus.errors.LdotError` as one line and exit with status 2.

    An :class:`~ldot_milvus.errors.UnknownField` is one line too, without the place in the source that a program sees.
    """

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        from ldot_milvus.errors import LdotError

        os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # else gRPC prints lines of its own at every attempt
        try:
            with _one_line_warnings():
                command(*args, **kwargs)
        except LdotError as error:
            stop(error)

    return cast(F, wrapped)


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    from ldot_milvus.errors import UnknownField

    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **options: Any) -> None:
            if issubclass(category, UnknownField):
                say(f"Warning: {message}", err=True)
            else:
                others(message, category, *place, **options)

        warnings.showwarning = show
        yield


def collection_options(command: F) -> F:
    """Decorate a command with the options that name a collection and its models."""
    for name, metavar, text in (
        ("--reranker", "NAME", RERANKER_HELP),
        ("--model", "NAME", MODEL_HELP),
        ("--store", "ADDRESS", STORE_HELP),
        ("--collection", "NAME", COLLECTION_HELP),
    ):
        command = click.option(name, metavar=metavar, help=text)(command)
    return command


def settings_with(**options: str | None) -> Settings:
    """Read the settings from the environment and override them with command line options.

    Args:
        options: setting name to value; None keeps the value of the environment.

    Raises:
        UsageError: a value of the wrong kind; the message names the option or the variable.
    """
    from ldot_milvus.settings import Settings

    return Settings(_given_as="option", **{name: value for name, value in options.items() if value is not None})


def embedder_of(settings: Settings) -> Embedder:
    """Load the embedder that the settings name."""
    from ldot_milvus.models.loading import load_embedder

    return load_embedder(settings.model, device=settings.device, dtype=settings.dtype)


def parse_filter(text: str | None) -> dict[str, Any] | None:
    """Parse the JSON of ``--filter``; fields and operators are checked by the store.

    Returns:
        The filter, or None without the option.

    Raises:
        FilterError: the text is not a JSON object.
    """
    from ldot_milvus.errors import FilterError

    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        raise FilterError(f"--filter is not JSON ({error}): quote it for the shell, as in '{_FILTER}'") from error
    if not isinstance(value, dict):
        raise FilterError(f"--filter must be a JSON object such as {_FILTER}")
    return value
