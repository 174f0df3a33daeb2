"""What a re-ranker keeps of each photo, in one small safetensors file a photo, in any folder or bucket.

A file holds named arrays, in whatever precision the re-ranker chose; nothing here knows what they mean.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, TypeVar
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ldot_milvus.errors import StoreError
from ldot_milvus.stores.registry import absolute_path, parse_address

logger = logging.getLogger(__name__)

_THREADS = 16  # requests under way at a time to a remote store
_NAME_MAX = 200  # bytes of a file name; most file systems take 255, and the suffix needs some
_T = TypeVar("_T")

Arrays = Mapping[str, NDArray[Any]]
"""What is kept of one photo: named arrays."""


def region_store_address(store: str, address: str | None = None) -> str:
    """Where the region data of a vector store lies; a folder's path is absolute.

    Args:
        store: address of the vector store.
        address: of the regions, a folder or any fsspec address; None takes the setting ``LDOT_REGION_STORE``, else the
            place beside the vector store that :mod:`~ldot_milvus.stores.registry` names.

    Raises:
        UsageError: ``store`` is an address of no known form, and nothing else says where the regions are.
    """
    if address is None:
        from ldot_milvus.settings import Settings

        address = Settings().region_store
    return absolute_region_address(parse_address(store).region_store if address is None else address)


def absolute_region_address(address: str) -> str:
    """A folder's path expanded and absolute; an fsspec address (``s3://...``, ``a::b``) as it is."""
    return address if _is_fsspec(address) else absolute_path(address)


def open_region_store(
    store: str, fingerprint: str, address: str | None = None, former: Iterable[str] = ()
) -> RegionStore:
    """The region store that goes with a vector store; nothing is created or read yet.

    Args:
        store, address: see :func:`region_store_address`.
        fingerprint, former: see :class:`RegionStore`.

    Raises:
        StoreError: an fsspec address that cannot be opened.
    """
    return RegionStore(region_store_address(store, address), fingerprint, former)


def region_stores(source: str, target: str) -> list[tuple[RegionStore, RegionStore]]:
    """For every re-ranker that has kept something at one address, its region store there and at another one.

    Raises:
        StoreError: the first address cannot be listed.
    """
    names = RegionStore(source, "").fingerprints()
    return [(RegionStore(source, name), RegionStore(target, name)) for name in names]


class RegionStore:
    """Named arrays by photo id, apart for each re-ranker: what another one keeps is of no use to it.

    Every method raises :class:`~ldot_milvus.errors.StoreError`, saying what to do, when the store cannot be used.
    Several processes may read and write at once; the last writer of an id wins, and readers see whole files.
    """

    def __init__(self, address: str, fingerprint: str, former: Iterable[str] = ()) -> None:
        """Nothing is created or read yet.

        Args:
            address: a folder, or any fsspec address: ``memory://regions``, ``s3://bucket/regions``.
            fingerprint: of the re-ranker that keeps them; its first 16 characters name the folder.
            former: fingerprints under which an earlier version stored the same; read where the folder lacks a photo.
        """
        self.address = root = absolute_region_address(address)
        self._fs: Any = None  # None: a local folder, read and written without fsspec
        if _is_fsspec(address):
            self._fs, root = _connect(address)
        names = dict.fromkeys(_safe(name[:16]) for name in (fingerprint, *former))
        self._root, *self._former = (f"{root.rstrip('/')}/{name}" for name in names)

    @property
    def folder(self) -> str | None:
        """The local folder that the regions are in; None for an object store or a network."""
        return None if self._fs is not None else self._root

    def put(self, items: Mapping[str, Arrays]) -> None:
        """Write or replace the arrays of these ids; a local file is replaced at once or not at all."""
        files = [(self._path(id), _pack(arrays)) for id, arrays in items.items()]
        with self._explained("written"):
            self._map(lambda file: self._write(*file), files)

    def get(self, ids: Sequence[str]) -> dict[str, Arrays]:
        """The arrays of these ids, as they were put; an id that is not there, or whose file is damaged, is left out.

        A crash of the machine can leave an empty or torn file: it is logged, and :meth:`put` mends it.
        """
        wanted = list(dict.fromkeys(ids))
        found: dict[str, Arrays] = {}
        for root in (self._root, *self._former):
            paths = {self._path(id, root): id for id in wanted if id not in found}
            with self._explained("read"):
                files = self._read(list(paths))
            for path, data in files.items():
                try:
                    found[paths[path]] = load(data)
                except (SafetensorError, KeyError, ValueError) as error:
                    logger.warning("%s is damaged (%s): ingest the photo again", path, error)
        return {id: found[id] for id in wanted if id in found}

    def has(self, ids: Sequence[str]) -> set[str]:
        """Those of the ids whose arrays are there; an empty file, as a crash leaves it, does not count."""
        there: set[str] = set()
        for root in (self._root, *self._former):
            missing = [id for id in dict.fromkeys(ids) if id not in there]
            with self._explained("read"):
                sizes = self._map(self._size, [self._path(id, root) for id in missing])
            there.update(id for id, size in zip(missing, sizes, strict=True) if size)
        return there

    def delete(self, ids: Sequence[str]) -> None:
        """Forget these ids; those that are not there are no error."""
        paths = [self._path(id, root) for root in (self._root, *self._former) for id in dict.fromkeys(ids)]
        with self._explained("written"):
            self._map(self._remove, paths)

    def fingerprints(self) -> list[str]:
        """The first 16 characters of every re-ranker's fingerprint under which something is kept at this address."""
        root = self._root.rpartition("/")[0]
        with self._explained("read"):
            try:
                if self._fs is None:
                    return sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
                entries = self._fs.ls(root, detail=True)
            except FileNotFoundError:
                return []
        folders = [entry["name"].rstrip("/") for entry in entries if entry["type"] == "directory"]
        return sorted(folder.rpartition("/")[2] for folder in folders)

    def _path(self, id: str, root: str | None = None) -> str:
        name = _safe(id)
        if len(name) > _NAME_MAX:  # many letters of three or four bytes; "=" is in no quoted id
            name = "=" + hashlib.sha256(id.encode("utf-8", "surrogatepass")).hexdigest()
        return f"{root or self._root}/{_safe(id[:2])}/{name}.safetensors"

    def _map(self, function: Callable[[Any], _T], values: Sequence[Any]) -> list[_T]:
        """One after the other in a folder, where threads only cost; side by side over a network."""
        if self._fs is None or len(values) < 2:
            return [function(value) for value in values]
        with ThreadPoolExecutor(min(_THREADS, len(values))) as threads:
            return list(threads.map(function, values))

    def _read(self, paths: Sequence[str]) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        if self._fs is None:
            for path in paths:
                with suppress(FileNotFoundError), open(path, "rb") as file:
                    found[path] = file.read()
            return found
        # Not on_error="omit": a network that is down must not look like regions that were never stored.
        answers = self._fs.cat(list(paths), on_error="return") if paths else {}
        for path, answer in answers.items():
            if isinstance(answer, bytes):
                found[path] = answer
            elif not isinstance(answer, FileNotFoundError):
                raise answer
        return found

    def _write(self, path: str, data: bytes) -> None:
        if self._fs is not None:
            try:
                self._fs.pipe_file(path, data)
            except FileNotFoundError:  # a file system with real folders
                self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
                self._fs.pipe_file(path, data)
            return
        folder = os.path.dirname(path)
        temporary = os.path.join(folder, f".{secrets.token_hex(8)}.tmp")
        try:
            try:
                file = open(temporary, "xb")  # noqa: SIM115  (not tempfile: its files only their owner may read)
            except FileNotFoundError:
                os.makedirs(folder, exist_ok=True)
                file = open(temporary, "xb")  # noqa: SIM115
            with file:
                file.write(data)
            # Not fsynced: that would cost more than computing the regions, which is what a lost file leads to.
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.remove(temporary)
            raise

    def _size(self, path: str) -> int:
        with suppress(FileNotFoundError):
            return os.stat(path).st_size if self._fs is None else int(self._fs.info(path)["size"] or 0)
        return 0

    def _remove(self, path: str) -> None:
        with suppress(FileNotFoundError):
            if self._fs is None:
                os.remove(path)
            else:
                self._fs.rm_file(path)

    @contextmanager
    def _explained(self, done: str) -> Iterator[None]:
        """Whatever a file system or a cloud's client raises in here leaves as StoreError."""
        try:
            yield
        except StoreError:
            raise
        except Exception as error:
            raise StoreError(f"region store {self.address} cannot be {done}: {_remedy(error)}") from error


def _is_fsspec(address: str) -> bool:
    return "://" in address or "::" in address


def _connect(address: str) -> tuple[Any, str]:
    import fsspec

    try:
        fs, root = fsspec.core.url_to_fs(address)
    except ImportError as error:  # fsspec names the package: "Install s3fs to access S3"
        raise StoreError(f"region store {address}: {error} (pip install)") from error
    except ValueError as error:
        raise StoreError(
            f"region store {address}: {error}. Set LDOT_REGION_STORE to a folder or to an address such as s3://..."
        ) from error
    except Exception as error:
        raise StoreError(f"region store {address} cannot be opened: {_remedy(error)}") from error
    is_local = "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)
    return (None if is_local else fs), str(root)


def _safe(text: str) -> str:
    """One component of a path, whatever is in an id: no slash, no dots that mean a folder, no pattern character."""
    return quote(text, safe="", errors="surrogatepass").replace(".", "%2E")


def _pack(arrays: Arrays) -> bytes:
    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()})


def _remedy(error: Exception) -> str:
    code = error.errno if isinstance(error, OSError) else None
    if code in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full: free some space, or set LDOT_REGION_STORE to another place"
    if code == errno.EROFS or isinstance(error, PermissionError):
        return "no permission: check the owner of the folder or the credentials of the bucket"
    if isinstance(error, (NotADirectoryError, FileExistsError)):
        return "there is a file in the place of a folder: set LDOT_REGION_STORE to a folder"
    return f"{error or type(error).__name__}: check that LDOT_REGION_STORE names a place that is there and reachable"
