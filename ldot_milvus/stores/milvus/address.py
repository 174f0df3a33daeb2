"""Addresses of Milvus servers and of Milvus Lite."""

from __future__ import annotations

from contextlib import closing
from urllib.parse import urlsplit

from typing_extensions import override

from ldot_milvus.errors import UsageError
from ldot_milvus.redaction import split_user
from ldot_milvus.stores.base import VectorStore
from ldot_milvus.stores.index_spec import IndexSpec
from ldot_milvus.stores.registry import IndexSupport, StoreAddress, absolute_path


class ServerAddress(StoreAddress):
    """Address of a Milvus server: ``http://HOST:PORT`` or ``https://HOST:PORT``, with ``USER:PASSWORD@`` if need be.

    Raises:
        UsageError: it has no host, another port than a number, or parts that such an address does not have.
    """

    form = "http://HOST:19530 (a Milvus server)"
    provider = "Milvus"

    def __init__(self, address: str) -> None:
        plain, self.user = split_user(address)
        try:
            parts = urlsplit(plain)
            bad = not parts.hostname or parts.query or parts.fragment or "@" in plain or not plain.isprintable()
            _ = parts.port  # raises ValueError
        except ValueError:
            bad = True
        if bad:  # the address is not repeated: it is not certain what of it is the password
            raise UsageError(
                "the address of the Milvus server (LDOT_STORE, --store) is not valid: give http://HOST:19530, the "
                "user in LDOT_STORE_TOKEN, or http://USER:PASSWORD@HOST:19530 with characters such as /, # and @ in "
                "the password written as %2F, %23 and %40"
            )
        super().__init__(plain.rstrip("/"))

    @classmethod
    @override
    def claims(cls, address: str) -> bool:
        return address.startswith(("http://", "https://"))

    @override
    def open(
        self, collection: str, index: IndexSpec, *, token: str | None = None, index_fallback: bool = True
    ) -> VectorStore:
        """The store connects at its first call."""
        from ldot_milvus.stores.milvus.store import MilvusStore

        return MilvusStore(self.address, collection, token=token, index=index, fallback=index_fallback)

    @override
    def index_support(self, token: str | None = None) -> IndexSupport:
        from ldot_milvus.stores.milvus.probing import index_support
        from ldot_milvus.stores.milvus.server import Server

        with closing(Server(self.address, token)) as server:
            return index_support(server)


class LiteAddress(ServerAddress):
    """Address of a Milvus Lite file: ``PATH.db``, with region data and journal beside it."""

    form = "PATH.db (Milvus Lite)"

    def __init__(self, address: str) -> None:
        StoreAddress.__init__(self, absolute_path(address))

    @classmethod
    @override
    def claims(cls, address: str) -> bool:
        return address.endswith(".db") and "://" not in address

    @property
    @override
    def region_store(self) -> str:
        return f"{self.address}-regions"

    @property
    @override
    def journal(self) -> str | None:
        return f"{self.address}-ingestion.sqlite"
