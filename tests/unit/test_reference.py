"""Every public name has its entry in docs/reference, and every page its place in the README and in the navigation."""

from __future__ import annotations

import re

import pytest

import ldot_milvus
from tests.conftest import ROOT

DOCS = ROOT / "docs"
PAGES = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))


def test_every_public_name_has_an_entry() -> None:
    pages = "\n".join(path.read_text() for path in (DOCS / "reference").glob("*.md"))
    entries = re.findall(r"^::: ldot_milvus\.(\w+)$", pages, re.MULTILINE)
    assert sorted(entries) == [name for name in ldot_milvus.__all__ if name != "__version__"]


@pytest.mark.parametrize("page", PAGES)
def test_every_page_is_linked(page: str) -> None:
    assert re.search(rf"[:-] {re.escape(page)}$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    if page != "index.md" and (not page.startswith("reference/") or page == "reference/index.md"):
        assert f"](docs/{page})" in (ROOT / "README.md").read_text()
