"""The command ``ldot serve``."""

from __future__ import annotations

import click

from ldot_milvus.cli.common import collection_options, one_line_errors, settings_with


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8080, show_default=True, metavar="PORT", help="Port to listen on."
)
@collection_options
@one_line_errors
def serve(
    host: str, port: int, collection: str | None, store: str | None, model: str | None, reranker: str | None
) -> None:
    """Serve searches over HTTP, and a page to search with.

    The model is loaded once, and queries of several clients are computed together. docs/serve.md describes the routes,
    the limits, and what is exposed. Needs pip install 'ldot-milvus[serve]'.
    """
    from ldot_milvus.errors import UsageError

    settings = settings_with(collection=collection, store=store, model=model, reranker=reranker)
    try:
        from ldot_milvus.serve.running import run
    except ImportError as error:
        raise UsageError(f"{error}: ldot serve needs pip install 'ldot-milvus[serve]'") from error
    from ldot_milvus.models.registry import find_model, find_reranker
    from ldot_milvus.search.retriever import check_model
    from ldot_milvus.stores import open_store

    files = find_model(settings.model)
    find_reranker(settings.reranker, files)
    with open_store(settings.store, settings.collection) as opened:
        check_model(opened, files)  # fails early; a collection that is missing may come later
    run(settings, host, port)
