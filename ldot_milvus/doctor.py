"""``ldot doctor``: whether everything that the settings name is there and works, and what to do where it is not."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from tempfile import TemporaryFile

from ldot_milvus.errors import LdotError, StoreError
from ldot_milvus.settings import Settings


@dataclass(frozen=True)
class Finding:
    """What was found out about one part; ``ok`` is False where something is to be done."""

    part: str
    ok: bool
    text: str


def examine(settings: Settings) -> Iterator[Finding]:
    """Look at each part in turn; a part that is broken does not hide the others."""
    checks: dict[str, Callable[[Settings], str]] = {
        "device": _device,
        "model": _model,
        "store": _store,
        "indexes": _indexes,
        "region store": _region_store,
        "broker": _broker,
    }
    silent = False
    for part, check in checks.items():
        if silent and part == "indexes":
            yield Finding(part, False, "not asked: the store does not answer")
            continue
        try:
            yield Finding(part, True, check(settings))
        except LdotError as error:
            silent |= part == "store" and type(error) is StoreError
            yield Finding(part, False, str(error))


def _device(settings: Settings) -> str:
    import torch

    from ldot_milvus.models.lightningdot.bundle import choose_device

    device = choose_device(settings.device)
    if device.type == "cuda":
        return f"{device}: {torch.cuda.get_device_name(device)}"
    return f"{device}, {torch.get_num_threads()} threads"


def _model(settings: Settings) -> str:
    from ldot_milvus.models.lightningdot.bundle import find_model

    files = find_model(settings.model)
    reranker = "no re-ranker" if files.reranker_config is None else "with a re-ranker"
    extractor = files.config.get("region_extractor")
    regions = "no region extractor" if extractor is None else f"{extractor.get('kind')} regions"
    if extractor is not None and not files.extractor_files:
        regions += f" by {files.extractor_weights}, fetched when a photo needs it"
    return f"{settings.model}: vectors of {files.dim}, {regions}, {reranker}, fingerprint {files.fingerprint[:16]}"


def _store(settings: Settings) -> str:
    from ldot_milvus.errors import ModelMismatch
    from ldot_milvus.models.lightningdot.bundle import find_model
    from ldot_milvus.stores import open_store

    with open_store(settings.store, settings.collection) as store:
        model, name = store.model, f"{settings.collection!r} in {store.address}"
        if store.dim is None:
            return f"no collection {name} yet: the first ingestion makes it"
        rows = store.count()
    if model not in (None, find_model(settings.model).fingerprint):
        raise ModelMismatch(
            f"collection {name} ({rows} rows) was filled with another model than {settings.model!r}: set LDOT_MODEL to "
            "that model, or LDOT_COLLECTION to another name"
        )
    return f"collection {name}: {rows} rows"


def _indexes(settings: Settings) -> str:
    """The index types that the store can build; a server is asked, which takes some seconds."""
    from ldot_milvus.stores.registry import parse_address

    support = parse_address(settings.store).index_support(settings.store_token)
    return ", ".join(support.index_types) + (f"; {support.note}" if support.note else "")


def _region_store(settings: Settings) -> str:
    from ldot_milvus.models.lightningdot.bundle import find_model
    from ldot_milvus.stores.regions import open_region_store

    store = open_region_store(settings.store, find_model(settings.model).fingerprint, settings.region_store)
    store.has(["0" * 64])
    if store.folder is not None:
        try:
            with TemporaryFile(dir=_nearest_folder(store.folder)):
                pass  # not in the region store itself: nothing is to be left behind, a new folder neither
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
        return "none set (LDOT_BROKER): enqueue ingests in its own process"
    return f"{check_broker(settings.broker)} answers"
