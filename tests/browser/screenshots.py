"""Write the pictures of docs/images: ``python -m tests.browser.screenshots [FOLDER]``, with Chromium and Playwright."""

from __future__ import annotations

import io
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from ldot_milvus.images import content_id
from ldot_milvus.ingest.journal import FailedItem, Run, journal_of
from ldot_milvus.ingest.journal.base import sums_of
from ldot_milvus.ingest.target import Target
from ldot_milvus.ingest.tasks import INGEST
from ldot_milvus.settings import Settings
from tests.browser.conftest import CHROMIUM
from tests.browser.serving import ARGUMENTS, ingest, serving, settle, watch
from tests.conftest import PHOTOS, ROOT
from tests.service_process import Service

PHONE = {"viewport": {"width": 390, "height": 844}}
RIDERS, BEAR = "000000214753.jpg", "000000229997.jpg"
COLOURS = 246  # of a picture, besides those of the page: they keep it below 300 kB
FLAT = [
    (0xFB, 0xFA, 0xF8), (0xFF, 0xFF, 0xFF), (0x14, 0x15, 0x18), (0x1D, 0x1F, 0x24), (0x33, 0x48, 0x9E),
    (0x4A, 0x4A, 0x4D),
]  # fmt: skip


def main(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as kept, sync_playwright() as driver:
        store = Path(kept) / "store"
        names = sorted(path.name for path in PHOTOS.glob("*.jpg"))
        ingest(store, "ldot-mini", {name: {} for name in names})
        fill_journal(f"faiss:{store}")
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        with serving(store) as service:
            for name, take in STATES.items():
                save(take(browser, service), folder / f"page-{name}.png")
        browser.close()


def fill_journal(store: str) -> None:
    """Record two runs, of which one goes on, and two failures."""
    settings = Settings(store=store)
    journal, target = journal_of(settings), Target.of(settings)
    failed = [
        FailedItem("/photos/2024/IMG_0412.jpg", "truncated: 5,000 of 61,440 bytes", "", INGEST.name, target, {}),
        FailedItem(str(PHOTOS / RIDERS), "no permission to read it", "", INGEST.name, target, {"path": "x"}, attempt=2),
    ]
    for items, done, ago in ((51, 51, 3600), (12_000, 4_480, 420)):
        run = replace(Run.new(INGEST.name, target, items), started=time.time() - ago)
        journal.start(run)
        journal.begin(run.id, "0")
        mine = [replace(item, run_id=run.id) for item in failed] if done < items else []
        journal.end(run.id, "0", sums_of(done, {"added": done - len(mine), "failed": len(mine)}, {}, []), mine)


def save(page, path: Path) -> None:
    """Write what a page shows, with few colours."""
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    palette = image.quantize(COLOURS, method=Image.Quantize.MAXCOVERAGE)
    palette.putpalette([*palette.getpalette()[: 3 * COLOURS], *(value for colour in FLAT for value in colour)])
    image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)
    page.context.close()
    print(f"{path}: {path.stat().st_size:,} bytes")


def show(browser, service: Service, query: str, selector: str, **options):
    page = watch(browser, service.url(f"/{query}"), **{"viewport": {"width": 1000, "height": 640}, **options}).page
    page.wait_for_selector(selector)
    settle(page)
    return page


def photo(browser, service: Service, query: str, name: str, word: str, **options):
    id = content_id((PHOTOS / name).read_bytes())
    page = show(browser, service, f"?q={query}&open={id}", ".word", **options)
    page.get_by_role("button", name=word, exact=True).hover()
    page.wait_for_timeout(400)  # the light fades in
    return page


def filters(browser, service: Service):
    page = show(browser, service, '?q=a+long+red+bus&filter={"metadata.dataset":"COCO val2017"}', ".card")
    page.click("#filter-button")
    settle(page)
    return page


def dropped(browser, service: Service):
    page = show(browser, service, "", ".heading")
    page.set_input_files("#file", PHOTOS / BEAR)
    page.wait_for_selector(".card")
    settle(page)
    return page


def error(browser, service: Service):
    page = show(browser, service, "", ".heading")
    page.route("**/v1/search", lambda route: route.abort())
    page.fill("#text", "a long red bus")
    page.keyboard.press("Enter")
    page.wait_for_selector(".choices button:text('Try again')")
    return page


STATES = {
    "empty": lambda browser, service: show(browser, service, "", ".heading"),
    "results": lambda browser, service: show(browser, service, "?q=a+long+red+bus", ".card"),
    "words": lambda browser, service: photo(
        browser, service, "two+people+riding+horses+on+the+beach", RIDERS, "horses"
    ),
    "filters": filters,
    "photo": dropped,
    "nothing": lambda browser, service: show(browser, service, "?q=two+dogs&min=50", ".heading"),
    "error": error,
    "dark": lambda browser, service: show(
        browser, service, "?q=a+bear+and+some+vultures+in+the+grass", ".card", color_scheme="dark"
    ),
    "phone": lambda browser, service: show(browser, service, "?q=a+long+red+bus", ".card", **PHONE),
    "phone-words": lambda browser, service: photo(
        browser, service, "a+bear+and+some+vultures", BEAR, "bear", color_scheme="dark", **PHONE
    ),
    "runs": lambda browser, service: show(browser, service, "runs", ".failures img"),
    "like": lambda browser, service: show(
        browser, service, f"?like={content_id((PHOTOS / RIDERS).read_bytes())}", ".card"
    ),
}

if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images")
