"""The command ``ldot search``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ldot_milvus.cli.common import (
    collection_options,
    embedder_of,
    one_line_errors,
    parse_filter,
    settings_with,
)
from ldot_milvus.cli.output import say, say_json

if TYPE_CHECKING:
    from ldot_milvus.search.hits import Hit
    from ldot_milvus.search.query import Part
    from ldot_milvus.search.retriever import Retriever
    from ldot_milvus.settings import Settings


@click.command()
@click.argument("texts", nargs=-1, metavar='"TEXT"...')
@click.option("--image", metavar="FILE", help="Search by this photo instead of a text.")
@click.option(
    "--add",
    "added_texts",
    type=(float, str),
    multiple=True,
    metavar="WEIGHT TEXT",
    help="Add a text to the query, whose own weight is 1; a negative weight leads away from the text. Repeatable.",
)
@click.option(
    "--add-image",
    "added_images",
    type=(float, Path),
    multiple=True,
    metavar="WEIGHT FILE",
    help="Add a photo to the query in the same way. Repeatable.",
)
@click.option("-k", "k", type=int, default=5, show_default=True, metavar="K", help="Number of results.")
@click.option(
    "--rerank",
    type=int,
    metavar="M",
    help="Re-rank the first M candidates; 0 ranks by dot product alone (default: 20).",
)
@click.option(
    "--filter",
    "filter_",
    metavar="JSON",
    help='Search only rows that match, such as \'{"width": {"$gte": 640}}\' (docs/filters.md).',
)
@click.option(
    "--kind",
    type=click.Choice(["image", "text"]),
    default="image",
    show_default=True,
    help="Kind of rows to search: photos or texts.",
)
@click.option(
    "--min-probability",
    type=float,
    metavar="P",
    help="Show only results with at least this probability, from 0 to 1; the page shows the others greyed.",
)
@collection_options
@click.option(
    "--server",
    metavar="URL",
    help="Ask this service of ldot serve instead of loading the model (default: $LDOT_SERVER or none).",
)
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
@click.option("--html", metavar="OUT.html", help="Also write a self-contained HTML page with the photos.")
@one_line_errors
def search(
    texts: tuple[str, ...],
    image: str | None,
    added_texts: tuple[tuple[float, str], ...],
    added_images: tuple[tuple[float, Path], ...],
    k: int,
    rerank: int | None,
    filter_: str | None,
    kind: str,
    min_probability: float | None,
    collection: str | None,
    store: str | None,
    model: str | None,
    reranker: str | None,
    server: str | None,
    as_json: bool,
    html: str | None,
) -> None:
    """Search a collection by text or by photo.

    TEXT describes the photo, such as "two dogs in the snow". Each TEXT is a search of its own. Texts and photos can be
    added to it: ldot search "two dogs" --add 0.5 "snow" --add -0.5 "people" --add-image 0.3 mine.jpg
    """
    from ldot_milvus.errors import UsageError

    if bool(texts) == bool(image):
        raise UsageError("give a text to search for or --image FILE, but not both")
    if k < 1:
        raise UsageError(f"-k is {k}: give 1 or more")
    if rerank is not None and rerank < 0:
        raise UsageError(f"--rerank is {rerank}: give 0 or more")
    if any(not text.strip() for text in texts):
        raise UsageError("the text is empty: describe what to look for")
    if min_probability is not None and not 0 <= min_probability <= 1:
        raise UsageError(f"--min-probability is {min_probability:g}: give a number from 0 to 1")
    added: list[Part] = [*added_texts, *added_images]
    composed: list[list[Part]] = [[(1.0, query), *added] for query in texts or [Path(image or "")]] if added else []
    if composed:
        _check(composed, min_probability)
    options: dict[str, Any] = {"k": k, "rerank": rerank, "filter": parse_filter(filter_), "kind": kind}
    options["min_probability"] = 0.0 if html and min_probability is not None else min_probability  # for the page
    settings = settings_with(collection=collection, store=store, model=model, reranker=reranker, server=server)
    if settings.server is not None and (server is not None or not (store or model or reranker)):
        if store or model or reranker:
            raise UsageError("--store, --model and --reranker are those of the service: leave them out with --server")
        from ldot_milvus.client import Client

        named = settings.collection if settings.origin("collection") != "default" else None
        with Client(settings.server, settings.serve_secret, collection=named) as client:
            results = _results(client.search, texts, image, composed, options)
    else:
        with _retriever(settings) as retriever:
            results = _results(retriever.search, texts, image, composed, options)
    if html:
        from ldot_milvus.search.page import write_page
        from ldot_milvus.search.probability import at_least

        write_page(html, results, min_probability=min_probability)
        results = [(query, at_least(hits, min_probability)) for query, hits in results]
    if as_json:
        entries: list[dict[str, Any]] = [{"query": query} for query, _ in results]
        for entry, parts in zip(entries, composed, strict=False):
            entry["parts"] = [_part(*part) for part in parts]
        for entry, (_, hits) in zip(entries, results, strict=True):
            entry["hits"] = [hit.to_dict() for hit in hits]
        say_json(entries if len(entries) > 1 else entries[0], indent=2)
    else:
        for query, hits in results:
            _print_hits(query, hits)
    if html:
        say(f"Page: {html}", err=as_json)


def _check(composed: list[list[Part]], min_probability: float | None) -> None:
    from ldot_milvus.errors import UsageError
    from ldot_milvus.search.query import check_parts

    for parts in composed:
        check_parts(parts)
    if min_probability is not None:
        raise UsageError("--min-probability: a probability is that of one text with a photo: leave it out")


@contextmanager
def _retriever(settings: Settings) -> Iterator[Retriever]:
    from ldot_milvus.errors import CollectionNotFound
    from ldot_milvus.stores import open_store

    with open_store(settings.store, settings.collection) as opened:
        if opened.dim is None:
            raise CollectionNotFound(
                f"{settings.store} has no collection {settings.collection!r}: "
                'ingest photos first with "celery -A workers enqueue PATH..."'
            )
        from ldot_milvus.models.registry import find_model
        from ldot_milvus.search.retriever import Retriever, check_model

        check_model(opened, find_model(settings.model))  # fails early: loading the model takes seconds
        yield Retriever(embedder_of(settings), opened, reranker=settings.reranker)


def _results(
    search: Callable[..., list[Hit]],
    texts: tuple[str, ...],
    image: str | None,
    composed: list[list[Part]],
    options: dict[str, Any],
) -> list[tuple[str, list[Hit]]]:
    if composed:
        return [(_heading(parts), search(parts, **options)) for parts in composed]
    if image is not None:
        return [(image, search(image=image, **options))]
    return [(text, search(text, **options)) for text in texts]


def _heading(parts: list[Part]) -> str:
    (_, first), *others = parts
    added = [f"{'-' if weight < 0 else '+'} {abs(weight):g} x {content!s}" for weight, content in others]
    return " ".join([str(first), *added])


def _part(weight: float, content: object) -> dict[str, Any]:
    return {"weight": weight, "text" if isinstance(content, str) else "image": str(content)}


def _print_hits(query: str, hits: list[Hit]) -> None:
    say("", query)
    if not hits:
        say("  nothing found")
    for rank, hit in enumerate(hits, start=1):
        reranked = "" if hit.rerank_score is None else f"  rerank {hit.rerank_score:7.3f}"
        probability = "" if hit.probability is None else f"  probability {hit.probability:4.2f}"
        caption = hit.caption.split("\n")[0]
        scores = f"score {hit.score:7.3f}{reranked}{probability}"
        say(f"  {rank:>3}. {scores}  {hit.source or hit.id}  {caption}".rstrip())
