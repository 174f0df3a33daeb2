"""``ldot doctor``: checks everything that the settings name, and says what to do about each problem."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

from ldot_milvus.errors import LdotError, StoreError, UsageError
from ldot_milvus.settings import Settings, WrongSettings, variable_of
from ldot_milvus.variables import unknown_variables
from ldot_milvus.workers.formatting import counted

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


@dataclass(frozen=True)
class Setting:
    """A setting, for people.

    Attributes:
        variable: the environment variable.
        value: its value without secrets; empty if it is not set.
        origin: "default", "environment", the path of a file of variables, "option" or "argument".
    """

    variable: str
    value: str
    origin: str


_DEPENDS = {
    "device": {"device"},
    "model": {"model", "reranker"},
    "store": {"store", "store_token", "collection", "model", "reranker"},
    "indexes": {"store", "store_token"},
    "recall": {"store", "store_token", "collection"},
    "region store": {"store", "store_token", "collection", "model", "reranker", "region_store", "region_dtype"},
    "broker": {"broker", "queue"},
    "journal": {"store", "broker", "queue", "result_backend"},
}
"""The parts that are checked, and the settings of each."""


def diagnose(options: Mapping[str, str], *, recall: bool = False) -> tuple[list[Setting], Iterator[Finding]]:
    """Check the settings of the environment, and everything that they name.

    Args:
        options: settings that override those of the environment.
        recall: measure the recall of the collection's index, see :func:`examine`.

    Returns:
        All settings (none if the file of variables cannot be read), and the result of each check as soon as it is
        known. A part with a wrong setting is not checked; wrong settings are shown with their defaults.
    """
    try:
        settings, problems = Settings(_given_as="option", **options), {}
    except WrongSettings as error:
        problems = error.problems
        defaults = {name: Settings.model_fields[name].default for name in problems}
        settings = Settings(_given_as="option", **{**options, **defaults})
    except UsageError as error:
        return [], iter([Finding("settings", False, str(error))])
    shown = [
        Setting(variable_of(name), settings.shown(name), "default" if name in problems else settings.origin(name))
        for name in Settings.model_fields
    ]
    return shown, examine(settings, problems, recall=recall)


def examine(
    settings: Settings, problems: Mapping[str, str] = MappingProxyType({}), *, recall: bool = False
) -> Iterator[Finding]:
    """Check the settings, device, model, store, indexes, recall, region store, broker and journal.

    Stores, broker and journal are also written to, and nothing of it remains, except for a recall that is measured. A
    failed check does not stop the others.

    Args:
        settings: what to check.
        problems: what is wrong with settings, by their names; parts that depend on them are not checked.
        recall: measure the recall of an approximate index and keep it in the collection; else the kept one is reported.

    Yields:
        The result of each check, as soon as it is known.
    """
    yield from _settings(settings, problems)
    checks: dict[str, Callable[[Settings], str]] = {
        "device": _device,
        "model": _model,
        "store": _store,
        "indexes": _indexes,
        "recall": partial(_recall, measure_now=recall),
        "region store": _region_store,
        "broker": _broker,
        "journal": _journal,
    }
    unreachable = False
    for part, check in checks.items():
        if wrong := sorted(_DEPENDS[part] & problems.keys()):
            yield Finding(part, False, f"not checked: {', '.join(map(variable_of, wrong))}, see above")
            continue
        if unreachable and part in ("indexes", "recall", "region store"):
            yield Finding(part, False, "not checked: the store does not answer")
            continue
        try:
            yield Finding(part, True, check(settings))
        except WrongSettings as error:  # of the environment, which stores read
            yield Finding(part, False, f"not checked: {', '.join(map(variable_of, error.problems))}, see above")
        except LdotError as error:
            unreachable |= part == "store" and type(error) is StoreError
            yield Finding(part, False, str(error))


def _settings(settings: Settings, problems: Mapping[str, str]) -> Iterator[Finding]:
    for problem in (*problems.values(), *unknown_variables(Settings.model_fields).values()):
        yield Finding("settings", False, problem)
    if not problems:
        given = sum(settings.origin(name) != "default" for name in Settings.model_fields)
        yield Finding("settings", True, f"{given} of {len(Settings.model_fields)} are set, the others are defaults")


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
        store.check_writable()
        if store.dim is None:
            return f"no collection {name} yet: the first ingestion creates it"
        check_model(store, _files(settings)[0])
        rows = f"collection {name}: {store.count()} rows"
        if source := store.properties.get(MODEL_SOURCE):
            rows += f", filled with {source}"
        return f"{rows}; {old}" if (old := outdated(store)) else rows


def _indexes(settings: Settings) -> str:
    """Return the index types that the store can build; a server builds some to find out, which takes seconds."""
    from ldot_milvus.stores.registry import parse_address, token_for

    address = parse_address(settings.store)
    support = address.index_support(token_for(address, settings))
    return ", ".join(support.index_types) + (f"; {support.note}" if support.note else "")


def _recall(settings: Settings, *, measure_now: bool) -> str:
    """Return the recall of the collection's index, measured now or earlier."""
    from ldot_milvus.stores import open_store
    from ldot_milvus.stores.recall import LEAST_RECALL, LEAST_ROWS, Recall, measure

    with open_store(settings.store, settings.collection) as store:
        index = store.index
        if index is None:
            return "no index yet" if store.dim is None else "the store does not say which index it has"
        if index.index_type == "FLAT":
            return "FLAT compares with every row"
        rows = store.count()
        if rows < LEAST_ROWS:
            return f"{index.index_type} is not used for fewer than {LEAST_ROWS:,} rows"
        measured = measure(store) if measure_now else Recall.of(store)
        if measured is None:
            return f"{index.index_type} is not measured: ldot doctor --recall does it (it reads up to 200,000 rows)"
        if not measured.sufficient:
            raise StoreError(
                f"{measured}, below {LEAST_RECALL}: if rows were written in the last ten minutes, wait and run ldot "
                "doctor --recall; else run ldot reindex, with larger parameters in --index or with --index FLAT"
            )
        return f"{measured}; {rows:,} rows now, ldot doctor --recall" if rows > 2 * measured.rows else str(measured)


def _region_store(settings: Settings) -> str:
    from ldot_milvus.stores import open_store
    from ldot_milvus.stores.region_place import open_region_store

    reranker = _files(settings)[1]
    if reranker is None:
        return "not needed: no re-ranker"
    with open_store(settings.store, settings.collection) as collection:
        store = open_region_store(collection, reranker, settings.region_store)
    store.has(["0" * 64])
    store.check_writable()
    return store.address


def _broker(settings: Settings) -> str:
    from ldot_milvus.workers.broker import check_broker

    if settings.broker is None:
        return "not set (LDOT_BROKER): enqueue ingests in its own process"
    return f"{check_broker(settings.broker, settings.queue)} answers and accepts messages"


def _journal(settings: Settings) -> str:
    from ldot_milvus.ingest.journal import journal_address, open_journal

    journal = open_journal(journal_address(settings), settings.queue)
    journal.check_writable()
    return f"{journal.address}: {counted(len(journal.failures()), 'failure')} listed"
