"""The commands ``ldot migrate`` and ``ldot reindex``."""

from __future__ import annotations

import click

from ldot_milvus.cli.common import COLLECTION_HELP, STORE_HELP, one_line_errors, settings_with


@click.command()
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@click.option("--collection", metavar="NAME", help=COLLECTION_HELP)
@click.option(
    "--regions-from", metavar="ADDRESS", help="Region store of FROM (default: $LDOT_REGION_STORE or its own)."
)
@click.option("--regions-to", metavar="ADDRESS", help="Region store of TO (default: $LDOT_REGION_STORE or its own).")
@one_line_errors
def migrate(source: str, target: str, collection: str | None, regions_from: str | None, regions_to: str | None) -> None:
    """Copy a collection with its region data to another store.

    FROM and TO are store addresses: faiss:PATH, PATH.db (Milvus Lite) or http://HOST:19530 (Milvus).

    After an interruption, run the command again: rows that TO already has are not sent again. At the end, the row
    counts and the checksums of a sample are compared.
    """
    from tqdm import tqdm

    from ldot_milvus.errors import UsageError
    from ldot_milvus.stores import open_store
    from ldot_milvus.stores.migration import migrate as copy
    from ldot_milvus.stores.region_place import RegionPlace
    from ldot_milvus.stores.regions import RegionStore, region_stores
    from ldot_milvus.stores.registry import parse_address

    if parse_address(source).address == parse_address(target).address:
        raise UsageError(f"FROM and TO are both {source}: name two stores")
    name = settings_with(collection=collection).collection
    with open_store(source, name) as old, open_store(target, name) as new:
        place_to = RegionPlace(new, regions_to)
        address_from, address_to = RegionPlace(old, regions_from).find(), place_to.find()
        regions = region_stores(address_from, address_to) if address_from != address_to else []
        with tqdm(total=old.count(), unit=" rows", disable=None) as bar:
            result = copy(old, new, regions, progress=bar.update)
        if RegionStore(address_to, "").fingerprints():
            place_to.claim()
    existing = result.rows - result.copied
    click.echo(f"{result.rows} rows of {source}: {result.copied} copied, {existing} already in {target}")
    click.echo(f"region data of {result.regions} photos copied; checksums of {result.checked} rows compared: all equal")


@click.command()
@click.option("--collection", metavar="NAME", help=COLLECTION_HELP)
@click.option("--store", metavar="ADDRESS", help=STORE_HELP)
@click.option("--model", metavar="NAME", help="Read every photo again and encode it with this model.")
@click.option("--index", metavar="SPEC", help="Index to build, such as HNSW:M=32 (default: $LDOT_INDEX or 'auto').")
@one_line_errors
def reindex(collection: str | None, store: str | None, model: str | None, index: str | None) -> None:
    """Rebuild a collection with another index or model.

    The new collection replaces the old one when it is complete. Until then, searches use the old one.
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
            click.echo(f"collection {settings.collection!r}: rebuilt the index of {rows} rows")
        else:
            report = reembed(
                opened, model, reranker=settings.reranker, region_store=settings.region_store,
                device=settings.device, dtype=settings.dtype,
                progress=bar.update,
            )  # fmt: skip
            click.echo(f"collection {settings.collection!r}: encoded {report.added} rows with {model}")
