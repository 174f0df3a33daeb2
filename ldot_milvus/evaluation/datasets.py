"""Read photos with captions, in the layouts in which data sets are published."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ldot_milvus.errors import UsageError, printable
from ldot_milvus.evaluation.layouts import Contents, published_layout
from ldot_milvus.evaluation.photos import Caption, Load, Pair, PhotoFinder
from ldot_milvus.images import SUFFIXES
from ldot_milvus.sources import Source
from ldot_milvus.sources import read as read_source

__all__ = ["Caption", "DataSet", "Pair", "read_data_set", "read_pairs"]


@dataclass(frozen=True)
class DataSet:
    """Photos with captions.

    Attributes:
        name: data set and split as its files name them, such as "flickr30k test"; empty for private data.
        pairs: the photos with their captions.
        vocabulary: size of the vocabulary if captions are token ids; None if they are texts.
    """

    name: str
    pairs: list[Pair]
    vocabulary: int | None = None


def read_data_set(
    paths: Sequence[str | Path], *, regions: Sequence[str | Path] = (), photos: str | Path | None = None,
    split: str = "test", others: bool = False, language: str = "en",
) -> DataSet:  # fmt: skip
    """Read photos and captions.

    Args:
        paths: each a tar or folder of ``NAME.jpg`` and ``NAME.json`` (``{"captions": [...]}``), or one of the published
            layouts in :mod:`~ldot_milvus.evaluation.layouts`.
        regions: region features of the photos, used instead of pixels (see :class:`.photos.PhotoFinder`).
        photos: the folder of the photos, for layouts that contain only their names.
        split: for layouts with several splits. "train" includes Karpathy's "restval".
        others: read all splits except ``split``.
        language: of the captions of Multi30K.

    Raises:
        UsageError: a file has an unknown layout, a photo has no captions, captions have no photo, a name occurs twice,
            a split is empty, or there is no photo. The message names the record.
    """
    finder = PhotoFinder(regions, photos)
    contents: list[Contents] = []
    pairs: list[Pair] = []
    for path in (Path(path).expanduser() for path in paths):
        read = published_layout(path, (split, others), language)
        content = Contents("", _members(path, finder)) if read is None else read(finder)
        pairs_of_path = list(content.pairs)
        if not pairs_of_path:
            raise UsageError(f"{path} contains no photo with captions: give NAME.jpg with NAME.json")
        contents.append(content)
        pairs += pairs_of_path
    seen: set[str] = set()
    for pair in pairs:
        if pair.name in seen:
            raise UsageError(f"{printable(pair.name)} occurs twice in {', '.join(map(str, paths))}: remove one")
        seen.add(pair.name)
        _check_captions(pair)
    vocabularies = {content.vocabulary for content in contents}
    if len(vocabularies) > 1:
        raise UsageError(
            f"{', '.join(map(str, paths))}: give captions as texts, or as token ids of one vocabulary, not both"
        )
    return DataSet(contents[0].name if len(contents) == 1 else "", pairs, *vocabularies)


def read_pairs(
    paths: Sequence[str | Path], *, regions: Sequence[str | Path] = (), photos: str | Path | None = None,
    split: str = "test",
) -> list[Pair]:  # fmt: skip
    """Read photos and captions as :func:`read_data_set` does, and return the pairs."""
    return read_data_set(paths, regions=regions, photos=photos, split=split).pairs


def _check_captions(pair: Pair) -> None:
    if not pair.captions:
        raise UsageError(f"{printable(pair.name)} has no captions: add one, or leave the photo out")
    if not all(caption.strip() if isinstance(caption, str) else caption for caption in pair.captions):
        raise UsageError(f"{printable(pair.name)} has an empty caption: fill it in, or remove it")


def _members(path: Path, finder: PhotoFinder) -> Iterator[Pair]:
    """Yield the pairs of ``NAME.jpg`` and ``NAME.json`` in a tar or a folder, by name."""
    photos: dict[str, tuple[str, Load | None]] = {}
    captions: dict[str, list[Caption]] = {}
    try:
        for name, load in _files(path):
            stem, dot, suffix = name.rpartition(".")
            known = photos if f".{suffix.lower()}" in SUFFIXES else captions if suffix == "json" else None
            if not dot or known is None or name.rpartition("/")[2].startswith("."):
                continue
            if stem in known:
                raise UsageError(f"{path}: {printable(name)} occurs twice (as a photo of that name): rename one")
            if known is photos:
                photos[stem] = (name, load)
            else:
                captions[stem] = _captions(load(), f"{path}: {printable(name)}")
    except (OSError, tarfile.TarError) as error:
        raise UsageError(
            f"{path}: not a folder or an uncompressed tar of photos, NAME.jpg, and NAME.json with captions ({error})"
        ) from error
    for stem in sorted(photos.keys() | captions.keys()):
        photo, load_photo = photos.get(stem, (f"{stem}.jpg", None))
        if stem not in captions:
            raise UsageError(f"{path}: {printable(photo)} has no captions ({printable(stem)}.json is missing)")
        if finder.has_regions:
            load_photo = finder.of(stem, path)
        elif load_photo is None:
            raise UsageError(
                f"{path}: {printable(stem)}.json has captions, but its photo {printable(photo)} is missing"
            )
        yield Pair(stem, load_photo, captions[stem])


def _captions(data: bytes, where: str) -> list[Caption]:
    try:
        captions = json.loads(data)["captions"]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f'{where}: not JSON of the form {{"captions": [...]}} ({error!r})') from error
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise UsageError(f'{where}: "captions" is not a list of texts')
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
                source = Source(str(path), member=member.name, offset=member.offset_data, size=member.size)
                yield member.name, partial(read_source, source)
