"""A bounded cache of small files, such as thumbnails, which several processes may share."""

from __future__ import annotations

import os
import tempfile
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

from ldot_milvus.forks import Lock

MAX_BYTES = 512 * 2**20
MAX_FILES = 20_000
_REST = 0.9  # of the limits, after files were removed


class DiskCache:
    """Files by key. Those that were not used for longest are removed when there are too many, or too large ones.

    Every failure of the disk is a miss: a cache does not stop a service. Instances are thread-safe.

    Args:
        folder: is created; None makes a temporary folder, as does a folder that cannot be written.
        max_bytes: limit of the sum of the files' sizes.
        max_files: limit of their number.

    Attributes:
        folder: where the files are.
    """

    def __init__(self, folder: Path | None = None, *, max_bytes: int = MAX_BYTES, max_files: int = MAX_FILES) -> None:
        self._temporary = None if _is_writable(folder) else tempfile.TemporaryDirectory(prefix="ldot-pictures-")
        self.folder = Path(self._temporary.name) if self._temporary else folder or Path()
        self._max_bytes, self._max_files = max_bytes, max_files
        self._lock = Lock()
        self._sizes: OrderedDict[str, int] = OrderedDict()  # in the order of their last use
        self._bytes = 0
        for path in sorted(self.folder.glob("??/*.jpg"), key=_used):
            with suppress(OSError):
                self._note(path.stem, path.stat().st_size)
        self._shrink()

    def get(self, key: str) -> bytes | None:
        """Return the content of a file; None if there is none.

        Args:
            key: at least two hex digits.
        """
        path = self._path(key)
        try:
            content = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        with self._lock:
            self._note(key, len(content))
        return content

    def put(self, key: str, content: bytes) -> None:
        """Keep a file, and remove others beyond the limits."""
        path = self._path(key)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor, written = tempfile.mkstemp(dir=path.parent)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            os.replace(written, path)
        except OSError:
            return
        with self._lock:
            self._note(key, len(content))
            self._shrink()

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.jpg"

    def _note(self, key: str, size: int) -> None:
        self._bytes += size - self._sizes.pop(key, 0)
        self._sizes[key] = size

    def _shrink(self) -> None:
        if self._bytes <= self._max_bytes and len(self._sizes) <= self._max_files:
            return
        while self._sizes and (self._bytes > _REST * self._max_bytes or len(self._sizes) > _REST * self._max_files):
            key, size = self._sizes.popitem(last=False)
            self._bytes -= size
            with suppress(OSError):
                self._path(key).unlink()


def default_folder() -> Path:
    """Return the folder of this user's cache, ``~/.cache/ldot-milvus/pictures`` on most systems."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "ldot-milvus" / "pictures"


def _is_writable(folder: Path | None) -> bool:
    if folder is not None:
        with suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return True
    return False


def _used(path: Path) -> float:
    with suppress(OSError):
        return path.stat().st_mtime
    return 0.0
