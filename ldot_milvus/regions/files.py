"""Read and write precomputed region features in the usual formats.

- LMDBs of UNITER and LightningDOT (msgpack or compressed npz values; ``scripts/convert_imgdir.py`` of their code);
- folders of npz files with the same arrays, the input of that conversion;
- the TSV of bottom-up attention (github peteanderson80/bottom-up-attention), with 36 boxes or 10 to 100.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakValueDictionary

import numpy as np
from typing_extensions import override

from ldot_milvus.errors import InputError, UsageError
from ldot_milvus.regions.base import Regions, boxes7
from ldot_milvus.regions.records import decode_record, encode_msgpack, encode_npz

KEYS = b"__keys__"
MINIMUM, MAXIMUM, CONFIDENT = 10, 100, 0.2
"""UNITER's adaptive number of regions: those above a confidence of 0.2, but at least 10 and at most 100."""
TSV_FIELDS = ("img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf", "num_boxes", "boxes",
              "features")  # fmt: skip


class RegionFile(Protocol):
    """A file or folder with the regions of many photos, read one at a time by name."""

    @property
    def names(self) -> list[str]:
        """Names of the records, in the order of the file."""
        ...

    def read(self, name: str) -> Regions:
        """Read the regions of one photo: ``parse(name, raw(name))``.

        Raises:
            InputError: the record is missing or invalid. The message names it.
        """
        ...

    def raw(self, name: str) -> bytes:
        """Read one photo's record without decoding it.

        Raises:
            InputError: the record is missing. The message names it.
        """
        ...

    def parse(self, name: str, value: bytes) -> Regions:
        """Decode a record that :meth:`raw` returned.

        Raises:
            InputError: the record is invalid. The message names it.
        """
        ...


def open_regions(path: str | Path) -> RegionFile:
    """Open precomputed region features for reading.

    Args:
        path: an LMDB folder, a folder of npz files or a ``.tsv`` file.

    Raises:
        UsageError: ``path`` contains no region features.
    """
    path = Path(path)
    if (path / "data.mdb").is_file():
        return LmdbRegions(path)
    if path.is_dir() and any(path.glob("*.npz")):
        return NpzRegions(path)
    if path.suffix == ".tsv" and path.is_file():
        return TsvRegions(path)
    raise UsageError(f"{path} has no region features: give an LMDB folder, a folder of .npz files, or a .tsv")


class LmdbRegions(RegionFile):
    """The LMDB of UNITER and LightningDOT. The folder's name determines how many regions of a photo are read.

    ``feat_numbbN``: the first N regions. ``feat_thX_maxY_minZ``: the number in the file ``nbb_thX_maxY_minZ.json``
    beside the folder, or all stored regions without such a file. ``all``: UNITER's adaptive number. A record's encoding
    is detected from its bytes, so the suffix ``_compressed`` has no effect.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._lmdb = open_lmdb(self.folder)
        variant = self.folder.name.removesuffix("_compressed")
        fixed = re.fullmatch(r"feat_numbb(\d+)", variant)
        self._fixed = int(fixed[1]) if fixed else None
        self._adaptive = variant == "all"
        counts = self.folder.parent / f"{variant.replace('feat_', 'nbb_', 1)}.json"
        self._counts: dict[str, int] = json.loads(counts.read_text()) if counts.is_file() else {}

    @property
    @override
    def names(self) -> list[str]:
        with self._lmdb.begin() as transaction:
            listed = transaction.get(KEYS)
            if listed is not None:
                return list(json.loads(listed))
            return [key.decode() for key in transaction.cursor().iternext(values=False)]

    @override
    def read(self, name: str) -> Regions:
        return self.parse(name, self.raw(name))

    @override
    def raw(self, name: str) -> bytes:
        with self._lmdb.begin() as transaction:
            value = transaction.get(name.encode())
        if value is None:
            raise InputError(f"{self.folder}: {name}: no such record")
        return bytes(value)

    @override
    def parse(self, name: str, value: bytes) -> Regions:
        where = f"{self.folder}: {name}"
        regions = decode_record(value, where)
        count = self._fixed or self._counts.get(name) or (adaptive_count(regions) if self._adaptive else len(regions))
        return regions.first(count)


class NpzRegions(RegionFile):
    """A folder of ``NAME.npz`` files with ``features``, ``norm_bb``, ``conf`` and optionally ``soft_labels``.

    UNITER's adaptive number of regions is read of each photo.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @property
    @override
    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("*.npz"))

    @override
    def read(self, name: str) -> Regions:
        return self.parse(name, self.raw(name))

    @override
    def raw(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise InputError(f"{self.folder / name}: {error.strerror}") from error

    @override
    def parse(self, name: str, value: bytes) -> Regions:
        where = f"{self.folder / name}"
        regions = decode_record(value, where)
        return regions.first(adaptive_count(regions))


class TsvRegions(RegionFile):
    """The public TSV of bottom-up attention. Boxes in pixels are converted to fractions of the photo.

    Attributes:
        places: offset and length in bytes of each photo's line, by name.

    Raises:
        InputError: a name occurs twice in the file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.places: dict[str, tuple[int, int]] = {}
        with self.path.open("rb") as file:
            start = 0
            for line in file:
                name = line.split(b"\t", 1)[0].decode("utf-8", "replace")
                if name in self.places:
                    raise InputError(f"{self.path}: {name}: twice in this file, remove one of the lines")
                self.places[name] = (start, len(line))
                start += len(line)

    @property
    @override
    def names(self) -> list[str]:
        return list(self.places)

    @override
    def read(self, name: str) -> Regions:
        return self.parse(name, self.raw(name))

    @override
    def raw(self, name: str) -> bytes:
        if name not in self.places:
            raise InputError(f"{self.path}: {name}: no such record")
        start, size = self.places[name]
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(size)

    @override
    def parse(self, name: str, value: bytes) -> Regions:
        return parse_tsv_line(value, f"{self.path}: {name}")[0]


def parse_tsv_line(line: bytes, where: str) -> tuple[Regions, int, int]:
    """Decode a line of the public TSV.

    Args:
        line: with or without its line break.
        where: file and name of the record, for messages.

    Returns:
        The regions, and the photo's width and height in pixels.

    Raises:
        InputError: the line does not have this format.
    """
    cells = line.rstrip(b"\r\n").split(b"\t")
    if len(cells) != len(TSV_FIELDS):
        raise InputError(f"{where}: {len(cells)} columns, but this format has {len(TSV_FIELDS)}")
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
    """Encode regions as a line of the public TSV, the inverse of :func:`parse_tsv_line`.

    Args:
        name: of the photo.
        regions: with classes and attributes.
        width, height: of the photo, in pixels.

    Raises:
        InputError: the regions have no classes and attributes, or the name contains a tab or a line break.
    """
    if regions.objects is None or regions.attributes is None or regions.attribute_confidence is None:
        raise InputError(
            f"{name}: tsv requires a detector's classes and attributes, and these regions have none: write lmdb or npz"
        )
    if re.search(r"[\t\r\n]", name):
        raise InputError(f"{name!r}: a name in a tsv cannot contain a tab or a line break: rename the photo")
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
    """Write regions as an LMDB of UNITER and LightningDOT, in half precision.

    Args:
        folder: of the LMDB.
        items: names, which should end in ``.npz`` as in the published files, and regions.
        compressed: write compressed npz records instead of msgpack.

    Returns:
        The number of photos written.

    Raises:
        UsageError: the package lmdb or msgpack is not installed.
        InputError: a name occurs twice.
    """
    try:
        import lmdb
        import msgpack  # noqa: F401  (encode_msgpack needs it)
    except ImportError as error:
        raise UsageError(f"{folder} cannot be written as an LMDB: pip install 'ldot-milvus[lmdb]' first") from error

    names = []
    with lmdb.open(str(folder), map_size=1 << 40) as environment:
        for name, regions in items:
            value = encode_npz(regions) if compressed else encode_msgpack(regions)
            with environment.begin(write=True) as transaction:
                if not transaction.put(name.encode(), value, overwrite=False):
                    raise InputError(f"{folder}: {name}: twice among the photos")
            names.append(name)
        with environment.begin(write=True) as transaction:
            transaction.put(KEYS, json.dumps(names).encode())
    return len(names)


def write_tsv(path: str | Path, items: Iterable[tuple[str, Regions, int, int]]) -> int:
    """Write regions as the public TSV.

    Args:
        path: of a new file.
        items: name, regions, width and height in pixels of each photo.

    Returns:
        The number of photos written.

    Raises:
        FileExistsError: ``path`` exists.
        InputError: see :func:`tsv_line`.
    """
    count = 0
    with Path(path).open("xb") as file:
        for name, regions, width, height in items:
            file.write(tsv_line(name, regions, width, height))
            count += 1
    return count


def write_npz(folder: str | Path, items: Iterable[tuple[str, Regions]]) -> int:
    """Write regions as ``NAME.npz`` files in half precision, and return the number of photos written."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    count = 0
    for name, regions in items:
        (Path(folder) / f"{name.removesuffix('.npz')}.npz").write_bytes(encode_npz(regions))
        count += 1
    return count


def adaptive_count(regions: Regions) -> int:
    """Return UNITER's adaptive number of regions: clip(count(confidence > 0.2), 10, 100)."""
    return int(np.clip((regions.confidence > CONFIDENT).sum(), MINIMUM, MAXIMUM))


def iterate(file: RegionFile) -> Iterator[tuple[str, Regions]]:
    """Yield name and regions of all photos, in the order of the file."""
    for name in file.names:
        yield name, file.read(name)


_open_environments: WeakValueDictionary[str, Any] = WeakValueDictionary()
"""Open LMDBs by absolute path. A process may open an LMDB only once, so its readers share the environment."""


def open_lmdb(folder: Path) -> Any:
    """Open an LMDB for reading; it is closed with the last reference to it.

    Returns:
        An ``lmdb.Environment``.

    Raises:
        UsageError: the package lmdb is not installed, or the folder cannot be read as an LMDB.
    """
    try:
        import lmdb
    except ImportError as error:
        raise UsageError(f"{folder} is an LMDB: pip install 'ldot-milvus[lmdb]' to read it") from error
    path = str(folder.resolve())
    environment = _open_environments.get(path)
    if environment is None:
        try:
            environment = lmdb.open(path, readonly=True, lock=False)
        except lmdb.Error as error:
            raise UsageError(f"{folder} cannot be read as an LMDB ({error})") from error
        _open_environments[path] = environment
    return environment
