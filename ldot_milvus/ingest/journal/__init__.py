"""Ingestion journal: runs, finished chunks and failures, in a SQLite file, or in Redis for several machines."""

from __future__ import annotations

from ldot_milvus.ingest.journal.base import FailedItem, Journal, Progress, Run
from ldot_milvus.settings import QUEUE, REDIS, Settings
from ldot_milvus.stores.registry import DEFAULT_FOLDER, absolute_path, parse_address

__all__ = ["FailedItem", "Journal", "Progress", "Run", "journal_address", "journal_of", "open_journal"]


def journal_address(settings: Settings) -> str:
    """Return the address of the journal: a Redis address, or the absolute path of a file.

    The address is the first of these that applies: ``LDOT_RESULT_BACKEND``; a file beside the store; the broker if it
    is Redis; a file in ``./ldot-data``, which serves one machine.

    Args:
        settings: store, broker and result backend.

    Raises:
        UsageError: ``LDOT_STORE`` has an unknown form.
    """
    given = settings.result_backend
    if given is not None:
        return given if given.startswith(REDIS) else absolute_path(given)
    beside = parse_address(settings.store).journal
    if beside is not None:
        return beside
    if (settings.broker or "").startswith(REDIS):
        return str(settings.broker)
    return absolute_path(f"{DEFAULT_FOLDER}/ingestion.sqlite")


def journal_of(settings: Settings) -> Journal:
    """Open the journal of the store that the settings name."""
    return open_journal(journal_address(settings), settings.queue)


def open_journal(address: str, name: str = QUEUE) -> Journal:
    """Open a journal without creating or reading anything yet.

    Args:
        address: ``redis://HOST:PORT/DB``, ``rediss://...``, or the path of a SQLite file, which is made absolute here.
        name: ``LDOT_QUEUE``, which separates the journals of several deployments in one Redis.
    """
    if address.startswith(REDIS):
        from ldot_milvus.ingest.journal.redis_journal import RedisJournal

        return RedisJournal(address, name)
    from ldot_milvus.ingest.journal.sqlite_journal import SqliteJournal

    return SqliteJournal(absolute_path(address))
