"""What several commands share."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

if TYPE_CHECKING:
    from ldot_milvus.models.base import Embedder
    from ldot_milvus.settings import Settings

RERANKER_HELP = "Re-ranker: folder, hub id, or 'none' (default: LDOT_RERANKER, the model's own)."

F = TypeVar("F", bound=Callable[..., None])


def one_line_errors(command: F) -> F:
    """Our own errors become one line and exit status 2."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        from ldot_milvus.errors import LdotError

        try:
            command(*args, **kwargs)
        except LdotError as error:
            click.echo(f"Error: {error}", err=True)
            sys.exit(2)

    return cast(F, wrapped)


def settings_with(**chosen: str | None) -> Settings:
    """The settings of the environment, with what was given on the command line in their place."""
    from ldot_milvus.settings import Settings

    return Settings().model_copy(update={name: value for name, value in chosen.items() if value is not None})


def embedder_of(settings: Settings) -> Embedder:
    """The embedder that the settings name."""
    from ldot_milvus.models.loading import load_embedder

    return load_embedder(settings.model, device=settings.device, dtype=settings.dtype)


def parse_filter(text: str | None) -> dict[str, Any] | None:
    """What ``--filter`` says, not yet looked at; None where it was not given.

    Raises:
        FilterError: no JSON object.
    """
    from ldot_milvus.errors import FilterError

    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        raise FilterError(f"--filter is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise FilterError('--filter must be a JSON object such as {"width": {"$gte": 640}}')
    return value
