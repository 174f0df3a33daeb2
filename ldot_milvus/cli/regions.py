"""``ldot regions``."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING

import click

from ldot_milvus.cli.common import one_line_errors, settings_with

if TYPE_CHECKING:
    from ldot_milvus.sources import Source


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--out", required=True, metavar="DIR", help="A new folder for the features.")
@click.option("--format", type=click.Choice(["lmdb", "npz", "tsv"]), default="lmdb", show_default=True,
              help="The authors' LMDB, a folder of npz files, or the public TSV.")  # fmt: skip
@click.option("--show", is_flag=True, help="Also write DIR/show/NAME.jpg: photos with boxes, names and attributes.")
@click.option("--detector", metavar="DIR", help="Folder or hub id (default: unc-nlp/frcnn-vg-finetuned).")
@click.option("--boxes", type=click.Choice(["uniter", "reference"]), default="uniter", show_default=True,
              help="How boxes are chosen: see docs/checkpoints.md.")  # fmt: skip
@click.option("--sides", metavar="SHORTxLONG", default="600x1000", show_default=True,
              help="Pixels to scale photos to; 800x1333 in the public PyTorch code.")  # fmt: skip
@click.option("--fast", is_flag=True, help="Two fifths of the time, and slightly other features.")
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
    """Extract bottom-up-attention regions of photos, in the formats that training and "ldot eval" read.

    PATH is what "enqueue" takes: files, folders, globs, tars, lists. LDOT_DEVICE and LDOT_DTYPE hold here too. Exit
    status: 0, or 1 if some photos failed (they are listed), or 2 if nothing could be done.
    """
    from tqdm import tqdm

    from ldot_milvus.models.loading import choose_device, choose_dtype
    from ldot_milvus.regions import BottomUpExtractor
    from ldot_milvus.regions.bottom_up.extractor import PUBLISHED
    from ldot_milvus.regions.export import extract
    from ldot_milvus.sources import expand

    sources = list(expand(paths))
    settings = settings_with()
    short_side, long_side = _sides(sides)
    device = choose_device(settings.device)
    extractor = BottomUpExtractor.from_pretrained(
        detector or PUBLISHED, boxes=boxes, short_side=short_side, long_side=long_side, fast=fast, device=device,
        dtype=choose_dtype(settings.dtype, device),
    )  # fmt: skip
    photos = ((source.name, partial(_photo, source)) for source in sources)
    with tqdm(total=len(sources), unit=" photos", disable=None, leave=False) as bar:
        done = extract(photos, extractor, out, format=format, show=show, progress=bar.update)
    click.echo(f"{out}: {done.photos} photos, {done.regions} regions of {extractor.dim} features")
    if show:
        click.echo(f"Pictures: {out}/show")
    for name, reason in done.failed.items():
        click.echo(f"  failed: {name}: {reason}", err=True)
    sys.exit(1 if done.failed else 0)


def _photo(source: Source) -> bytes:
    from ldot_milvus.errors import InputError
    from ldot_milvus.sources import read

    if source.kind != "image":
        raise InputError("this is no photo")
    return read(source)


def _sides(text: str) -> tuple[int, int]:
    from ldot_milvus.errors import UsageError

    short, _, long = text.partition("x")
    if not (short.isdecimal() and long.isdecimal()):
        raise UsageError(f"--sides is {text!r}: give the short and the long side in pixels, such as 600x1000")
    return int(short), int(long)
