"""The Celery application and its commands: ``celery -A ldot_milvus.workers worker``, ``... enqueue PATH...``.

Every ``celery`` command of the environment imports this package for its commands, another project's too. So ``app`` is
made, and the ``LDOT_`` settings are read, when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from celery import Celery

    app: Celery

__all__ = ["app"]


def __getattr__(name: str) -> Celery:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ldot_milvus.settings import Settings
    from ldot_milvus.workers.application import make_app

    return globals().setdefault(name, make_app(Settings()))  # the first thread's, should two of them ask
