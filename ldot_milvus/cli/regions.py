"""The command ``ldot regions``."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING

import click

from ldot_milvus.cli.common import one_line_errors, settings_with
from ldot_milvus.cli.output import say

if TYPE_CHECKING:
    from ldot_milvus.sources import Source


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--out", required=True, metavar="DIR", help="New folder for the features.")
@click.option(
    "--format",
    type=click.Choice(["lmdb", "npz", "tsv"]),
    default="lmdb",
    show_default=True,
    help="LMDB of LightningDOT, folder of npz files, or TSV of bottom-up attention.",
)
@click.option(
    "--show", is_flag=True, help="Also write DIR/show/NAME.jpg: the photo with boxes, object names and attributes."
)
@click.option("--detector", metavar="DIR", help="Detector: folder or hub id (default: unc-nlp/frcnn-vg-finetuned).")
@click.option(
    "--boxes",
    type=click.Choice(["uniter", "reference"]),
    default="uniter",
    show_default=True,
    help="Box selection: as in UNITER, or as in the public PyTorch code (docs/checkpoints.md).",
)
@click.option(
    "--sides",
    metavar="SHORTxLONG",
    default="600x1000",
    show_default=True,
    help="Scale photos to these sides in pixels; the public PyTorch code uses 800x1333.",
)
@click.option("--fast", is_flag=True, help="Take two fifths of the time and compute slightly different features.")
@one_line_errors
def regions(
    paths: tuple[str, ...],
    out: str,
    format: str,
    show: bool,
    detector: str | None,
    boxes: str,
    sides: str,
    fast: bool,
) -> None:
    """Extract bottom-up-attention region features from photos.

    PATH is a photo, a folder, a glob pattern, a tar or a list, as for "celery -A workers enqueue". "ldot train" and
    "ldot eval" read the output. LDOT_DEVICE and LDOT_DTYPE select the device and the precision.

    Exit status: 0 if all photos succeeded, 1 if some failed (they are listed), 2 if nothing was done.
    """
    settings = settings_with()  # before torch is imported, which takes seconds
    from tqdm import tqdm

    from ldot_milvus.models.loading import choose_device, choose_dtype
    from ldot_milvus.regions import BottomUpExtractor
    from ldot_milvus.regions.bottom_up.extractor import PUBLISHED
    from ldot_milvus.regions.export import extract
    from ldot_milvus.sources import expand

    sources = list(expand(paths))
    short_side, long_side = _sides(sides)
    device = choose_device(settings.device)
    extractor = BottomUpExtractor.from_pretrained(
        detector or PUBLISHED, boxes=boxes, short_side=short_side, long_side=long_side, fast=fast, device=device,
        dtype=choose_dtype(settings.dtype, device),
    )  # fmt: skip
    photos = ((source.name, partial(_photo, source)) for source in sources)
    with tqdm(total=len(sources), unit=" photos", disable=None, leave=False) as bar:
        result = extract(photos, extractor, out, format=format, show=show, progress=bar.update)
    say(f"{out}: {result.photos} photos, {result.regions} regions of {extractor.dim} features")
    if show:
        say(f"Photos with boxes: {out}/show")
    for name, reason in result.failed.items():
        say(f"  failed: {name}: {reason}", err=True)
    sys.exit(1 if result.failed else 0)


def _photo(source: Source) -> bytes:
    from ldot_milvus.errors import InputError
    from ldot_milvus.sources import read

    if source.kind != "image":
        raise InputError("not a photo")
    return read(source)


def _sides(text: str) -> tuple[int, int]:
    from ldot_milvus.errors import UsageError

    short, _, long = text.partition("x")
    if not (short.isdecimal() and long.isdecimal()):
        raise UsageError(f"--sides is {text!r}: give the short and the long side in pixels, such as 600x1000")
    return int(short), int(long)
