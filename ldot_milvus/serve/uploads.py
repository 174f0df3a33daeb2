"""Keep uploaded photos in a folder by their content, and ingest them: by the workers, or in a thread."""

from __future__ import annotations

import io
import logging
import os
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ldot_milvus.errors import LdotError, StoreError
from ldot_milvus.images import SUFFIXES, content_id, decode
from ldot_milvus.images.formats import tried_formats
from ldot_milvus.ingest.chunks import chunks_of, process_chunks_inline
from ldot_milvus.ingest.journal import Journal, Run
from ldot_milvus.ingest.target import OpenTarget, Target
from ldot_milvus.ingest.tasks import INGEST
from ldot_milvus.serve.answers import Refused
from ldot_milvus.settings import Settings
from ldot_milvus.sources import Source
from ldot_milvus.stores.registry import DEFAULT_FOLDER, absolute_path, parse_address
from ldot_milvus.workers.running import journal_of

log = logging.getLogger(__name__)

RUNS = 16
"""Runs that wait for the thread; one more is refused with 429."""

_CHECK_AT = 64  # pixels: a JPEG is decoded at a reduced size, which finds truncated files too


class Uploads:
    """The folder of uploads of a store, and what ingests them.

    Args:
        settings: store, models, broker and journal.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        beside = parse_address(settings.store).journal
        self._folder = Path(absolute_path(DEFAULT_FOLDER) if beside is None else os.path.dirname(beside)) / "uploads"
        self._executor = ThreadPoolExecutor(1, "ldot-ingest")
        self._waiting = 0

    def ingest(self, photos: Sequence[tuple[str, bytes]], collection: str | None, namespace: str | None) -> str:
        """Keep photos and begin to ingest them. Called in a thread.

        Args:
            photos: name, for messages, and content of each.
            collection: None for the default one.
            namespace: tenant of the rows; None for "default".

        Returns:
            The id of the run.

        Raises:
            InputError: a file is no photo; none is kept.
            Refused: too many runs wait.
            StoreError: the folder, the broker or the journal cannot be used.
        """
        if self._waiting >= RUNS:
            raise Refused(429, "queue_full", f"{RUNS} uploads wait already: repeat the request", {"Retry-After": "10"})
        suffixes = [_suffix_of(data, name) for name, data in photos]
        paths = [self._keep(data, suffix) for (_, data), suffix in zip(photos, suffixes, strict=True)]
        sources = [Source(str(path), namespace=namespace or "default") for path in dict.fromkeys(paths)]
        target = Target.of(self._settings)
        run = Run.new(
            INGEST.name, target if collection is None else replace(target, collection=collection), len(sources)
        )
        journal = journal_of(self._settings)
        journal.start(run)
        chunks = list(chunks_of(run, sources, INGEST.chunk_size))
        if self._settings.broker:
            from ldot_milvus.workers import app
            from ldot_milvus.workers.sending import send_all

            send_all(app, chunks)
        else:
            self._waiting += 1
            self._executor.submit(self._process, run, journal, sources)
        return run.id

    def close(self) -> None:
        """Wait for the run that is being ingested; those that wait are dropped, and their photos stay in the folder."""
        self._executor.shutdown(cancel_futures=True)

    def _process(self, run: Run, journal: Journal, sources: Sequence[Source]) -> None:
        try:
            with OpenTarget(run.target, self._settings) as opened:
                perform = INGEST.performer(opened, run.target)
                for _ in process_chunks_inline(chunks_of(run, sources, INGEST.chunk_size), journal, perform):
                    pass
        except LdotError as error:
            log.error("run %s: %s", run.id, error)
        except Exception:
            log.exception("run %s failed", run.id)
        finally:
            self._waiting -= 1

    def _keep(self, data: bytes, suffix: str) -> Path:
        """Write a photo under the hash of its content, unless it is there."""
        name = content_id(data)
        path = self._folder / name[:2] / f"{name}{suffix}"
        try:
            if path.exists() and path.stat().st_size == len(data):
                return path
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
            try:
                temporary.write_bytes(data)
                temporary.replace(path)
            finally:
                with suppress(FileNotFoundError):
                    temporary.unlink()
        except OSError as error:
            raise StoreError(
                f"the upload cannot be kept in {self._folder} ({error.strerror}): check the folder"
            ) from error
        return path


def _suffix_of(data: bytes, name: str) -> str:
    """Check a photo and return the suffix of its format, whatever its name says."""
    from PIL import Image

    decode(data, name=os.path.splitext(name)[0] or "file", draft_to=_CHECK_AT)
    with Image.open(io.BytesIO(data), formats=tried_formats()) as image:
        format = "JPEG" if image.format == "MPO" else image.format
    return next(suffix for suffix, known in SUFFIXES.items() if known == format)
