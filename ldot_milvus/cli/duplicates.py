"""The command ``ldot duplicates``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ldot_milvus.cli.common import COLLECTION_HELP, STORE_HELP, one_line_errors, settings_with
from ldot_milvus.cli.output import say, say_json

if TYPE_CHECKING:
    from ldot_milvus.search.duplicates import Duplicate


@click.command()
@click.option("--threshold", type=float, metavar="COSINE", help="Least cosine of two photos' vectors (default: 0.9).")
@click.option("--collection", metavar="NAME", help=COLLECTION_HELP)
@click.option("--store", metavar="ADDRESS", help=STORE_HELP)
@click.option("--json", "as_json", is_flag=True, help="Print the groups as JSON.")
@click.option("--html", metavar="OUT.html", help="Also write a self-contained HTML page with the photos.")
@one_line_errors
def duplicates(
    threshold: float | None, collection: str | None, store: str | None, as_json: bool, html: str | None
) -> None:
    """List groups of photos that show the same, such as scaled, re-encoded, trimmed or mirrored copies.

    Photos of a group have near vectors, and the photos themselves are compared by a perceptual hash. The best photo
    (readable, most pixels) is the first of its group. Nothing is changed or deleted.
    """
    from tqdm import tqdm

    from ldot_milvus.search.duplicates import find_duplicates
    from ldot_milvus.search.nearness import THRESHOLD
    from ldot_milvus.stores import open_store

    threshold = THRESHOLD if threshold is None else threshold
    settings = settings_with(collection=collection, store=store)
    with open_store(settings.store, settings.collection) as opened:
        photos = opened.count({"kind": "image"})
        with tqdm(total=photos, unit=" photos", disable=None, leave=False) as bar:
            groups = find_duplicates(opened, threshold=threshold, progress=bar.update)
    if as_json:
        entries = [{"photos": [_fields(duplicate) for duplicate in group]} for group in groups]
        result = {"threshold": threshold, "photos": photos, "groups": entries}
        say_json(result, indent=2)
    else:
        for group in groups:
            _print_group(group)
        members = sum(map(len, groups))
        say(f"{len(groups)} groups with {members} of {photos} photos")
    if html:  # written last: the groups are printed even if it fails
        from ldot_milvus.search.page import write_groups

        write_groups(html, groups)
        say(f"Page: {html}", err=as_json)


def _fields(duplicate: Duplicate) -> dict[str, Any]:
    record = duplicate.record
    return {
        "id": record.id, "source": record.source, "namespace": record.namespace, "width": record.width,
        "height": record.height, "cosine": duplicate.cosine, "readable": duplicate.readable,
    }  # fmt: skip


def _print_group(group: list[Duplicate]) -> None:
    for duplicate in group:
        record = duplicate.record
        size = f"{record.width} x {record.height}"
        unread = "" if duplicate.readable else "  (cannot be read: compared by its vector alone)"
        say(f"{size:>13}  {duplicate.cosine:.3f}  {record.source or record.id}{unread}")
    say("")
