"""Base class of the commands that this package adds to the ``celery`` program.

The program offers the commands of all installed packages with every application, so each command checks that ``-A``
names the application of ldot-milvus.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

import click
from celery.bin.base import CeleryCommand
from typing_extensions import override

from ldot_milvus.cli.output import say

if TYPE_CHECKING:
    from celery import Celery

APP = "ldot_milvus.workers"


class LdotCommand(CeleryCommand):  # type: ignore[misc]
    """A command that runs with the application of ldot-milvus only.

    With the application of another project, it delegates to a command of the same name of another package. If there is
    none, it prints an error and exits with status 2.
    """

    @override
    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        if parent is None or _is_ours(parent):
            return super().make_context(info_name, args, parent, **extra)  # type: ignore[no-any-return]
        other = _other_command(str(self.name))
        if other is not None:
            return other.make_context(info_name, args, parent, **extra)
        if "--help" in args:
            return super().make_context(info_name, args, parent, **extra)  # type: ignore[no-any-return]
        say(
            f"Error: {self.name} is a command of ldot-milvus, but -A names another application: run "
            f"celery -A {APP} {self.name} ...",
            err=True,
        )
        raise click.exceptions.Exit(2)

    @override
    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        click.Command.format_options(self, ctx, formatter)  # Celery's version lists the arguments among the options

    @override
    def get_short_help_str(self, limit: int = 45) -> str:
        prefix = "ldot-milvus: "  # the commands are listed with the applications of other projects too
        return prefix + str(super().get_short_help_str(limit - len(prefix)))


def application(ctx: click.Context) -> Celery:
    """Return the application that ``-A`` names; without ``-A``, the one of ldot-milvus."""
    if _app_option(ctx) is not None:
        return ctx.obj.app
    from ldot_milvus.workers import app

    return app


def invocation(ctx: click.Context) -> str:
    """Return the program and its application as the user called them, such as ``celery -A workers``."""
    name = _app_option(ctx)
    return f"celery -A {name}" if isinstance(name, str) else "celery"


def _app_option(ctx: click.Context) -> Any:
    """Return the value of ``-A`` or of the variable CELERY_APP; None without either."""
    return ctx.find_root().params.get("app")


def _is_ours(ctx: click.Context) -> bool:
    """Whether the command runs with the application of ldot-milvus, which is the default without ``-A``."""
    if _app_option(ctx) is None:
        return True
    from ldot_milvus.workers.application import NAME

    return bool(ctx.obj.app.main == NAME)


def _other_command(name: str) -> click.Command | None:
    """Find another package's command of this name, which the one of ldot-milvus replaced."""
    for entry in entry_points(group="celery.commands", name=name):
        if not entry.value.startswith("ldot_milvus."):
            command = entry.load()
            if isinstance(command, click.Command):
                return command
    return None
