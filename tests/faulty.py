"""The Celery application with injected faults: ``celery -A tests.faulty worker``, with ``LDOT_TEST_FAULTS=NAME,...``.

Faults that occur once leave a file in the folder ``LDOT_TEST_MARKS``. ``quick_model`` replaces the model by a stub, so
that a worker is ready within a second.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np

import ldot_milvus.ingest.pipeline
import ldot_milvus.stores.local.store
from ldot_milvus.errors import StoreError
from ldot_milvus.ingest.ingestor import Ingestor
from ldot_milvus.ingest.journal.sqlite_journal import SqliteJournal
from ldot_milvus.stores.local.store import FaissStore
from ldot_milvus.workers import app

__all__ = ["app"]

POISON = b"poison"
MARKS = Path(os.environ.get("LDOT_TEST_MARKS", "/nonexistent"))

decode, upsert, end = ldot_milvus.ingest.pipeline.decode, FaissStore.upsert, SqliteJournal.end


def once(name: str) -> bool:
    try:
        (MARKS / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class QuickModel:
    """A stub of an embedder: vectors of width 16 from a photo's pixels, without torch."""

    least_side = None

    @property
    def reranker(self):
        return self

    def image_features(self, images):
        return [np.asarray(image.convert("L").resize((4, 4)), np.float32).reshape(1, 16) / 255 for image in images]

    def encode_features(self, features):
        return np.concatenate(features) if features else np.zeros((0, 16), np.float32)

    def keep(self, features):
        return [{"features": feature.astype(np.float16)} for feature in features]

    def encode_texts(self, texts):
        return np.ones((len(texts), 16), np.float32)


def decode_slowly(data, **options):
    time.sleep(0.05)
    return decode(data, **options)


def decode_in_a_second(data, **options):
    time.sleep(1)
    return decode(data, **options)


def crawl(data, **options):
    time.sleep(15)
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
        die()  # after writing, before the journal and the broker record it
    counts = end(self, *arguments)
    if once("die_after_ending"):
        die()  # after the journal records it, before the broker does
    return counts


def store_away(self, records):
    if (MARKS / "away").exists():
        raise StoreError("the store does not answer")
    return upsert(self, records)


for fault in filter(None, os.environ.get("LDOT_TEST_FAULTS", "").split(",")):
    if fault == "no_time_limits":
        app.conf.update(task_time_limit=3600, task_soft_time_limit=3600)
    elif fault == "quick_model":
        Ingestor.embedder = QuickModel()
    elif fault in ("die_before_writing", "store_away"):
        FaissStore.upsert = globals()[fault]
    elif fault == "die_before_acknowledging":
        SqliteJournal.end = die_before_acknowledging
    else:
        ldot_milvus.ingest.pipeline.decode = globals()[fault]
