"""``ldot doctor``: checks everything that the settings name, and says what to do about each problem."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

from ldot_milvus.errors import LdotError, StoreError
from ldot_milvus.settings import Settings

if TYPE_CHECKING:
    from ldot_milvus.models.base import ModelFiles, RerankerFiles


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    Attributes:
        part: what was checked, such as "store".
        ok: False if the user has to do something.
        text: what was found, or what is wrong and what to do.
    """

    part: str
    ok: bool
    text: str


def examine(settings: Settings) -> Iterator[Finding]:
    """Check device, model, store, indexes, region store and broker; a failed check does not stop the others.

    Args:
        settings: what to check.

    Yields:
        The result of each check, as soon as it is known.
    """
    checks: dict[str, Callable[[Settings], str]] = {
        "device": _device,
        "model": _model,
        "store": _store,
        "indexes": _indexes,
        "region store": _region_store,
        "broker": _broker,
    }
    unreachable = False
    for part, check in checks.items():
        if unreachable and part in ("indexes", "region store"):
            yield Finding(part, False, "not checked: the store does not answer")
            continue
        try:
            yield Finding(part, True, check(settings))
        except LdotError as error:
            unreachable |= part == "store" and type(error) is StoreError
            yield Finding(part, False, str(error))


def _device(settings: Settings) -> str:
    import torch

    from ldot_milvus.models.loading import choose_device

    device = choose_device(settings.device)
    if device.type == "cuda":
        return f"{device}: {torch.cuda.get_device_name(device)}"
    return f"{device}, {torch.get_num_threads()} threads"


def _model(settings: Settings) -> str:
    files, reranker = _files(settings)
    stage = "no re-ranker" if reranker is None else f"re-ranker {reranker.name}"
    if settings.reranker is None and reranker is not None:
        stage = "with a re-ranker"
    return f"{settings.model}: {files.summary}, {stage}, fingerprint {files.fingerprint[:16]}"


def _files(settings: Settings) -> tuple[ModelFiles, RerankerFiles | None]:
    from ldot_milvus.models.registry import find_model, find_reranker

    files = find_model(settings.model)
    return files, find_reranker(settings.reranker, files)


def _store(settings: Settings) -> str:
    from ldot_milvus.search.retriever import check_model
    from ldot_milvus.stores import open_store
    from ldot_milvus.stores.base import MODEL_SOURCE
    from ldot_milvus.stores.upgrade import outdated

    with open_store(settings.store, settings.collection) as store:
        name = f"{settings.collection!r} in {store.address}"
        if store.dim is None:
            return f"no collection {name} yet: the first ingestion creates it"
        check_model(store, _files(settings)[0])
        rows = f"collection {name}: {store.count()} rows"
        if source := store.properties.get(MODEL_SOURCE):
            rows += f", filled with {source}"
        return f"{rows}; {old}" if (old := outdated(store)) else rows


def _indexes(settings: Settings) -> str:
    """Return the index types that the store can build; a server builds some to find out, which takes seconds."""
    from ldot_milvus.stores.registry import parse_address

    support = parse_address(settings.store).index_support(settings.store_token)
    return ", ".join(support.index_types) + (f"; {support.note}" if support.note else "")


def _region_store(settings: Settings) -> str:
    from ldot_milvus.stores import open_store
    from ldot_milvus.stores.region_place import open_region_store

    reranker = _files(settings)[1]
    if reranker is None:
        return "not needed: no re-ranker"
    with open_store(settings.store, settings.collection) as collection:
        store = open_region_store(collection, reranker, settings.region_store)
    store.has(["0" * 64])
    if store.folder is not None:
        try:
            with TemporaryFile(dir=_nearest_folder(store.folder)):
                pass  # outside the region store, so that neither a file nor a new folder remains
        except OSError as error:
            why = f"{store.address} cannot be written ({error.strerror})"
            raise StoreError(f"{why}: check the folder's owner, or set LDOT_REGION_STORE") from error
    return store.address


def _nearest_folder(path: str) -> str:
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path


def _broker(settings: Settings) -> str:
    from ldot_milvus.workers.broker import check_broker

    if settings.broker is None:
        return "not set (LDOT_BROKER): enqueue ingests in its own process"
    return f"{check_broker(settings.broker)} answers"
