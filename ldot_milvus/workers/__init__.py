"""The Celery application and its commands: ``celery -A ldot_milvus.workers worker``, ``... enqueue PATH...``.

Every ``celery`` command of the environment imports this package to list its commands, also for other projects. The
application ``app`` is therefore created, and the ``LDOT_`` settings are read, only when ``app`` is first accessed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from click import get_current_context

if TYPE_CHECKING:
    from celery import Celery

    app: Celery

__all__ = ["app"]


def __getattr__(name: str) -> Celery:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ldot_milvus.errors import UsageError
    from ldot_milvus.settings import Settings
    from ldot_milvus.workers.application import make_app

    try:
        made = make_app(Settings())
    except UsageError as error:
        if get_current_context(silent=True) is None:
            raise
        from ldot_milvus.cli.output import stop

        stop(error)  # the program celery would print a traceback
    return globals().setdefault(name, made)  # of two threads that get here, both return the first app
