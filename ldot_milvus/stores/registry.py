"""Registry of store addresses: the store that an address opens, its absolute form, and the files beside it.

No other module interprets addresses. A new store needs a subclass of :class:`StoreAddress` (of :class:`FolderAddress`
for a store in a folder) and a line in :data:`_REGISTERED`, or a call of :func:`register_store`; see
``docs/extend/store.md``.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import ClassVar

from typing_extensions import override

from ldot_milvus.errors import UsageError
from ldot_milvus.redaction import split_user
from ldot_milvus.settings import Settings
from ldot_milvus.stores.base import VectorStore
from ldot_milvus.stores.index_spec import BUILD, IndexSpec

DEFAULT_FOLDER = "./ldot-data"
"""Local folder of the region data and the journal of stores that have no folder of their own, such as a server."""

# Tried in this order. They are names, so that importing this module loads no store's library.
_REGISTERED = [
    "ldot_milvus.stores.local.address:FaissAddress",
    "ldot_milvus.stores.milvus.address:LiteAddress",
    "ldot_milvus.stores.milvus.address:ServerAddress",
]


@dataclass(frozen=True)
class IndexSupport:
    """Index types that a store can build.

    Attributes:
        index_types: names from ``index_spec.BUILD``.
        note: why other types are missing, for people; may be empty.
    """

    index_types: tuple[str, ...]
    note: str = ""


class StoreAddress(ABC):
    """Address of one form, such as ``http://HOST:19530``. The constructor opens nothing.

    Attributes:
        form: the form and its meaning for messages, such as ``http://HOST:19530 (a Milvus server)``.
        index_types: index types that :func:`~ldot_milvus.stores.open_store` accepts for such a store.
        provider: name of the kind of store in traces of other frameworks, such as ``Milvus``.
        address: absolute address, which means the same in every working directory. It goes into messages, logs, chunks
            and journals, and contains no password.
        user: ``user:password`` or the API key that the given address contained; None without one.
    """

    form: ClassVar[str]
    index_types: ClassVar[tuple[str, ...]] = tuple(BUILD)
    provider: ClassVar[str] = ""
    user: str | None = None

    def __init__(self, address: str) -> None:
        self.address = address

    @classmethod
    @abstractmethod
    def claims(cls, address: str) -> bool:
        """Return whether the address has this form."""

    @abstractmethod
    def open(
        self, collection: str, index: IndexSpec, *, token: str | None = None, index_fallback: bool = True
    ) -> VectorStore:
        """Open one collection of the store; nothing is created before the first write.

        Args:
            collection: letters, digits and underscores.
            index: an index of one of ``index_types``, or ``AUTO``.
            token: ``user:password`` or an API key, if the store requires one.
            index_fallback: if the store cannot build the index, use the nearest type and log a warning; else raise
                :class:`~ldot_milvus.errors.StoreError`.

        Raises:
            UsageError: a bad collection name.
        """

    @property
    def region_store(self) -> str:
        """Default address of the region data, used unless ``LDOT_REGION_STORE`` is set or a collection records a place.

        If the store has a journal beside it, the region data too is expected beside it, and no collection records it.
        """
        return os.path.join(DEFAULT_FOLDER, "regions")

    @property
    def journal(self) -> str | None:
        """Path of the ingestion journal beside the store; None for a store without a folder, such as a server."""
        return None

    def index_support(self, token: str | None = None) -> IndexSupport:
        """Return the index types that the store can build; a server builds some to find out, which takes seconds.

        Args:
            token: ``user:password`` or an API key, if the store requires one.

        Raises:
            StoreError: the store does not answer.
        """
        return IndexSupport(self.index_types)


class FolderAddress(StoreAddress):
    """Address of the form ``SCHEME:PATH``: a store in a folder, which contains region data and journal too.

    Attributes:
        scheme: the word before the colon.
        folder: absolute path of the folder.
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
    """Return the absolute path, with ``~`` and ``~user`` expanded, which means the same in every working directory.

    Raises:
        UsageError: the path is empty, this machine has no such user, or the working directory no longer exists.
    """
    text = os.fspath(path)
    if not text:
        raise UsageError("the path is empty: give the path of a file or a folder")
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        user = expanded.partition("/")[0]
        raise UsageError(f"{text}: this machine has no user {user[1:]!r}: write ./{user} for a folder of this name")
    try:
        return os.path.abspath(expanded)
    except FileNotFoundError as error:
        raise UsageError(f"{text}: the working folder no longer exists: give an absolute path") from error


def parse_address(address: str) -> StoreAddress:
    """Parse the address of a store.

    Args:
        address: an address of a registered form: ``faiss:PATH``, ``PATH.db``, ``http(s)://HOST:PORT``.

    Returns:
        The address of the first registered form that claims it.

    Raises:
        UsageError: no registered form claims the address; the message lists the forms.
    """
    forms = [_load(name) for name in _REGISTERED]
    for form in forms:
        if isinstance(address, str) and form.claims(address):
            return form(address)
    *most, last = (form.form for form in forms)
    raise UsageError(
        f"cannot open {address!r}: give the address of a store as {', '.join(most)} or {last} (LDOT_STORE, --store)"
    )


def token_for(address: StoreAddress, settings: Settings) -> str | None:
    """Return the ``user:password`` or the API key with which a store is opened; None without one.

    It is the one in the address, else ``LDOT_STORE_TOKEN``, else the one in ``LDOT_STORE`` if that is the same store.
    Chunks and journals name stores without it, so every worker needs one of these settings.
    """
    if address.user is not None or settings.token is not None:
        return address.user or settings.token
    own = settings.store
    if "@" not in own or split_user(own)[0].rstrip("/") != address.address:
        return None
    return parse_address(own).user


def register_store(name: str) -> None:
    """Register another form of address in this process; it is tried before the forms registered so far.

    Args:
        name: ``MODULE:CLASS`` of a :class:`StoreAddress`, imported when the first address is parsed. Registering a name
            again has no effect.
    """
    if name not in _REGISTERED:
        _REGISTERED.insert(0, name)


def _load(name: str) -> type[StoreAddress]:
    loaded: type[StoreAddress] = resolve_name(name)
    return loaded
