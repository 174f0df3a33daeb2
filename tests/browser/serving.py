"""A service and browser pages for the tests of the pages, and for the pictures of docs/images."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ldot_milvus import Ingestor, Source, load_metadata, open_store
from tests.conftest import PHOTOS
from tests.service_process import Service

ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip

SECONDS = 40_000  # milliseconds that a state of a page may take on a busy machine


@dataclass
class Watched:
    """A page, and what must not happen in it."""

    page: Any
    problems: list[str] = field(default_factory=list)


def watch(browser, url: str, *, allow: str = "\0", **options) -> Watched:
    """Open an address in a browser of its own.

    Args:
        browser: from Playwright.
        url: the address, on this machine.
        allow: text of messages in the console that are expected.
        options: of the browser, such as its ``viewport``.
    """
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 860}, **options})
    context.set_default_timeout(SECONDS)
    watched = Watched(context.new_page())
    page, host = watched.page, url.split("/")[2]
    page.on("pageerror", lambda error: watched.problems.append(f"script: {error}"))
    page.on(
        "console",
        lambda told: (
            told.type == "error" and allow not in told.text and watched.problems.append(f"console: {told.text}")
        ),
    )
    page.on(
        "request",
        lambda sent: sent.url.split("/")[2:3] != [host] and watched.problems.append(f"another host: {sent.url}"),
    )
    page.goto(url)
    return watched


def until(page, condition: str) -> None:
    """Wait until a JavaScript expression is true. Playwright's own waiting would need ``eval`` in the page."""
    deadline = time.monotonic() + SECONDS / 1000
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(30)


def settle(page) -> None:
    """Wait until a page asks for nothing more, and shows the pictures that it has."""
    page.wait_for_load_state("networkidle")
    until(page, "[...document.images].filter(one => one.loading !== 'lazy').every(one => one.complete)")


def ingest(folder: Path, model: str, files: Mapping[str, Mapping[str, Any]], *, collection: str = "images") -> None:
    """Fill a collection.

    Args:
        folder: of the store.
        model: name of the model.
        files: what to change in the metadata of each sample photo, by its name.
        collection: name of the collection.
    """
    lines = load_metadata(str(PHOTOS / "photos.jsonl"))
    with open_store(f"faiss:{folder}", collection) as store:
        sources = []
        for name, extra in files.items():
            described = next(values for key, values in lines.items() if str(key).endswith(name))
            source = Source(str(PHOTOS / name), **described)
            sources.append(replace(source, **extra))
        report = Ingestor(store, model).ingest(sources)
        assert report.added == len(files), report


def repeat(folder: Path, count: int, *, collection: str) -> None:
    """Fill another collection with so many copies of a row of "images", without region data."""
    with open_store(f"faiss:{folder}", "images") as store, open_store(f"faiss:{folder}", collection) as other:
        row = next(iter(store.iterate(with_embeddings=True)))
        assert store.model is not None
        assert store.dim is not None
        other.bind(store.model, store.dim)
        other.upsert([replace(row, id=f"copy-{number}", caption=f"copy {number}") for number in range(count)])


@contextmanager
def serving(folder: Path, **settings: str) -> Iterator[Service]:
    """Run ``ldot serve`` over a store until the end of the block.

    Args:
        folder: of the store.
        settings: settings in lower case, without ``LDOT_``.
    """
    env = {f"LDOT_{name.upper()}": value for name, value in settings.items()}
    env |= {"LDOT_STORE": f"faiss:{folder}", "XDG_CACHE_HOME": str(folder.parent / "cache"), "OMP_NUM_THREADS": "1"}
    with Service(folder.parent, ["ldot", "serve", "--port", "{port}"], env) as service:
        service.wait_for("searches are answered")
        yield service
