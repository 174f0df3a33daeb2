"""Photos with captions, in the forms in which the field shares them."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ldot_milvus.errors import UsageError, printable
from ldot_milvus.evaluation.layouts import Listed, published_layout
from ldot_milvus.evaluation.photos import Caption, Load, Pair, PhotoFinder
from ldot_milvus.images import SUFFIXES
from ldot_milvus.sources import Source
from ldot_milvus.sources import read as read_source

__all__ = ["Caption", "DataSet", "Pair", "read_data_set", "read_pairs"]


@dataclass(frozen=True)
class DataSet:
    """Photos with captions.

    Attributes:
        name: data set and split as its files say, such as "flickr30k test"; empty for one's own.
        vocabulary: entries of the vocabulary that captions are token ids of; None where they are texts.
    """

    name: str
    pairs: list[Pair]
    vocabulary: int | None = None


def read_data_set(
    paths: Sequence[str | Path], *, regions: Sequence[str | Path] = (), photos: str | Path | None = None,
    split: str = "test", others: bool = False, language: str = "en",
) -> DataSet:  # fmt: skip
    """The photos and captions of some files, whatever form each has.

    A tar or folder of ``NAME.jpg`` and ``NAME.json`` (``{"captions": [...]}``), or one of the published layouts in
    :mod:`~ldot_milvus.evaluation.layouts`.

    Args:
        regions: region features of the photos, instead of pixels (see :class:`.photos.PhotoFinder`).
        photos: the folder of the photos that a file of captions names.
        split: of a layout that has several; "train" takes Karpathy's "restval" too.
        others: take all other splits instead.
        language: of Multi30K.

    Raises:
        UsageError: a file of no known form, a photo without captions, captions without a photo, a name twice, an
            empty split, no photo at all; the record is named.
    """
    places = PhotoFinder(regions, photos)
    parts: list[Listed] = []
    pairs: list[Pair] = []
    for path in map(Path, paths):
        read = published_layout(path, (split, others), language)
        part = Listed("", _members(path, places)) if read is None else read(places)
        found = list(part.pairs)
        if not found:
            raise UsageError(f"{path}: holds no photo with captions")
        parts.append(part)
        pairs += found
    seen: set[str] = set()
    for pair in pairs:
        if pair.name in seen:
            raise UsageError(f"{printable(pair.name)} is there twice among {', '.join(map(str, paths))}")
        seen.add(pair.name)
        _check_captions(pair)
    vocabularies = {part.vocabulary for part in parts}
    if len(vocabularies) > 1:
        raise UsageError(
            f"{', '.join(map(str, paths))}: captions as texts, or token ids of one vocabulary, not several"
        )
    return DataSet(parts[0].name if len(parts) == 1 else "", pairs, *vocabularies)


def read_pairs(
    paths: Sequence[str | Path], *, regions: Sequence[str | Path] = (), photos: str | Path | None = None,
    split: str = "test",
) -> list[Pair]:  # fmt: skip
    """The pairs of :func:`read_data_set`, which says more."""
    return read_data_set(paths, regions=regions, photos=photos, split=split).pairs


def _check_captions(pair: Pair) -> None:
    if not pair.captions:
        raise UsageError(f"{printable(pair.name)} has no captions")
    if not all(caption.strip() if isinstance(caption, str) else caption for caption in pair.captions):
        raise UsageError(f"{printable(pair.name)} has an empty caption")


def _members(path: Path, places: PhotoFinder) -> Iterator[Pair]:
    """``NAME.jpg`` with ``NAME.json`` in a tar or a folder, in order of name."""
    photos: dict[str, tuple[str, Load | None]] = {}
    captions: dict[str, list[Caption]] = {}
    try:
        for name, load in _files(path):
            stem, dot, suffix = name.rpartition(".")
            known = photos if f".{suffix.lower()}" in SUFFIXES else captions if suffix == "json" else None
            if not dot or known is None or name.rpartition("/")[2].startswith("."):
                continue
            if stem in known:
                raise UsageError(f"{path}: {printable(name)} is there twice (a photo of that name)")
            if known is photos:
                photos[stem] = (name, load)
            else:
                captions[stem] = _captions(load(), f"{path}: {printable(name)}")
    except (OSError, tarfile.TarError) as error:
        raise UsageError(
            f"{path}: not a folder or an uncompressed tar of photos, NAME.jpg, and NAME.json with captions ({error})"
        ) from error
    for stem in sorted(photos.keys() | captions.keys()):
        photo, own = photos.get(stem, (f"{stem}.jpg", None))
        if stem not in captions:
            raise UsageError(f"{path}: {printable(photo)} has no captions (there is no {printable(stem)}.json)")
        if places.has_regions:
            own = places.of(stem, path)
        elif own is None:
            raise UsageError(
                f"{path}: {printable(stem)}.json has captions of a photo that is not there ({printable(photo)})"
            )
        yield Pair(stem, own, captions[stem])


def _captions(data: bytes, where: str) -> list[Caption]:
    try:
        captions = json.loads(data)["captions"]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f'{where}: not JSON of the form {{"captions": [...]}} ({error!r})') from error
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise UsageError(f"{where}: its captions are not a list of texts")
    return list(captions)


def _files(path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    if path.is_dir():
        for file in sorted(path.iterdir()):
            if file.is_file():
                yield file.name, file.read_bytes
        return
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            if member.isreg():
                place = Source(str(path), member=member.name, offset=member.offset_data, size=member.size)
                yield member.name, partial(read_source, place)
