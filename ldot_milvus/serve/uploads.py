"""Keep uploaded photos in a folder by their content, and ingest them."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ldot_milvus.errors import StoreError
from ldot_milvus.images import SUFFIXES, content_id, decode
from ldot_milvus.images.formats import tried_formats
from ldot_milvus.ingest.target import Target
from ldot_milvus.ingest.tasks import INGEST
from ldot_milvus.serve.answers import Refused
from ldot_milvus.settings import Settings
from ldot_milvus.sources import Source
from ldot_milvus.stores.registry import DEFAULT_FOLDER, absolute_path, parse_address
from ldot_milvus.stores.writing import write_file
from ldot_milvus.workers.runs import Runs, new_run

RUNS = 16
"""Runs that wait for the thread; one more is refused with 429."""

_CHECK_AT = 64  # pixels: a JPEG is decoded at a reduced size, which finds truncated files too


class Uploads:
    """The folder of uploads of a store, and what ingests them.

    Args:
        settings: store and models.
        runs: begins the runs.
    """

    def __init__(self, settings: Settings, runs: Runs) -> None:
        self._settings, self._runs = settings, runs
        beside = parse_address(settings.store).journal
        self._folder = Path(absolute_path(DEFAULT_FOLDER) if beside is None else os.path.dirname(beside)) / "uploads"

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
        if self._runs.waiting >= RUNS:
            raise Refused(429, "queue_full", f"{RUNS} uploads wait already: repeat the request", {"Retry-After": "10"})
        suffixes = [_suffix_of(data, name) for name, data in photos]
        paths = [self._keep(data, suffix) for (_, data), suffix in zip(photos, suffixes, strict=True)]
        sources = [Source(str(path), namespace=namespace or "default") for path in dict.fromkeys(paths)]
        target = Target.of(self._settings)
        if collection is not None:
            target = replace(target, collection=collection)
        new = new_run(self._settings, INGEST, sources, target=target)
        self._runs.start(new)
        return new.run.id

    def _keep(self, data: bytes, suffix: str) -> Path:
        """Write a photo under the hash of its content, unless it is there."""
        name = content_id(data)
        path = self._folder / name[:2] / f"{name}{suffix}"
        try:
            if not (path.exists() and path.stat().st_size == len(data)):
                write_file(str(path), data)
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
