"""Fixtures of the tests in a real browser: Chromium, pages that report what must not happen, and running services."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.browser.serving import ARGUMENTS, Watched, watch

playwright = pytest.importorskip("playwright.sync_api", reason="these tests need: pip install playwright")

CHROMIUM = os.environ.get("LDOT_TEST_CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"


@pytest.fixture(scope="module")  # its event loop runs in this thread, where other modules have asynchronous tests
def browser() -> Iterator:
    if not Path(CHROMIUM).is_file():
        pytest.skip("these tests need Chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture
def new_page(browser) -> Iterator[Callable[..., Watched]]:
    """Open pages, each in a browser of its own. No script may fail, and nothing may come from another host."""
    opened: list[Watched] = []

    def make(url: str, **options) -> Watched:
        opened.append(watch(browser, url, **options))
        return opened[-1]

    yield make
    for one in opened:
        one.page.context.close()
        assert not one.problems
