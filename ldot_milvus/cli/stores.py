"""The commands ``ldot migrate`` and ``ldot reindex``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from ldot_milvus.cli.common import COLLECTION_HELP, STORE_HELP, one_line_errors, settings_with
from ldot_milvus.cli.output import say

if TYPE_CHECKING:
    from ldot_milvus.settings import Settings
    from ldot_milvus.stores import VectorStore


@click.command()
@click.argument("source", metavar="[FROM]", required=False)
@click.argument("target", metavar="[TO]", required=False)
@click.option("--collection", metavar="NAME", help=COLLECTION_HELP)
@click.option(
    "--regions-from", metavar="ADDRESS", help="Region store of FROM (default: $LDOT_REGION_STORE or its own)."
)
@click.option("--regions-to", metavar="ADDRESS", help="Region store of TO (default: $LDOT_REGION_STORE or its own).")
@one_line_errors
def migrate(
    source: str | None, target: str | None, collection: str | None, regions_from: str | None, regions_to: str | None
) -> None:
    """Copy a collection to another store, or upgrade it in place.

    FROM and TO are store addresses: faiss:PATH, PATH.db (Milvus Lite) or http://HOST:19530 (Milvus).

    With FROM and TO, the collection and its region data are copied. At the end, the row counts and the checksums of a
    sample are compared.

    Without TO, the collection in FROM (default: $LDOT_STORE) is upgraded in place to the current schema version. It can
    be searched meanwhile. Nothing is encoded again.

    After an interruption, run the command again: it continues where it stopped.
    """
    from tqdm import tqdm

    from ldot_milvus.errors import UsageError
    from ldot_milvus.stores import open_store
    from ldot_milvus.stores.migration import migrate as copy
    from ldot_milvus.stores.region_place import RegionPlace
    from ldot_milvus.stores.regions import RegionStore, region_stores
    from ldot_milvus.stores.registry import parse_address

    settings = settings_with(collection=collection, store=source)
    source, name = settings.store, settings.collection
    if target is None:
        if regions_to is not None:
            raise UsageError("--regions-to is the region store of TO: name TO, or omit it")
        with open_store(source, name) as opened:
            say(_upgrade(opened, RegionPlace(opened, regions_from).find(to_write=True)))
        return
    if parse_address(source).address == parse_address(target).address:
        raise UsageError(f"FROM and TO are both {source}: name two stores, or omit TO to upgrade in place")
    with open_store(source, name) as old, open_store(target, name) as new:
        place_to = RegionPlace(new, regions_to)
        address_from, address_to = RegionPlace(old, regions_from).find(), place_to.find()
        regions = region_stores(address_from, address_to) if address_from != address_to else []
        with tqdm(total=old.count(), unit=" rows", disable=None) as bar:
            result = copy(old, new, regions, progress=bar.update)
        if RegionStore(address_to, "").fingerprints():
            place_to.claim()
    existing = result.rows - result.copied
    say(f"{result.rows} rows of {source}: {result.copied} copied, {existing} already in {target}")
    say(f"region data of {result.regions} photos copied; checksums of {result.checked} rows compared: all equal")


def _upgrade(store: VectorStore, region_address: str) -> str:
    """Upgrade a collection in place and return the outcome as one line."""
    from tqdm import tqdm

    from ldot_milvus.stores.base import SCHEMA_VERSION
    from ldot_milvus.stores.regions import region_stores
    from ldot_milvus.stores.upgrade import upgrade

    regions = [region_store for region_store, _ in region_stores(region_address, region_address)]
    with tqdm(unit=" rows", disable=None) as bar:
        done = upgrade(store, regions, progress=bar.update)
    name = f"collection {store.collection!r} of {store.address}"
    return f"{name} has schema version {SCHEMA_VERSION}: {done.changed} of {done.rows} rows got another id"


@click.command()
@click.option("--collection", metavar="NAME", help=COLLECTION_HELP)
@click.option("--store", metavar="ADDRESS", help=STORE_HELP)
@click.option("--model", metavar="NAME", help="Read every photo again and encode it with this model.")
@click.option(
    "--reranker",
    metavar="NAME",
    help="Make the region data of this re-ranker from the photos; vectors and old region data stay. With --model: the "
    "new model's re-ranker.",
)
@click.option("--index", metavar="SPEC", help="Index to build, such as HNSW:M=32 (default: $LDOT_INDEX or 'auto').")
@one_line_errors
def reindex(
    collection: str | None, store: str | None, model: str | None, reranker: str | None, index: str | None
) -> None:
    """Rebuild a collection with another index or model, or prepare it for another re-ranker.

    A new collection replaces the old one when it is complete. Until then, searches use the old one. On a Milvus server
    the command waits for an approximate index, measures its recall, and with "auto" builds another type below 0.95.

    With --reranker alone, the collection stays. Photos that have the re-ranker's region data are skipped, so after an
    interruption run the command again. Exit status: 0 if all photos have it at the end, 1 if some do not.
    """
    from tqdm import tqdm

    from ldot_milvus.errors import UsageError
    from ldot_milvus.ingest.reindex import rebuild_index, reembed
    from ldot_milvus.stores import open_store
    from ldot_milvus.stores.recall import Recall

    if reranker is not None and model is None and index is not None:
        raise UsageError("--reranker without --model does not touch the index: run the command once for each")
    settings = settings_with(collection=collection, store=store, index=index, reranker=reranker)
    if reranker is not None and model is None:
        _add_region_data(settings, reranker)
        return
    with (
        open_store(settings.store, settings.collection, settings.index) as opened,
        tqdm(total=opened.count(), unit=" rows", disable=None) as bar,
    ):
        if model is None:
            rows = rebuild_index(opened, progress=bar.update)
            recall = Recall.of(opened)
            say(
                f"collection {settings.collection!r}: rebuilt the index of {rows} rows"
                + (f"; {recall}" if recall else "")
            )
        else:
            report = reembed(
                opened, model, reranker=settings.reranker, region_store=settings.region_store,
                device=settings.device, dtype=settings.dtype,
                progress=bar.update,
            )  # fmt: skip
            say(f"collection {settings.collection!r}: encoded {report.added} rows with {model}")


def _add_region_data(settings: Settings, reranker: str) -> None:
    """Make the region data of a re-ranker, and print how many photos have it and what to do then."""
    from tqdm import tqdm

    from ldot_milvus.ingest.new_reranker import add_region_data
    from ldot_milvus.stores import open_store

    with (
        open_store(settings.store, settings.collection) as opened,
        tqdm(total=opened.count({"kind": "image"}), unit=" photos", disable=None, leave=False) as bar,
    ):
        report = add_region_data(
            opened, settings.model, reranker, region_store=settings.region_store, device=settings.device,
            dtype=settings.dtype, progress=bar.update,
        )  # fmt: skip
    counts = f"{report.present} of {report.photos} photos have the region data of {reranker} ({report.made} made now)"
    then = f"set LDOT_RERANKER={reranker}" if report.complete else "searches keep the old re-ranker; run this again"
    say(f"collection {settings.collection!r}: {counts}: {then}")
    if report.complete and report.former is not None:
        say(f"the old region data stays in {report.former}: delete this folder when no collection uses it")
    for failure in report.failed:
        say(f"  failed: {failure.source}: {failure.reason}", err=True)
    sys.exit(0 if report.complete else 1)
