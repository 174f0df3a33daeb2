"""Target of a chunk: collection, models and rules as stored in messages and journals, and the same opened."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ldot_milvus.errors import UsageError
from ldot_milvus.forks import Lock
from ldot_milvus.redaction import split_user

if TYPE_CHECKING:
    from types import TracebackType

    from ldot_milvus.ingest.ingestor import Ingestor
    from ldot_milvus.settings import Settings
    from ldot_milvus.stores import VectorStore


@dataclass(frozen=True)
class Target:
    """A collection, the models that fill it, and what is left out of it.

    Attributes:
        store: absolute address of the vector store, valid in every working directory.
        collection: name of the collection.
        model: packaged name, folder or hub id of the embedder.
        region_store: address of the region data; None for the default beside the store.
        reranker: None for the model's own, "none" for none, else a folder or hub id.
        skip_near_duplicates: whether new photos are left out that show the same as a row. Versions that do not know it
            add them.
    """

    store: str
    collection: str
    model: str
    region_store: str | None = None
    reranker: str | None = None
    skip_near_duplicates: bool = False

    @classmethod
    def of(cls, settings: Settings) -> Target:
        """Build the target that the settings name."""
        from ldot_milvus.models.registry import absolute_name
        from ldot_milvus.stores.regions import absolute_region_address
        from ldot_milvus.stores.registry import parse_address

        regions, reranker = settings.region_store, settings.reranker
        return cls(
            parse_address(settings.store).address, settings.collection, absolute_name(settings.model),
            None if regions is None else absolute_region_address(regions),
            None if reranker is None else absolute_name(reranker),
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values for :meth:`from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Target:
        """Build a target from the values that :meth:`to_dict` returned in this version or another.

        Unknown names are ignored and missing optional ones have their defaults, because the broker and the journal may
        contain chunks, runs and failures of other versions.
        """
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})


def target_of_worker(target: Target, settings: Settings) -> Target:
    """Return a chunk's target with the addresses by which this worker reaches its stores.

    A worker without a store of its own in the settings uses the chunk's. A worker with one accepts the chunks for this
    store, by its own address or by an alias, and no others. The same applies to the region store, except that a chunk
    that names none gets the worker's.

    Args:
        target: the target that the chunk names.
        settings: the worker's settings; only values that were given explicitly count.

    Raises:
        UsageError: the chunk is for another store or region store than the worker's.
    """
    own, given = Target.of(settings), settings.model_fields_set
    if "store" in given:
        _check_address("store", target.store, own.store, settings.store_alias)
        target = replace(target, store=own.store)
    if own.region_store is not None and "region_store" in given:
        if target.region_store is not None:
            _check_address("region_store", target.region_store, own.region_store, settings.region_store_alias)
        target = replace(target, region_store=own.region_store)
    return target


def _check_address(setting: str, named: str, own: str, alias: str | None) -> None:
    """Check that the address that a chunk names is the worker's own or one of its aliases."""
    aliases = [address.strip() for address in (alias or "").split(",") if address.strip()]
    if _canonical(named) not in map(_canonical, [own, *aliases]):
        variable = f"LDOT_{setting.upper()}"
        raise UsageError(
            f"refused by the worker on {platform.node()}: the chunk is for the {setting.replace('_', ' ')} {named}, "
            f"and the worker's {variable} is {own}; use the same {variable} for both, give each deployment its own "
            f"LDOT_QUEUE, or, if both addresses are one place, set {variable}_ALIAS={named} for the worker"
        )


def _canonical(address: str) -> str:
    """Return a form in which different spellings of an address are equal."""
    if "://" in address:
        parts = urlsplit(split_user(address)[0])  # chunks of earlier versions name stores with their users
        return parts._replace(netloc=parts.netloc.lower()).geturl().rstrip("/")
    scheme, path = "", os.path.expanduser(address)
    if not path.startswith(("/", "~")) and ":" in path:
        scheme, _, path = address.partition(":")
    return f"{scheme}:{os.path.realpath(os.path.expanduser(path))}"


class OpenTarget:
    """The open store of a target, and its ingestor.

    Args:
        target: collection and models.
        settings: device and dtype of the models.

    Attributes:
        target: collection and models.
        store: the open store.
    """

    def __init__(self, target: Target, settings: Settings) -> None:
        from ldot_milvus.stores import open_store

        self.target = target
        self.store: VectorStore = open_store(target.store, target.collection)
        self._settings = settings
        self._ingestor: Ingestor | None = None
        self._making = Lock()

    @property
    def ingestor(self) -> Ingestor:
        """The ingestor of this target, created on first use.

        Raises:
            UsageError: the model or the re-ranker is unknown.
            ModelError: the files of a model are missing or incomplete.
            ModelMismatch: the collection contains vectors of another model.
        """
        with self._making:  # the threads of a worker share one model
            if self._ingestor is None:
                from ldot_milvus.ingest.ingestor import Ingestor

                self._ingestor = Ingestor(
                    self.store, self.target.model, reranker=self.target.reranker,
                    region_store=self.target.region_store, device=self._settings.device, dtype=self._settings.dtype,
                )  # fmt: skip
            return self._ingestor

    def __enter__(self) -> OpenTarget:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.store.close()
