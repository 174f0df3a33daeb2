"""The journal: what became of each run, chunk and source. In a SQLite file, or in Redis for several machines."""

from __future__ import annotations

from ldot_milvus.ingest.journal.base import FailedItem, Journal, Progress, Run
from ldot_milvus.settings import Settings

__all__ = ["FailedItem", "Journal", "Progress", "Run", "journal_address", "open_journal"]

_REDIS = ("redis://", "rediss://")


def journal_address(settings: Settings) -> str:
    """Where the journal of the store that the settings name is.

    ``LDOT_RESULT_BACKEND`` where that is Redis or the path of a file; else a file beside a local store; else the broker
    where that is Redis; else a file in ``./ldot-data``, which serves one machine.
    """
    given, store = settings.result_backend, settings.store
    if given is not None and (given.startswith(_REDIS) or "://" not in given):
        return given
    if store.startswith("faiss:"):
        return f"{store.removeprefix('faiss:')}/ingestion.sqlite"
    if store.endswith(".db"):
        return f"{store}-ingestion.sqlite"
    if (settings.broker or "").startswith(_REDIS):
        return str(settings.broker)
    return "./ldot-data/ingestion.sqlite"


def open_journal(address: str) -> Journal:
    """The journal at ``redis://...``, ``rediss://...`` or a file's path; nothing is created or read yet."""
    if address.startswith(_REDIS):
        from ldot_milvus.ingest.journal.redis_journal import RedisJournal

        return RedisJournal(address)
    from ldot_milvus.ingest.journal.sqlite_journal import SqliteJournal

    return SqliteJournal(address)
