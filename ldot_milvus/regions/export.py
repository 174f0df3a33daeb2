"""``ldot regions``: extract the regions of photos to files, in the usual formats."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from ldot_milvus.errors import InputError, UsageError, reason
from ldot_milvus.images import decode
from ldot_milvus.regions.base import Regions
from ldot_milvus.regions.files import write_lmdb, write_npz, write_tsv

if TYPE_CHECKING:
    from ldot_milvus.regions.bottom_up import BottomUpExtractor

Photos = Iterable[tuple[str, Callable[[], bytes]]]
"""Names of photos, each with a function that reads the encoded bytes and may raise InputError."""

FORMATS = ("lmdb", "npz", "tsv")
TSV = "regions.tsv"
PICTURES = "show"


@dataclass
class Extraction:
    """The report of an extraction.

    Attributes:
        photos: number of photos written.
        regions: number of regions written.
        failed: maps the path of a photo that failed to the reason.
    """

    photos: int = 0
    regions: int = 0
    failed: dict[str, str] = field(default_factory=dict)


def extract(
    photos: Photos,
    extractor: BottomUpExtractor,
    folder: str | Path,
    *,
    format: str = "lmdb",
    show: bool = False,
    progress: Callable[[int], object] | None = None,
) -> Extraction:
    """Write the regions of photos to a new folder. A photo that fails is reported, and extraction continues.

    Args:
        photos: each is stored under the stem of its name, by which evaluation and training find it.
        extractor: extracts the regions.
        folder: a new or empty folder: it becomes an LMDB, or contains ``NAME.npz`` files or ``regions.tsv``.
        format: "lmdb", "npz" or "tsv".
        show: also write ``show/NAME.jpg``, the photo with its regions drawn.
        progress: called with 1 after each photo.

    Returns:
        The numbers of photos and regions written, and the failures.

    Raises:
        UsageError: the format is unknown, or the folder is not empty or cannot be written.
    """
    if format not in FORMATS:
        raise UsageError(f"format {format!r} is not one of {', '.join(FORMATS)}")
    folder, report = Path(folder).expanduser(), Extraction()
    try:
        (folder / PICTURES if show else folder).mkdir(parents=True, exist_ok=True)
        if any(path.name != PICTURES for path in folder.iterdir()) or (show and any((folder / PICTURES).iterdir())):
            raise UsageError(f"{folder} exists and is not empty: name a new folder")
        extracted = _regions(photos, extractor, folder / PICTURES if show else None, report, progress)
        if format == "tsv":
            write_tsv(folder / TSV, extracted)
        else:
            write = write_lmdb if format == "lmdb" else write_npz
            write(folder, ((f"{name}.npz", regions) for name, regions, _, _ in extracted))
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {reason(error)}") from error
    return report


def _regions(
    photos: Photos,
    extractor: BottomUpExtractor,
    pictures: Path | None,
    report: Extraction,
    progress: Callable[[int], object] | None,
) -> Iterator[tuple[str, Regions, int, int]]:
    """Yield name, regions, width and height of each photo that could be read; add the others to ``report``."""
    path_of: dict[str, str] = {}
    for path, read in photos:
        name = PurePosixPath(path).stem
        try:
            if name in path_of:
                raise InputError(f"another photo is called {name!r} too: {path_of[name]}")
            photo = decode(read(), name=path)
            regions = extractor(photo.image)
            if pictures is not None:
                from ldot_milvus.regions.drawing import draw

                drawn = draw(photo.image, regions, extractor.object_names, extractor.attribute_names)
                drawn.save(pictures / f"{name}.jpg", quality=90)
        except InputError as error:
            report.failed[path] = str(error).removeprefix(f"{path}: ")
        else:
            path_of[name] = path
            report.photos += 1
            report.regions += len(regions)
            yield name, regions, photo.width, photo.height
        if progress is not None:
            progress(1)
