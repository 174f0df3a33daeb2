"""Region features that somebody extracted before, in the formats that the field keeps them in.

- LMDBs of UNITER and LightningDOT (msgpack or compressed npz values; ``scripts/convert_imgdir.py`` of their code);
- a folder of npz files with the same arrays, as they are before that conversion;
- the TSV of bottom-up attention (github peteanderson80/bottom-up-attention), 36 boxes or 10 to 100.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakValueDictionary

import numpy as np

from ldot_milvus.errors import InputError, UsageError
from ldot_milvus.regions.base import Regions, boxes7

KEYS = b"__keys__"
MAX_RECORD = 64 * 2**20
"""Bytes that a compressed record may unpack to: a hundred times what the largest ones of the field do."""
MINIMUM, MAXIMUM, CONFIDENT = 10, 100, 0.2
"""UNITER's adaptive number of regions: those above this confidence, at least 10 and at most 100."""
TSV_FIELDS = ("img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf", "num_boxes", "boxes",
              "features")  # fmt: skip


class RegionFile(Protocol):
    """Regions of many photos by name, read one at a time."""

    @property
    def names(self) -> list[str]:
        """In the order of the file."""
        ...

    def read(self, name: str) -> Regions:
        """Regions of one photo: ``parse(name, raw(name))``.

        Raises:
            InputError: naming the record that is not there or is not what this format promises.
        """
        ...

    def raw(self, name: str) -> bytes:
        """One photo's record as it is stored; raises InputError as :meth:`read` does."""
        ...

    def parse(self, name: str, value: bytes) -> Regions:
        """The regions in a record that :meth:`raw` gave; raises InputError as :meth:`read` does."""
        ...


def open_regions(path: str | Path) -> RegionFile:
    """The reader for an LMDB folder, a folder of npz files or a ``.tsv``.

    Raises:
        UsageError: nothing of the kind is there.
    """
    path = Path(path)
    if (path / "data.mdb").is_file():
        return LmdbRegions(path)
    if path.is_dir() and any(path.glob("*.npz")):
        return NpzRegions(path)
    if path.suffix == ".tsv" and path.is_file():
        return TsvRegions(path)
    raise UsageError(f"{path} has no region features: give an LMDB folder, a folder of .npz files, or a .tsv")


class LmdbRegions:
    """The authors' LMDB, in every variant that its folder's name tells.

    ``feat_numbbN`` takes the first N regions of each photo; ``feat_thX_maxY_minZ`` what was stored, or what a file
    ``nbb_thX_maxY_minZ.json`` beside it says; ``all`` takes UNITER's adaptive number. Values are recognised by
    themselves, so ``_compressed`` in the name does not matter.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._lmdb = open_lmdb(self.folder)
        kind = self.folder.name.removesuffix("_compressed")
        fixed = re.fullmatch(r"feat_numbb(\d+)", kind)
        self._fixed = int(fixed[1]) if fixed else None
        self._adaptive = kind == "all"
        counts = self.folder.parent / f"{kind.replace('feat_', 'nbb_', 1)}.json"
        self._counts: dict[str, int] = json.loads(counts.read_text()) if counts.is_file() else {}

    @property
    def names(self) -> list[str]:
        """As of :class:`RegionFile`."""
        with self._lmdb.begin() as transaction:
            listed = transaction.get(KEYS)
            if listed is not None:
                return list(json.loads(listed))
            return [key.decode() for key in transaction.cursor().iternext(values=False)]

    def read(self, name: str) -> Regions:
        """As of :class:`RegionFile`."""
        return self.parse(name, self.raw(name))

    def raw(self, name: str) -> bytes:
        """As of :class:`RegionFile`."""
        with self._lmdb.begin() as transaction:
            value = transaction.get(name.encode())
        if value is None:
            raise InputError(f"{self.folder}: {name}: no such record")
        return bytes(value)

    def parse(self, name: str, value: bytes) -> Regions:
        """As of :class:`RegionFile`."""
        where = f"{self.folder}: {name}"
        regions = _regions(_arrays(value, where), where)
        count = self._fixed or self._counts.get(name) or (adaptive_count(regions) if self._adaptive else len(regions))
        return regions.first(count)


class NpzRegions:
    """A folder of ``NAME.npz`` files with ``features``, ``norm_bb``, ``conf`` and perhaps ``soft_labels``."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @property
    def names(self) -> list[str]:
        """As of :class:`RegionFile`."""
        return sorted(path.name for path in self.folder.glob("*.npz"))

    def read(self, name: str) -> Regions:
        """As of :class:`RegionFile`; as many regions as UNITER's adaptive rule takes."""
        return self.parse(name, self.raw(name))

    def raw(self, name: str) -> bytes:
        """As of :class:`RegionFile`."""
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise InputError(f"{self.folder / name}: {error.strerror}") from error

    def parse(self, name: str, value: bytes) -> Regions:
        """As of :class:`RegionFile`."""
        where = f"{self.folder / name}"
        regions = _regions(_arrays(value, where), where)
        return regions.first(adaptive_count(regions))


class TsvRegions:
    """The public TSV of bottom-up attention; boxes in pixels become fractions of the photo.

    Attributes:
        places: where each photo's line starts, and its length in bytes.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.places: dict[str, tuple[int, int]] = {}
        with self.path.open("rb") as file:
            start = 0
            for line in file:
                name = line.split(b"\t", 1)[0].decode("utf-8", "replace")
                if name in self.places:
                    raise InputError(f"{self.path}: {name}: twice in this file")
                self.places[name] = (start, len(line))
                start += len(line)

    @property
    def names(self) -> list[str]:
        """As of :class:`RegionFile`."""
        return list(self.places)

    def read(self, name: str) -> Regions:
        """As of :class:`RegionFile`."""
        return self.parse(name, self.raw(name))

    def raw(self, name: str) -> bytes:
        """As of :class:`RegionFile`."""
        if name not in self.places:
            raise InputError(f"{self.path}: {name}: no such record")
        start, size = self.places[name]
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(size)

    def parse(self, name: str, value: bytes) -> Regions:
        """As of :class:`RegionFile`."""
        return parse_tsv_line(value, f"{self.path}: {name}")[0]


def parse_tsv_line(line: bytes, where: str) -> tuple[Regions, int, int]:
    """The regions in a line of the public TSV, and the photo's width and height in pixels.

    Raises:
        InputError: beginning with ``where``; the line is not of this format.
    """
    cells = line.rstrip(b"\r\n").split(b"\t")
    if len(cells) != len(TSV_FIELDS):
        raise InputError(f"{where}: {len(cells)} columns, where this format has {len(TSV_FIELDS)}")
    row = dict(zip(TSV_FIELDS, cells, strict=True))
    try:
        height, width, count = (int(row[field]) for field in ("img_h", "img_w", "num_boxes"))
        if min(height, width, count) < 1:
            raise ValueError(f"a photo of {width} x {height} pixels with {count} boxes")
        boxes = np.frombuffer(base64.b64decode(row["boxes"]), np.float32).reshape(count, 4)
        features = np.frombuffer(base64.b64decode(row["features"]), np.float32).reshape(count, -1)
        confidence, attribute_confidence = (
            np.frombuffer(base64.b64decode(row[field]), np.float32).reshape(count)
            for field in ("objects_conf", "attrs_conf")
        )
        objects, attributes = (
            np.frombuffer(base64.b64decode(row[field]), np.int64).reshape(count) for field in ("objects_id", "attrs_id")
        )
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error
    corners = (boxes / np.array([width, height, width, height], np.float32)).astype(np.float32)
    regions = Regions(
        features.copy(), boxes7(corners), confidence.copy(),
        objects=objects, attributes=attributes, attribute_confidence=attribute_confidence,
    )  # fmt: skip
    return regions, width, height


def tsv_line(name: str, regions: Regions, width: int, height: int) -> bytes:
    """A line of the public TSV for a photo of that size; :func:`parse_tsv_line` is the way back.

    Raises:
        InputError: the regions have no classes and attributes, or the name has a tab or a line break in it.
    """
    if regions.objects is None or regions.attributes is None or regions.attribute_confidence is None:
        raise InputError(f"{name}: this format wants a detector's classes and attributes, and these regions have none")
    if re.search(r"[\t\r\n]", name):
        raise InputError(f"{name!r}: this format cannot hold a name with a tab or a line break")
    scale = np.array([width, height, width, height], np.float32)
    values: dict[str, str | int | np.ndarray[Any, Any]] = {
        "img_id": name, "img_h": height, "img_w": width,
        "objects_id": regions.objects.astype(np.int64), "objects_conf": regions.confidence,
        "attrs_id": regions.attributes.astype(np.int64), "attrs_conf": regions.attribute_confidence,
        "num_boxes": len(regions), "boxes": regions.boxes[:, :4] * scale, "features": regions.features,
    }  # fmt: skip
    cells = (values[field] for field in TSV_FIELDS)
    return (
        "\t".join(
            base64.b64encode(np.ascontiguousarray(cell).tobytes()).decode()
            if isinstance(cell, np.ndarray)
            else str(cell)
            for cell in cells
        ).encode("utf-8", "surrogateescape")
        + b"\n"
    )


def write_lmdb(folder: str | Path, items: Iterable[tuple[str, Regions]], *, compressed: bool = False) -> int:
    """Write regions as the authors' LMDB (names should end in ``.npz``, as theirs do); returns how many."""
    try:
        import lmdb
        import msgpack
    except ImportError as error:
        raise UsageError(f"{folder} is to be an LMDB: pip install 'ldot-milvus[lmdb]' to write it") from error

    names = []
    with lmdb.open(str(folder), map_size=1 << 40) as environment:
        for name, regions in items:
            value = _npz(regions) if compressed else msgpack.packb(
                {field: _packed(array) for field, array in _halves(regions).items()}, use_bin_type=True
            )  # fmt: skip
            with environment.begin(write=True) as transaction:
                if not transaction.put(name.encode(), value, overwrite=False):
                    raise InputError(f"{folder}: {name}: twice among the photos")
            names.append(name)
        with environment.begin(write=True) as transaction:
            transaction.put(KEYS, json.dumps(names).encode())
    return len(names)


def write_tsv(path: str | Path, items: Iterable[tuple[str, Regions, int, int]]) -> int:
    """Write regions of photos of a width and height as the public TSV; returns how many."""
    count = 0
    with Path(path).open("xb") as file:
        for name, regions, width, height in items:
            file.write(tsv_line(name, regions, width, height))
            count += 1
    return count


def write_npz(folder: str | Path, items: Iterable[tuple[str, Regions]]) -> int:
    """Write regions as ``NAME.npz`` files; returns how many."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    count = 0
    for name, regions in items:
        (Path(folder) / f"{name.removesuffix('.npz')}.npz").write_bytes(_npz(regions))
        count += 1
    return count


def adaptive_count(regions: Regions) -> int:
    """How many of the regions UNITER takes: clip(count(confidence > 0.2), 10, 100)."""
    return int(np.clip((regions.confidence > CONFIDENT).sum(), MINIMUM, MAXIMUM))


def iterate(file: RegionFile) -> Iterator[tuple[str, Regions]]:
    """All photos of a file, in its order."""
    for name in file.names:
        yield name, file.read(name)


_open_environments: WeakValueDictionary[str, Any] = WeakValueDictionary()
"""A process may open an LMDB only once: readers of one share it, and the last one closes it."""


def open_lmdb(folder: Path) -> Any:
    """The LMDB for reading; it is closed when nobody has it any more."""
    try:
        import lmdb
    except ImportError as error:
        raise UsageError(f"{folder} is an LMDB: pip install 'ldot-milvus[lmdb]' to read it") from error
    place = str(folder.resolve())
    environment = _open_environments.get(place)
    if environment is None:
        try:
            environment = lmdb.open(place, readonly=True, lock=False)
        except lmdb.Error as error:
            raise UsageError(f"{folder} cannot be read as an LMDB ({error})") from error
        _open_environments[place] = environment
    return environment


def _arrays(value: bytes, where: str) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of one record, whichever way it is stored; nothing is ever unpickled."""
    try:
        if value[:2] == b"PK":
            with np.load(io.BytesIO(value), allow_pickle=False) as archive:
                size = sum(member.file_size for member in archive.zip.infolist())
                if size > MAX_RECORD:
                    raise ValueError(f"{size:,} bytes unpacked are more than the limit of {MAX_RECORD:,}")
                return {name: archive[name] for name in archive.files if name != "allow_pickle"}
        import msgpack

        record = msgpack.unpackb(value, raw=True, strict_map_key=False)
        return {name.decode(): _unpacked(packed) for name, packed in record.items()}
    except Exception as error:  # damaged archives raise nearly everything: zlib.error, NotImplementedError, ...
        raise InputError(f"{where}: not region features as msgpack or npz ({error})") from error


def _regions(arrays: dict[str, np.ndarray[Any, Any]], where: str) -> Regions:
    missing = {"features", "norm_bb", "conf"} - arrays.keys()
    if missing:
        raise InputError(f"{where}: no {', '.join(sorted(missing))}; there are {', '.join(sorted(arrays)) or 'none'}")
    labels = arrays.get("soft_labels")
    try:
        boxes = arrays["norm_bb"].astype(np.float32)
        if boxes.ndim != 2 or boxes.shape[1] != 6:
            raise ValueError(f"norm_bb has shape {boxes.shape}, not (n, 6)")
        area = boxes[:, 4:5] * boxes[:, 5:6]
        return Regions(
            arrays["features"].astype(np.float32),
            np.concatenate([boxes, area], axis=1),
            arrays["conf"].astype(np.float32).reshape(-1),
            None if labels is None else labels.astype(np.float32),
        )
    except (InputError, ValueError, TypeError) as error:  # of Regions, and of numpy for texts instead of numbers
        raise InputError(f"{where}: {error}") from error


def _halves(regions: Regions) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays that the authors' files hold, in half precision."""
    arrays = {"features": regions.features, "norm_bb": regions.boxes[:, :6], "conf": regions.confidence}
    if regions.soft_labels is not None:
        arrays["soft_labels"] = regions.soft_labels
    return {name: np.ascontiguousarray(array, np.float16) for name, array in arrays.items()}


def _npz(regions: Regions) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **_halves(regions))  # type: ignore[arg-type]
    return buffer.getvalue()


def _packed(array: np.ndarray[Any, Any]) -> dict[bytes, Any]:
    """An array as the package msgpack-numpy writes it."""
    return {b"nd": True, b"type": array.dtype.str, b"kind": b"", b"shape": array.shape, b"data": array.tobytes()}


def _unpacked(packed: dict[bytes, Any]) -> np.ndarray[Any, Any]:
    if packed[b"nd"] is not True or packed[b"kind"]:
        raise ValueError("not a plain array")
    flat: np.ndarray[Any, Any] = np.frombuffer(packed[b"data"], np.dtype(packed[b"type"].decode()))
    return flat.reshape([int(side) for side in packed[b"shape"]])
