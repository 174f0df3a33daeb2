"""Where a chunk's items go: the target, as messages and journals keep it, and the same opened."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType

    from ldot_milvus.ingest.ingestor import Ingestor
    from ldot_milvus.settings import Settings
    from ldot_milvus.stores import VectorStore


@dataclass(frozen=True)
class Target:
    """A collection and what it is filled by.

    Attributes:
        store: its address, the same from a worker's folder.
        model: packaged name, folder or hub id.
        region_store: address of the region data; None for the place beside the store.
        reranker: None for the model's own, "none" for none, else a folder or hub id.
    """

    store: str
    collection: str
    model: str
    region_store: str | None = None
    reranker: str | None = None

    @classmethod
    def of(cls, settings: Settings) -> Target:
        """What the settings name."""
        from ldot_milvus.stores.regions import absolute_region_address
        from ldot_milvus.stores.registry import parse_address

        regions = settings.region_store
        return cls(
            parse_address(settings.store).address, settings.collection, settings.model,
            None if regions is None else absolute_region_address(regions), settings.reranker,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; :meth:`from_dict` is the way back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Target:
        """What :meth:`to_dict` gave, in this version or another: what is unknown is left out, what is missing is None.

        Other versions' chunks may be in the broker, and their runs and failures are in the journal.
        """
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})


class OpenTarget:
    """A target's store, open, and its ingestor, made when it is first asked for. It does not survive a fork."""

    def __init__(self, target: Target, settings: Settings) -> None:
        from ldot_milvus.stores import open_store

        self.target = target
        self.store: VectorStore = open_store(target.store, target.collection)
        self._settings = settings
        self._ingestor: Ingestor | None = None
        self._making = threading.Lock()

    @property
    def ingestor(self) -> Ingestor:
        """The one ingestor of this target.

        Raises:
            LdotError: the model is unknown, or the collection is another model's.
        """
        with self._making:  # a worker of threads shares one model
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
