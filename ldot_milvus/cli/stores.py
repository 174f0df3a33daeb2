"""``ldot migrate`` and ``ldot reindex``."""

from __future__ import annotations

import click

from ldot_milvus.cli.common import one_line_errors, settings_with


@click.command()
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@click.option("--collection", help="Collection to copy (default: LDOT_COLLECTION, 'images').")
@click.option("--regions-from", metavar="ADDRESS", help="Region store of FROM (default: beside a local store).")
@click.option("--regions-to", metavar="ADDRESS", help="Region store of TO (default: beside a local store).")
@one_line_errors
def migrate(source: str, target: str, collection: str | None, regions_from: str | None, regions_to: str | None) -> None:
    """Copy a collection from one store to another, region data included.

    Addresses are those of LDOT_STORE: faiss:PATH, PATH.db, http://HOST:19530. Run it again after an interruption: what
    is there already is not sent again. The copy is checked by count and by the checksums of a sample.
    """
    from tqdm import tqdm

    from ldot_milvus.errors import UsageError
    from ldot_milvus.stores import open_store
    from ldot_milvus.stores.migration import migrate as copy
    from ldot_milvus.stores.regions import region_store_address, region_stores
    from ldot_milvus.stores.registry import parse_address

    if parse_address(source).address == parse_address(target).address:
        raise UsageError(f"FROM and TO are both {source}: name two stores")
    name = settings_with(collection=collection).collection
    with open_store(source, name) as old, open_store(target, name) as new:
        place_from = region_store_address(source, regions_from)
        place_to = region_store_address(target, regions_to)
        regions = region_stores(place_from, place_to) if place_from != place_to else []
        with tqdm(total=old.count(), unit=" rows", disable=None) as bar:
            done = copy(old, new, regions, progress=bar.update)
    click.echo(f"{done.rows} rows of {source}: {done.copied} copied, {done.rows - done.copied} were there already")
    click.echo(f"region data of {done.regions} photos copied; {done.checked} rows compared by checksum: all the same")


@click.command()
@click.option("--collection", help="Collection to build anew (default: LDOT_COLLECTION, 'images').")
@click.option("--store", help="Address of the store (default: LDOT_STORE, 'faiss:./ldot-data').")
@click.option("--model", help="Read every photo again and encode it with this model.")
@click.option("--index", help="Index to build, such as HNSW:M=32 (default: LDOT_INDEX, 'auto').")
@one_line_errors
def reindex(collection: str | None, store: str | None, model: str | None, index: str | None) -> None:
    """Build a collection anew with another index or another model, and put it in the old one's place.

    Searches find the old rows until the new ones are complete.
    """
    from tqdm import tqdm

    from ldot_milvus.ingest.reindex import rebuild_index, reembed
    from ldot_milvus.stores import open_store

    settings = settings_with(collection=collection, store=store, index=index)
    with (
        open_store(settings.store, settings.collection, settings.index) as opened,
        tqdm(total=opened.count(), unit=" rows", disable=None) as bar,
    ):
        if model is None:
            rows = rebuild_index(opened, progress=bar.update)
            click.echo(f"{rows} rows of {settings.collection!r} have a new index")
        else:
            report = reembed(
                opened, model, region_store=settings.region_store, device=settings.device, dtype=settings.dtype,
                progress=bar.update,
            )  # fmt: skip
            click.echo(f"{report.added} rows of {settings.collection!r} have vectors of {model}")
