"""What a store's address means: which store it opens, its absolute form, and what lies beside it.

No other module looks into an address. A new store is a class here (:class:`StoreAddress`, or :class:`FolderAddress` for
a store that lives in a folder) and one line of :data:`_REGISTERED`, or a call of :func:`register_store`:
``docs/extend/store.md``.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib import import_module
from typing import ClassVar

from typing_extensions import override

from ldot_milvus.errors import UsageError
from ldot_milvus.stores.base import VectorStore
from ldot_milvus.stores.index_spec import BUILD, IndexSpec

DEFAULT_FOLDER = "./ldot-data"
"""Where files go that belong to no folder of a store: region data and journal of a server, on this machine."""

# Looked at from the top. Named, not imported: importing this module loads no store's library.
_REGISTERED = [
    "ldot_milvus.stores.local.address:FaissAddress",
    "ldot_milvus.stores.milvus.address:LiteAddress",
    "ldot_milvus.stores.milvus.address:ServerAddress",
]


@dataclass(frozen=True)
class IndexSupport:
    """The index types that a store can build.

    Attributes:
        index_types: names of ``index_spec.BUILD``.
        note: why others are missing, for people; empty where there is nothing to say.
    """

    index_types: tuple[str, ...]
    note: str = ""


class StoreAddress(ABC):
    """One address of one form, such as ``http://HOST:19530``. Making it opens nothing.

    Attributes:
        form: the form as messages show it, with what it is: ``http://HOST:19530 (a Milvus server)``.
        index_types: the index types that :func:`~ldot_milvus.stores.open_store` accepts for such a store.
        address: the address, expanded and absolute: it means the same in every working folder.
    """

    form: ClassVar[str]
    index_types: ClassVar[tuple[str, ...]] = tuple(BUILD)

    def __init__(self, address: str) -> None:
        self.address = address

    @classmethod
    @abstractmethod
    def claims(cls, address: str) -> bool:
        """Whether the address is of this form."""

    @abstractmethod
    def open(
        self, collection: str, index: IndexSpec, *, token: str | None = None, index_fallback: bool = True
    ) -> VectorStore:
        """One collection of the store; nothing is created until something is written.

        Args:
            collection: letters, digits and underscores.
            index: of one of ``index_types``, or ``AUTO``.
            token: ``user:password`` or an API key, where the store asks for one.
            index_fallback: take the nearest index type where the store cannot build this one, with a warning; else
                refuse with :class:`~ldot_milvus.errors.StoreError`.

        Raises:
            UsageError: a bad collection name.
        """

    @property
    def region_store(self) -> str:
        """Address of the region data that goes with the store, unless ``LDOT_REGION_STORE`` names another."""
        return os.path.join(DEFAULT_FOLDER, "regions")

    @property
    def journal(self) -> str | None:
        """Path of the ingestion journal beside the store; None for a store on the network, which has no folder."""
        return None

    def index_support(self, token: str | None = None) -> IndexSupport:
        """The index types that the store can really build; a server is asked, which takes some seconds.

        Raises:
            StoreError: the store does not answer.
        """
        return IndexSupport(self.index_types)


class FolderAddress(StoreAddress):
    """``SCHEME:PATH``, a store in a folder of its own, with region data and journal in that folder.

    Attributes:
        scheme: the word before the colon.
        folder: PATH, expanded and absolute.
    """

    scheme: ClassVar[str]

    def __init__(self, address: str) -> None:
        self.folder = absolute_path(address.removeprefix(f"{self.scheme}:"))
        super().__init__(f"{self.scheme}:{self.folder}")

    @classmethod
    @override
    def claims(cls, address: str) -> bool:
        return address.startswith(f"{cls.scheme}:") and address != f"{cls.scheme}:"

    @property
    @override
    def region_store(self) -> str:
        return os.path.join(self.folder, "regions")

    @property
    @override
    def journal(self) -> str | None:
        return os.path.join(self.folder, "ingestion.sqlite")


def absolute_path(path: str | os.PathLike[str]) -> str:
    """A path with ``~`` expanded that means the same after ``os.chdir`` and in a worker's folder."""
    return os.path.abspath(os.path.expanduser(os.fspath(path)))


def parse_address(address: str) -> StoreAddress:
    """The meaning of a store's address.

    Args:
        address: of one of the registered forms: ``faiss:PATH``, ``PATH.db``, ``http(s)://HOST:PORT``.

    Raises:
        UsageError: an address of no registered form; the message lists the forms.
    """
    forms = [_load(name) for name in _REGISTERED]
    for form in forms:
        if isinstance(address, str) and form.claims(address):
            return form(address)
    *most, last = (form.form for form in forms)
    raise UsageError(f"cannot open {address!r}: a store's address is {', '.join(most)} or {last}")


def register_store(name: str) -> None:
    """Make another form of address known to this process; it is looked at before those that are known already.

    Args:
        name: ``MODULE:CLASS`` of a :class:`StoreAddress`, imported when the first address is looked at. A form of the
            same name is not registered twice.
    """
    if name not in _REGISTERED:
        _REGISTERED.insert(0, name)


def _load(name: str) -> type[StoreAddress]:
    module, _, cls = name.partition(":")
    loaded: type[StoreAddress] = getattr(import_module(module), cls)
    return loaded
