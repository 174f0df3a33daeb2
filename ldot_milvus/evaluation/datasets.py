"""Photos with captions, as files bring them."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError


@dataclass(frozen=True)
class Pair:
    """One photo, undecoded, and the captions that describe it."""

    name: str
    data: bytes
    captions: list[str]


def read_tars(paths: Sequence[str | Path]) -> Iterator[Pair]:
    """Pairs of ``NAME.jpg`` and ``NAME.json`` (``{"captions": [...]}``), in order of name within each tar.

    Raises:
        UsageError: a file that is no tar, a photo without captions, captions without a photo, nothing at all.
    """
    for path in paths:
        photos: dict[str, bytes] = {}
        captions: dict[str, list[str]] = {}
        try:
            with tarfile.open(path) as tar:
                for member in tar:
                    file = tar.extractfile(member)
                    stem, _, suffix = member.name.rpartition(".")
                    if file is None or suffix not in ("jpg", "json"):
                        continue
                    if suffix == "jpg":
                        photos[stem] = file.read()
                    else:
                        captions[stem] = json.load(file)["captions"]
        except (OSError, tarfile.TarError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path}: not a tar of NAME.jpg and NAME.json with captions ({error})") from error
        if not photos:
            raise UsageError(f"{path}: holds no photo (NAME.jpg with NAME.json)")
        for name in sorted(photos.keys() | captions.keys()):
            if name not in photos:
                raise UsageError(f"{path}: {name}.json has captions of a photo that is not there ({name}.jpg)")
            if not captions.get(name):
                raise UsageError(f"{path}: {name}.jpg has no captions ({name}.json)")
            yield Pair(name, photos[name], captions[name])
