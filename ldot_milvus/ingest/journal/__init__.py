"""The journal: what became of each run, chunk and source. In a SQLite file, or in Redis for several machines."""

from __future__ import annotations

from ldot_milvus.ingest.journal.base import FailedItem, Journal, Progress, Run
from ldot_milvus.settings import Settings
from ldot_milvus.stores.registry import DEFAULT_FOLDER, absolute_path, parse_address

__all__ = ["FailedItem", "Journal", "Progress", "Run", "journal_address", "open_journal"]

_REDIS = ("redis://", "rediss://")


def journal_address(settings: Settings) -> str:
    """Where the journal of the store that the settings name is: a Redis address, or the absolute path of a file.

    ``LDOT_RESULT_BACKEND`` where that is Redis or the path of a file; else a file beside the store; else the broker
    where that is Redis; else a file in ``./ldot-data``, which serves one machine.

    Raises:
        UsageError: ``LDOT_STORE`` is an address of no known form.
    """
    given = settings.result_backend
    if given is not None and given.startswith(_REDIS):
        return given
    if given is not None and "://" not in given:  # Celery's own forms, such as rpc://, are of no use here
        return absolute_path(given)
    beside = parse_address(settings.store).journal
    if beside is not None:
        return beside
    if (settings.broker or "").startswith(_REDIS):
        return str(settings.broker)
    return absolute_path(f"{DEFAULT_FOLDER}/ingestion.sqlite")


def open_journal(address: str) -> Journal:
    """Open a journal; nothing is created or read yet.

    Args:
        address: ``redis://HOST:PORT/DB``, ``rediss://...``, or the path of a SQLite file, which is made absolute here.
    """
    if address.startswith(_REDIS):
        from ldot_milvus.ingest.journal.redis_journal import RedisJournal

        return RedisJournal(address)
    from ldot_milvus.ingest.journal.sqlite_journal import SqliteJournal

    return SqliteJournal(absolute_path(address))
