"""The application with faults to order: ``celery -A tests.faulty worker``, ``LDOT_TEST_FAULTS=die_before_writing,...``.

Faults that strike once leave a file in the folder ``LDOT_TEST_MARKS``.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import ldot_milvus.ingestion
import ldot_milvus.stores.faiss
from ldot_milvus.errors import StoreError
from ldot_milvus.journal.sqlite import SqliteJournal
from ldot_milvus.stores.faiss import FaissStore
from workers.app import app

__all__ = ["app"]

POISON = b"poison"
MARKS = Path(os.environ.get("LDOT_TEST_MARKS", "/nonexistent"))

decode, upsert, end = ldot_milvus.ingestion.decode, FaissStore.upsert, SqliteJournal.end


def once(name: str) -> bool:
    try:
        (MARKS / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def decode_slowly(data, **options):
    time.sleep(0.05)
    return decode(data, **options)


def die_of_poison(data, **options):
    if data.endswith(POISON):
        die()
    return decode(data, **options)


def hang_at_poison(data, **options):
    if data.endswith(POISON):
        time.sleep(3600)
    return decode(data, **options)


def stumble_over_poison(data, **options):
    if data.endswith(POISON):
        raise ZeroDivisionError("nobody expected this")
    return decode(data, **options)


def die_before_writing(self, records):
    if once("die_before_writing"):
        die()
    return upsert(self, records)


def die_before_acknowledging(self, *arguments):
    if once("die_before_acknowledging"):
        die()  # everything is written, and neither the journal nor the broker knows
    end(self, *arguments)
    if once("die_after_ending"):
        die()  # the journal knows, and the broker does not


def store_away(self, records):
    if (MARKS / "away").exists():
        raise StoreError("the store does not answer")
    return upsert(self, records)


for fault in filter(None, os.environ.get("LDOT_TEST_FAULTS", "").split(",")):
    if fault == "no_time_limits":
        app.conf.update(task_time_limit=3600, task_soft_time_limit=3600)
    elif fault in ("die_before_writing", "store_away"):
        FaissStore.upsert = globals()[fault]
    elif fault == "die_before_acknowledging":
        SqliteJournal.end = die_before_acknowledging
    else:
        ldot_milvus.ingestion.decode = globals()[fault]
