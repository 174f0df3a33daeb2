"""Region stores: the region data of each photo in one safetensors file, in a folder or in object storage.

A file contains named arrays in the precision that the re-ranker chose. This module does not interpret them.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, Literal, TypeVar
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ldot_milvus.errors import StoreError
from ldot_milvus.filesystems import call, open_filesystem
from ldot_milvus.redaction import without_secrets
from ldot_milvus.stores.region_precision import from_int8, to_int8
from ldot_milvus.stores.registry import absolute_path
from ldot_milvus.stores.writing import check_folder, write_file

logger = logging.getLogger(__name__)

_THREADS = 16  # concurrent requests to a remote store
_NAME_MAX = 200  # bytes of a file name without its suffix; most file systems allow 255
_T = TypeVar("_T")

RegionDtype = Literal["float16", "int8"]
Arrays = Mapping[str, NDArray[Any]]
"""Region data of one photo: named arrays."""


def region_stores(source: str, target: str) -> list[tuple[RegionStore, RegionStore]]:
    """Return pairs of region stores at two addresses, one for each re-ranker with region data at the first.

    Args:
        source: address of existing region data.
        target: address to copy it to.

    Raises:
        StoreError: ``source`` cannot be listed.
    """
    from ldot_milvus.settings import Settings

    names, dtype = RegionStore(source, "").fingerprints(), Settings().region_dtype
    return [(RegionStore(source, name), RegionStore(target, name, dtype=dtype)) for name in names]


def absolute_region_address(address: str) -> str:
    """Return the absolute path of a folder, or an fsspec address (``s3://...``, ``a::b``) without its password.

    The password stays in this process, where :class:`RegionStore` uses it. What this returns goes into messages,
    chunks, journals and collections.

    Raises:
        UsageError: see :func:`~ldot_milvus.stores.registry.absolute_path`.
    """
    if address.startswith("file://"):
        address = address.removeprefix("file://")
    if not _is_fsspec(address):
        return absolute_path(address)
    public = without_secrets(address)
    if public != address:
        _given[public] = address
    return public


_given: dict[str, str] = {}  # addresses as they were given, by those without their passwords


class RegionStore:
    """Region data of one re-ranker: named arrays by photo id.

    All methods raise :class:`~ldot_milvus.errors.StoreError` if the store cannot be used. Several processes may read
    and write at once: the last writer of an id wins, and readers see complete files.

    Attributes:
        address: absolute address, without the re-ranker's folder.
    """

    def __init__(
        self,
        address: str,
        fingerprint: str,
        former: Callable[[], Sequence[str]] = tuple,
        *,
        dtype: RegionDtype = "float16",
    ) -> None:
        """Open the store; nothing is created or read yet.

        Args:
            address: a folder, or any fsspec address such as ``memory://regions`` or ``s3://bucket/regions``.
            fingerprint: fingerprint of the re-ranker; its first 16 characters name the folder.
            former: returns fingerprints under which earlier versions stored the same data; called if a photo is missing
                and there are folders of other fingerprints.
            dtype: "int8" writes half-precision matrices with a scale for each row (:mod:`.region_precision`); files of
                both forms are read.
        """
        self._int8 = dtype == "int8"
        self.address = root = absolute_region_address(address)
        self._opened: tuple[int, Any] = os.getpid(), None
        if _is_fsspec(self.address):
            fs, root = _connect(self.address)
            self._opened = os.getpid(), fs
        self._base = root.rstrip("/")
        self._root = self._folder(fingerprint)
        self._former = former
        self._former_roots: list[str] | None = None  # None: not needed so far

    @property
    def _fs(self) -> Any:
        """The file system in this process; None for a local folder, which is read and written without fsspec."""
        process, fs = self._opened
        if fs is not None and process != os.getpid():  # its event loop runs in a thread, which no fork copies
            fs, _ = _connect(self.address)
            self._opened = os.getpid(), fs
        return fs

    @property
    def folder(self) -> str | None:
        """The local folder of the region data; None for remote storage."""
        return None if self._fs is not None else self._root

    def put(self, items: Mapping[str, Arrays]) -> None:
        """Write or replace the arrays of photos, each local file atomically.

        Args:
            items: arrays by photo id.
        """
        files = [(self._path(id), _pack(to_int8(arrays) if self._int8 else arrays)) for id, arrays in items.items()]
        with self._explained("written"):
            self._map(lambda file: self._write(*file), files)

    def get(self, ids: Sequence[str]) -> dict[str, Arrays]:
        """Return the arrays of photos by id, as written; what was written as int8 is rounded half precision.

        Missing ids and damaged files are left out. A crash of the machine can damage a file; this is logged, and
        :meth:`put` replaces the file.
        """
        unique_ids = list(dict.fromkeys(ids))
        loaded: dict[str, Arrays] = {}
        for root in self._roots():
            paths = {self._path(id, root): id for id in unique_ids if id not in loaded}
            with self._explained("read"):
                files = self._read(list(paths))
            for path, data in files.items():
                try:
                    loaded[paths[path]] = from_int8(load(data))
                except (SafetensorError, KeyError, ValueError) as error:
                    logger.warning("%s is damaged (%s): ingest the photo again", path, error)
            if len(loaded) == len(unique_ids):
                break
        return {id: loaded[id] for id in unique_ids if id in loaded}

    def has(self, ids: Sequence[str]) -> set[str]:
        """Return the ids that have arrays; an empty file, which a crash can leave, does not count."""
        unique_ids = list(dict.fromkeys(ids))
        present: set[str] = set()
        for root in self._roots():
            missing = [id for id in unique_ids if id not in present]
            with self._explained("read"):
                sizes = self._map(self._size, [self._path(id, root) for id in missing])
            present.update(id for id, size in zip(missing, sizes, strict=True) if size)
            if len(present) == len(unique_ids):
                break
        return present

    def delete(self, ids: Sequence[str]) -> None:
        """Delete the arrays of these ids; missing ids are ignored."""
        paths = [self._path(id, root) for root in self._roots() for id in dict.fromkeys(ids)]
        with self._explained("written"):
            self._map(self._remove, paths)

    def fingerprints(self) -> list[str]:
        """Return the first 16 characters of the fingerprint of every re-ranker with region data at this address."""
        with self._explained("read"):
            try:
                if self._fs is None:
                    return sorted(entry.name for entry in os.scandir(self._base) if entry.is_dir())
                entries = call(self._fs, "ls", self._base, detail=True)
            except FileNotFoundError:
                return []
        folders = [entry["name"].rstrip("/") for entry in entries if entry["type"] == "directory"]
        return sorted(folder.rpartition("/")[2] for folder in folders)

    def mark(self, mark: str, about: str) -> None:
        """Mark the address with a file, by which :meth:`marked` recognises it under every name.

        Args:
            mark: random id, of letters and digits.
            about: content of the file, for people.
        """
        with self._explained("written"):
            # A file for each mark: processes that mark an address at once replace nothing of each other.
            self._write(self._mark_path(mark), f"region data of {about}\n".encode(), durable=True)

    def marked(self, mark: str) -> bool:
        """Return whether the address has this mark."""
        path = self._mark_path(mark)
        with self._explained("read"):
            return path in self._read([path])

    def check_writable(self) -> None:
        """Write a file beside the region data and delete it; folders that do not exist do not exist afterwards."""
        if self._fs is None:
            check_folder(self._base, self.address, "check the folder's owner, or set LDOT_REGION_STORE")
            return
        path = f"{self._base}/ldot-doctor-{secrets.token_hex(8)}.txt"
        with self._explained("written"):
            existed = self._fs.exists(self._base)
            self._write(path, b"written by ldot doctor, may be deleted\n")
        with self._explained(f"deleted from ({path} remains)"):
            self._remove(path)
        if not existed:
            with suppress(Exception):  # an object store has no folders
                self._fs.rmdir(self._base)

    def _mark_path(self, mark: str) -> str:
        return f"{self._base}/ldot-{mark}.txt"

    def _folder(self, fingerprint: str) -> str:
        return f"{self._base}/{_safe(fingerprint[:16])}"

    def _roots(self) -> Iterator[str]:
        """Yield the folder of the re-ranker, then those of its former fingerprints, where there are any folders."""
        yield self._root
        if self._former_roots is None:
            others = {f"{self._base}/{name}" for name in self.fingerprints()} - {self._root}
            former = [self._folder(fingerprint) for fingerprint in self._former()] if others else []
            self._former_roots = [root for root in dict.fromkeys(former) if root in others]
        yield from self._former_roots

    def _path(self, id: str, root: str | None = None) -> str:
        name = _safe(id)
        if len(name) > _NAME_MAX:  # many characters of three or four bytes; no quoted id contains "="
            name = "=" + hashlib.sha256(id.encode("utf-8", "surrogatepass")).hexdigest()
        return f"{root or self._root}/{_safe(id[:2])}/{name}.safetensors"

    def _map(self, function: Callable[[Any], _T], values: Sequence[Any]) -> list[_T]:
        """Apply a function to the values: concurrently for remote storage, else in sequence, which is faster."""
        if self._fs is None or len(values) < 2:
            return [function(value) for value in values]
        with ThreadPoolExecutor(min(_THREADS, len(values))) as threads:
            return list(threads.map(function, values))

    def _read(self, paths: Sequence[str]) -> dict[str, bytes]:
        contents: dict[str, bytes] = {}
        if self._fs is None:
            for path in paths:
                with suppress(FileNotFoundError), open(path, "rb") as file:
                    contents[path] = file.read()
            return contents
        # Not on_error="omit": an unreachable network must not look like missing region data.
        results = call(self._fs, "cat", list(paths), files=len(paths), on_error="return") if paths else {}
        for path, result in results.items():
            if isinstance(result, bytes):
                contents[path] = result
            elif not isinstance(result, FileNotFoundError):
                raise result
        return contents

    def _write(self, path: str, data: bytes, *, durable: bool = False) -> None:
        if self._fs is not None:
            try:
                call(self._fs, "pipe_file", path, data)
            except FileNotFoundError:  # a file system with real folders
                call(self._fs, "makedirs", path.rpartition("/")[0], exist_ok=True)
                call(self._fs, "pipe_file", path, data)
            return
        # Not durable: that would cost more than computing the regions of a lost file again.
        write_file(path, data, durable=durable)

    def _size(self, path: str) -> int:
        with suppress(FileNotFoundError):
            return os.stat(path).st_size if self._fs is None else int(call(self._fs, "info", path)["size"] or 0)
        return 0

    def _remove(self, path: str) -> None:
        with suppress(FileNotFoundError):
            if self._fs is None:
                os.remove(path)
            else:
                call(self._fs, "rm_file", path)

    @contextmanager
    def _explained(self, done: str) -> Iterator[None]:
        """Turn every exception of a file system or a storage client into a StoreError."""
        try:
            yield
        except StoreError:
            raise
        except Exception as error:
            raise StoreError(f"region store {self.address} cannot be {done}: {_remedy(error)}") from error


def _is_fsspec(address: str) -> bool:
    return "://" in address or "::" in address


def _connect(address: str) -> tuple[Any, str]:
    try:
        fs, root = open_filesystem(_given.get(address, address))
    except ImportError as error:  # fsspec names the package: "Install s3fs to access S3"
        raise StoreError(f"region store {address}: {error} (pip install)") from error
    except ValueError as error:
        raise StoreError(
            f"region store {address}: {error}. Set LDOT_REGION_STORE to a folder or to an address such as s3://..."
        ) from error
    except Exception as error:
        raise StoreError(f"region store {address} cannot be opened: {_remedy(error)}") from error
    is_local = "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)
    return (None if is_local else fs), root


def _safe(text: str) -> str:
    """Quote an id as one component of a path, without slashes, dots or pattern characters."""
    return quote(text, safe="", errors="surrogatepass").replace(".", "%2E")


def _pack(arrays: Arrays) -> bytes:
    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()})


def _remedy(error: Exception) -> str:
    code = error.errno if isinstance(error, OSError) else None
    if code in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full: free some space, or set LDOT_REGION_STORE to another disk"
    if code == errno.EROFS or isinstance(error, PermissionError):
        return "no permission: check the owner of the folder or the credentials of the bucket"
    if isinstance(error, (NotADirectoryError, FileExistsError)):
        return "a file exists where a folder is needed: set LDOT_REGION_STORE to a folder"
    return f"{error or type(error).__name__}: check that LDOT_REGION_STORE names an existing, reachable address"
