"""``ldot search``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from ldot_milvus.cli.common import RERANKER_HELP, embedder_of, one_line_errors, parse_filter, settings_with

if TYPE_CHECKING:
    from ldot_milvus.search.retriever import Hit


@click.command()
@click.argument("texts", nargs=-1, metavar='"TEXT"...')
@click.option("--image", metavar="FILE", help="Search with a photo instead of a text.")
@click.option("-k", "k", type=int, default=5, show_default=True, help="How many answers.")
@click.option("--rerank", type=int, metavar="M", help="Re-rank the first M (default: 20; 0: dot product alone).")
@click.option("--filter", "filter_", metavar="JSON", help='For example \'{"width": {"$gte": 640}}\'.')
@click.option("--kind", type=click.Choice(["image", "text"]), default="image", show_default=True, help="What to find.")
@click.option("--collection", help="Collection to search (default: LDOT_COLLECTION, 'images').")
@click.option("--store", help="Address of the store (default: LDOT_STORE, 'faiss:./ldot-data').")
@click.option("--model", help="Model: packaged name, folder or hub id (default: LDOT_MODEL, 'ldot-mini').")
@click.option("--reranker", help=RERANKER_HELP)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--html", metavar="OUT.html", help="Also write one self-contained page with the pictures.")
@one_line_errors
def search(
    texts: tuple[str, ...],
    image: str | None,
    k: int,
    rerank: int | None,
    filter_: str | None,
    kind: str,
    collection: str | None,
    store: str | None,
    model: str | None,
    reranker: str | None,
    as_json: bool,
    html: str | None,
) -> None:
    """Find photos by describing them; several texts are several searches."""
    from ldot_milvus.errors import CollectionNotFound, UsageError

    if bool(texts) == bool(image):
        raise UsageError("give a text to search for, or --image FILE (one of them)")
    if k < 1:
        raise UsageError(f"-k is {k}: ask for at least 1 answer")
    if rerank is not None and rerank < 0:
        raise UsageError(f"--rerank is {rerank}: it must be 0 or more")
    if any(not text.strip() for text in texts):
        raise UsageError("the text is empty: describe what to look for")
    settings = settings_with(collection=collection, store=store, model=model, reranker=reranker)
    parsed = parse_filter(filter_)

    from ldot_milvus.stores import open_store

    with open_store(settings.store, settings.collection) as opened:
        if opened.dim is None:
            raise CollectionNotFound(
                f"there is no collection {settings.collection!r} in {settings.store}: "
                'ingest photos first with "celery -A workers enqueue PATH..."'
            )
        from ldot_milvus.models.registry import find_model
        from ldot_milvus.search.retriever import Retriever, check_model

        check_model(opened, find_model(settings.model))  # before seconds go into loading the model
        retriever = Retriever(embedder_of(settings), opened, reranker=settings.reranker)
        options: dict[str, Any] = {"k": k, "rerank": rerank, "filter": parsed, "kind": kind}
        answers = [(text, retriever.search(text, **options)) for text in texts]
        if image is not None:
            answers.append((image, retriever.search(image=image, **options)))
    if html:
        from ldot_milvus.search.page import write_page

        write_page(html, answers)
    if as_json:
        found = [{"query": query, "hits": [hit.to_dict() for hit in hits]} for query, hits in answers]
        click.echo(json.dumps(found if len(found) > 1 else found[0], ensure_ascii=False, indent=2))
    else:
        for query, hits in answers:
            _print_hits(query, hits)
    if html:
        click.echo(f"Page: {html}", err=as_json)


def _print_hits(query: str, hits: list[Hit]) -> None:
    click.echo(f"\n{query}")
    if not hits:
        click.echo("  nothing found")
    for place, hit in enumerate(hits, start=1):
        reranked = "" if hit.rerank_score is None else f"  rerank {hit.rerank_score:7.3f}"
        caption = hit.caption.split("\n")[0]
        click.echo(f"  {place:>3}. score {hit.score:7.3f}{reranked}  {hit.source or hit.id}  {caption}".rstrip())
