"""The pages with a small random model: a token, a search, a photo, and a failure that is retried."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ldot_milvus.ingest.journal import journal_of
from ldot_milvus.settings import Settings
from tests.browser.serving import ingest, serving, until
from tests.conftest import PHOTOS
from tests.service_process import Service

TOKEN = "correct horse"
NAMES = ["000000568290.jpg", "000000252639.jpg", "000000214753.jpg"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("smoke") / "store"


@pytest.fixture(scope="module")
def service(browser, store: Path, tiny_model: str) -> Iterator[Service]:
    ingest(store, tiny_model, {name: {} for name in NAMES})
    with serving(store, model=tiny_model, serve_token=TOKEN, serve_ingest="true") as running:
        yield running


def signed_in(new_page, service: Service, path: str):
    page = new_page(service.url(path), allow="401").page
    page.fill("#token", TOKEN)
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog.token", state="detached")
    return page


def test_a_token_is_asked_for_and_a_search_finds_photos(service: Service, new_page) -> None:
    page = new_page(service.url("/"), allow="401").page
    page.fill("#token", "a guess")
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog.token .problem:not(:empty)")
    page.fill("#token", TOKEN)
    page.keyboard.press("Enter")
    page.wait_for_selector(".heading")
    page.fill("#text", "a long red bus")
    page.keyboard.press("Enter")
    page.wait_for_selector(".card")
    assert page.locator(".card").count() == len(NAMES)
    until(page, "[...document.querySelectorAll('.card img')].every(image => image.naturalWidth > 0)")
    page.locator(".card a").first.click()
    page.wait_for_selector("#viewer .word")
    assert page.locator(".word").all_inner_texts() == ["a", "long", "red", "bus"]
    page.keyboard.press("Escape")
    assert not page.locator("#viewer").is_visible()


@pytest.mark.slow
def test_a_failure_is_told_with_its_reason_and_retried(
    service: Service, new_page, store: Path, tiny_model: str, run, tmp_path: Path
) -> None:
    broken = tmp_path / "<b>broken<b>.jpg"
    broken.write_bytes(b"\xff\xd8 not a photo")
    env = {"LDOT_STORE": f"faiss:{store}", "LDOT_MODEL": tiny_model}
    assert run("celery", "-A", "workers", "enqueue", str(broken), env=env).returncode == 1
    page = signed_in(new_page, service, "/runs")
    page.wait_for_selector("#failures tr")
    row = page.locator("#failures tr").first
    assert str(broken) in row.inner_text()
    assert "1 failed" in page.locator(".run").first.inner_text()
    shutil.copy(PHOTOS / "000000519208.jpg", broken)
    row.get_by_role("button").click()
    page.wait_for_selector("#failed", state="hidden")
    until(page, "document.querySelectorAll('.run').length === 2")
    assert "1 added" in page.locator(".run").first.inner_text()
    assert journal_of(Settings(store=f"faiss:{store}")).failures() == []
