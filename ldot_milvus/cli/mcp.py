"""The command ``ldot mcp``."""

from __future__ import annotations

import signal
from functools import partial

import click

from ldot_milvus.cli.common import (
    collection_options,
    one_line_errors,
    settings_with,
)
from ldot_milvus.cli.output import say


@click.command()
@click.option(
    "--http",
    metavar="HOST:PORT",
    help="Serve streamable HTTP at http://HOST:PORT/mcp instead of stdin and stdout; PORT alone takes 127.0.0.1.",
)
@click.option(
    "--allow-host",
    "names",
    multiple=True,
    metavar="NAME",
    help="Host name by which clients reach the HTTP server, besides HOST and this machine's name. Repeatable.",
)
@collection_options
@one_line_errors
def mcp(
    http: str | None,
    names: tuple[str, ...],
    collection: str | None,
    store: str | None,
    model: str | None,
    reranker: str | None,
) -> None:
    """Serve a collection to agents: an MCP server with the tool search_photos.

    Clients start the command themselves and speak to it over stdin and stdout; with --http it is a server for several
    clients, without authentication. Clients can search the collection and see small copies of its photos, nothing else.
    The model is loaded at the first search. Messages go to stderr. Needs pip install 'ldot-milvus[mcp]'.
    """
    from ldot_milvus.errors import UsageError

    # The process only reads, so it may end at any moment, also while a thread waits for a line from stdin.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if names and http is None:
        raise UsageError("--allow-host is for an HTTP server: give --http HOST:PORT too")
    settings = settings_with(collection=collection, store=store, model=model, reranker=reranker)
    try:
        from ldot_milvus.integrations.mcp import photo_server
        from ldot_milvus.integrations.mcp_transports import parse_host_port, serve_http, serve_stdio
    except ImportError as error:
        raise UsageError(str(error)) from error
    from ldot_milvus.http_server import is_loopback
    from ldot_milvus.models.registry import find_model
    from ldot_milvus.search.retriever import check_model
    from ldot_milvus.search.shared import shared_retriever, shared_store

    opened = shared_store(settings.store, settings.collection)
    check_model(opened, find_model(settings.model))  # fails early; a collection that is missing may come later
    server = photo_server(
        partial(shared_retriever, settings.store, settings.collection, settings.model, settings.reranker)
    )
    if http is None:
        serve_stdio(server)
        return

    def ready(url: str) -> None:
        say(f"Collection {opened.collection!r} of {opened.address}: {url}", err=True)
        if not is_loopback(parse_host_port(http)[0]):
            say("There is no password: everyone who reaches this address can search.", err=True)

    serve_http(server, http, names=names, ready=ready)
