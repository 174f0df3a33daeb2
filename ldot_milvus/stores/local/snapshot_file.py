"""The file of a snapshot: an index of FAISS, which is mapped into memory, and a trailer.

FAISS index | pks (int64) | alive (uint8) | sums (uint64, one for each block before them) | header (JSON) | end
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ldot_milvus.stores.index_spec import BUILD, IndexSpec, Value
from ldot_milvus.stores.local.indexes import RowIndex, wrap
from ldot_milvus.stores.local.library import load_faiss

FORMAT = 1
BLOCK = 1 << 22  # bytes in one sum
UNREADABLE = (OSError, ValueError, TypeError, KeyError, RuntimeError)
"""What reading a damaged file raises."""

_END = struct.Struct("<IQ8s")  # CRC-32 of sums and header, length of the header, magic
_MAGIC = b"LDOTSNAP"


class Busy(Exception):
    """Another process writes the snapshot, or has just written it."""


@dataclass(frozen=True)
class Header:
    """What a snapshot contains.

    Attributes:
        token: random name of this snapshot, which the database repeats.
        index_type: type of the index, never ``AUTO``.
        params: its build parameters.
        dim: dimension of the vectors.
        rows: number of rows, dead ones included.
        length: bytes of the FAISS index.
        last_pk: the rows up to this pk are in the snapshot,
        last_tombstone: without those removed up to this tombstone.
        format: version of the format.
    """

    token: str
    index_type: str
    params: dict[str, Value]
    dim: int
    rows: int
    length: int
    last_pk: int
    last_tombstone: int
    format: int = FORMAT


def write(file: IO[bytes], path: Path, index: RowIndex, token: str, last_pk: int, last_tombstone: int) -> Header:
    """Write an index to the disk.

    Args:
        file: the file, open to append; what it contains is replaced.
        path: path of the same file.
        index: an index in memory.
        token: see :class:`Header`.
        last_pk: see :class:`Header`.
        last_tombstone: see :class:`Header`.

    Raises:
        OSError: the file cannot be written.
        RuntimeError: FAISS cannot write it.
    """
    load_faiss().write_index(index.index, str(path))
    length, spec = path.stat().st_size, index.spec
    build = {name: value for name, value in spec.params.items() if name in BUILD[spec.index_type]}
    header = Header(
        token, spec.index_type, build, index.index.d, len(index.pks), length, last_pk, last_tombstone
    )  # fmt: skip
    file.write(index.pks.astype("<i8").tobytes() + index.alive.tobytes())
    file.flush()
    encoded = json.dumps(asdict(header)).encode()
    ending = _sums(np.memmap(path, np.uint8, "r")).tobytes() + encoded
    file.write(ending + _END.pack(zlib.crc32(ending), len(encoded), _MAGIC))
    file.flush()
    os.fsync(file.fileno())
    return header


def read_header(path: Path) -> Header:
    """Read the header of a snapshot, whose contents are not checked.

    Raises:
        OSError: the file cannot be read.
        ValueError: header or sums are damaged, or of another format.
    """
    return _ending(path)[0]


def read(path: Path, spec: IndexSpec, *, mapped: bool) -> RowIndex:
    """Check the contents of a snapshot, and open its index.

    Args:
        path: path of the file.
        spec: type and parameters of the index.
        mapped: map the vectors into memory, where nothing may change them; False copies them.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is damaged.
        RuntimeError: FAISS cannot read it.
    """
    header, sums = _ending(path)
    content = np.memmap(path, np.uint8, "r")[: header.length + 9 * header.rows]
    if not np.array_equal(_sums(content), sums):
        raise ValueError("its contents differ from their sums")
    pks, alive = np.split(np.array(content[header.length :]), [8 * header.rows])
    index = _faiss_index(path, spec, mapped)
    if (index.ntotal, index.d) != (header.rows, header.dim):
        raise ValueError("its index differs from its header")
    return wrap(spec, index, pks.view("<i8").astype(np.int64), alive.view(np.bool_))


def _ending(path: Path) -> tuple[Header, NDArray[np.uint64]]:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size < _END.size:
            raise ValueError("it is too short")
        file.seek(size - _END.size)
        crc, length, magic = _END.unpack(file.read(_END.size))
        if magic != _MAGIC or length > size - _END.size:
            raise ValueError("its end is missing")
        file.seek(size - _END.size - length)
        encoded = file.read(length)
        header = Header(**json.loads(encoded))
        if header.format != FORMAT:
            raise ValueError(f"it has format {header.format}, not {FORMAT}")
        content = header.length + 9 * header.rows
        file.seek(content)
        sums = file.read(size - _END.size - length - content)
    if zlib.crc32(sums + encoded) != crc or len(sums) != 8 * -(-content // BLOCK):
        raise ValueError("its header is damaged")
    return header, np.frombuffer(sums, "<u8")


def _faiss_index(path: Path, spec: IndexSpec, mapped: bool) -> Any:
    faiss = load_faiss()
    if not mapped:
        return faiss.read_index(str(path))
    if "IVF" not in spec.index_type:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
    faiss.downcast_InvertedLists(index.invlists).prefetch_nthread = 0  # it would start 32 threads at each search
    return index


def _sums(content: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return the sum of each block's 64-bit words, which takes a tenth of the time of a CRC."""
    sums = []
    for start in range(0, len(content), BLOCK):
        block = np.asarray(content[start : start + BLOCK])
        if len(block) % 8:
            block = np.pad(block, (0, -len(block) % 8))
        sums.append(np.add.reduce(block.view("<u8"), dtype=np.uint64))
    return np.array(sums, "<u8")
