"""What our commands have in common: they are commands of the ``celery`` program, which other projects use too.

The program lists the commands of all packages of the environment for every application, so a command has to see for
itself whether the application is its own.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

import click
from celery.bin.base import CeleryCommand

if TYPE_CHECKING:
    from celery import Celery

APP = "ldot_milvus.workers"


class LdotCommand(CeleryCommand):  # type: ignore[misc]
    """A command for our application only. With ``-A`` of another one it does nothing and says so."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """As click's; but if the application is another project's, for that project's command of this name, if any."""
        if parent is None or _is_ours(parent):
            return super().make_context(info_name, args, parent, **extra)  # type: ignore[no-any-return]
        theirs = _other_command(str(self.name))
        if theirs is not None:
            return theirs.make_context(info_name, args, parent, **extra)
        if "--help" in args:
            return super().make_context(info_name, args, parent, **extra)  # type: ignore[no-any-return]
        click.echo(
            f"Error: {self.name} is a command of ldot-milvus, and -A names another application: call it as "
            f"celery -A {APP} {self.name} ...",
            err=True,
        )
        raise click.exceptions.Exit(2)

    def get_short_help_str(self, limit: int = 45) -> str:
        """Whose command it is, first: other projects' lists of commands have it too."""
        whose = "ldot-milvus: "
        return whose + str(super().get_short_help_str(limit - len(whose)))


def application(ctx: click.Context) -> Celery:
    """Our application: the one that ``-A`` names, or the usual one where there is no ``-A``."""
    if _named(ctx) is not None:
        return ctx.obj.app
    from ldot_milvus.workers import app

    return app


def invocation(ctx: click.Context) -> str:
    """How the user called the program, to go before the name of another command: ``celery -A workers``."""
    name = _named(ctx)
    return f"celery -A {name}" if isinstance(name, str) else "celery"


def _named(ctx: click.Context) -> Any:
    """What ``-A``, or its variable CELERY_APP, says; None where it is not given."""
    return ctx.find_root().params.get("app")


def _is_ours(ctx: click.Context) -> bool:
    if _named(ctx) is None:
        return True  # nobody else is named: what the command is for, is ours
    from ldot_milvus.workers.application import NAME

    return bool(ctx.obj.app.main == NAME)


def _other_command(name: str) -> click.Command | None:
    """Another package's command of this name, which ours has displaced."""
    for entry in entry_points(group="celery.commands", name=name):
        if not entry.value.startswith("ldot_milvus."):
            command = entry.load()
            if isinstance(command, click.Command):
                return command
    return None
