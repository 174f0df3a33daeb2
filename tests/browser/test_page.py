"""The search page in a real browser, with the packaged model."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.browser.serving import ingest, repeat, serving, settle, until
from tests.conftest import PHOTOS
from tests.service_process import Service

pytestmark = pytest.mark.slow

HOSTILE = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script> & \"quoted\""
BUS, BEAR, RIDERS = "000000568290.jpg", "000000229997.jpg", "000000214753.jpg"
FILES = {
    BUS: {"metadata": {"album": "city", "rating": 4}},
    "000000252639.jpg": {"metadata": {"album": "city"}},
    BEAR: {"metadata": {"album": "animals"}},
    RIDERS: {"metadata": {"album": "sea", "exif.Make": "Canon"}},
    "000000519208.jpg": {"metadata": {"album": "animals"}},
    "000000349860.jpg": {"caption": HOSTILE, "metadata": {HOSTILE: HOSTILE, "link": "javascript:window.hacked=1"}},
}


@pytest.fixture(scope="module")
def service(browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    store = tmp_path_factory.mktemp("page") / "store"
    ingest(store, "ldot-mini", FILES)
    ingest(store, "ldot-mini", {BEAR: {}}, collection="other")
    repeat(store, 75, collection="many")
    with serving(store) as running:
        yield running


def opened(new_page, service: Service, query: str = "", **options):
    page = new_page(service.url("/" + query), **options).page
    page.wait_for_selector(".card, .heading")
    settle(page)
    return page


def state(page) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(page.url).query).items()}


def first_source(page) -> str:
    return page.evaluate("document.querySelector('.card').dataset.id")


def test_a_text_finds_photos_and_the_back_button_works(service: Service, new_page) -> None:
    page = opened(new_page, service)
    example = page.locator(".choices button").first
    words = example.inner_text()
    example.click()
    page.wait_for_selector(".card")
    assert state(page) == {"q": words}
    page.fill("#text", "a long red bus")
    page.keyboard.press("Enter")
    until(page, "document.querySelector('.caption')?.textContent.includes('red extra long bus')")
    assert state(page) == {"q": "a long red bus"}
    assert "photos" in page.locator("#status").inner_text()
    assert all(image.get_attribute("alt") for image in page.locator(".card img").all())
    assert "%" in page.locator(".numbers").first.inner_text()
    page.go_back()
    until(page, f"document.querySelector('#text').value === {json.dumps(words)}")
    page.go_back()
    page.wait_for_selector(".choices button")
    assert page.locator(".card").count() == 0


def test_results_go_on_and_nothing_comes_twice(service: Service, new_page) -> None:
    page = opened(new_page, service, "?q=a+bus&collection=many")
    until(page, "(scrollTo(0, document.body.scrollHeight), document.querySelector('#more').hidden)")
    ids = page.eval_on_selector_all(".card", "cards => cards.map(card => card.dataset.id)")
    assert len(ids) == len(set(ids)) == 75


@pytest.mark.parametrize("way", ["drop", "paste", "choose"])
def test_a_photo_finds_itself(service: Service, new_page, way: str) -> None:
    page = opened(new_page, service)
    if way == "choose":
        page.set_input_files("#file", PHOTOS / BEAR)
    else:
        data = base64.b64encode((PHOTOS / BEAR).read_bytes()).decode()
        page.evaluate(
            """([way, data]) => {
              const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
              const transfer = new DataTransfer();
              transfer.items.add(new File([bytes], 'mine.jpg', {type: 'image/jpeg'}));
              const options = {bubbles: true, cancelable: true};
              dispatchEvent(way === 'drop'
                ? new DragEvent('drop', {...options, dataTransfer: transfer})
                : new ClipboardEvent('paste', {...options, clipboardData: transfer}));
            }""",
            [way, data],
        )
    page.wait_for_selector(".card")
    assert "bear" in page.locator(".caption").first.inner_text().lower()
    assert page.locator("#given").is_visible()
    page.reload()
    page.wait_for_selector(".heading")
    assert "no longer here" in page.locator(".heading").inner_text()
    page.click("#given-remove")
    page.wait_for_selector(".choices")


@pytest.mark.parametrize("where", ["card", "opened photo"])
def test_more_like_this_leaves_the_photo_itself_out(service: Service, new_page, where: str) -> None:
    page = opened(new_page, service, "?q=a+long+red+bus")
    bus = first_source(page)
    if where == "card":
        page.locator(".card").first.hover()
        page.locator(".like").first.click()
    else:
        page.locator(".card a").first.click()
        page.click("#like")
    page.wait_for_selector(f".card:first-child:not([data-id='{bus}'])")
    assert state(page) == {"like": bus}
    assert bus not in page.eval_on_selector_all(".card", "cards => cards.map(card => card.dataset.id)")
    assert "bus" in page.locator(".caption").first.inner_text()
    assert not page.locator("#viewer").is_visible()


def test_filters_are_found_in_the_answers(service: Service, new_page) -> None:
    page = opened(new_page, service, "?q=animals")
    page.click("#filter-button")
    page.get_by_role("button", name="animals 2").click()
    until(page, "document.querySelectorAll('.card').length === 2")
    assert json.loads(state(page)["filter"]) == {"metadata.album": "animals"}
    page.fill("#least-width", "5000")
    page.keyboard.press("Enter")
    page.wait_for_selector(".heading")
    assert "Nothing found" in page.locator(".heading").inner_text()
    page.get_by_role("button", name="Remove the filter width").click()
    until(page, "document.querySelectorAll('.card').length === 2")
    page.click("#filters summary")
    page.fill("#json", "{no json")
    page.click("#apply")
    page.wait_for_selector("#json-problem:not(:empty)")
    page.fill("#json", '{"$or": [{"metadata.album": "sea"}, {"metadata[\\"exif.Make\\"]": "Canon"}]}')
    page.click("#apply")
    until(page, "document.querySelectorAll('.card').length === 1")
    page.reload()
    page.wait_for_selector(".card")
    assert page.locator(".chip").count() == page.locator(".card").count() == 1


def test_a_filter_that_the_service_refuses_is_told(service: Service, new_page) -> None:
    page = opened(new_page, service, '?q=bus&filter={"widht":1}', allow="400")
    assert "widht" in page.locator("#message").inner_text()
    assert "widht" in page.locator("#json-problem").inner_text()


def test_nothing_found_says_what_to_do(service: Service, new_page) -> None:
    page = opened(new_page, service, "?q=two+dogs&min=95")
    assert page.locator(".card").count() == 0
    page.get_by_role("button", name="less likely").click()
    page.wait_for_selector(".card")
    assert page.locator("#min-value").inner_text() == "0 %"


def test_words_show_the_regions_that_they_found(service: Service, new_page) -> None:
    page = opened(new_page, service, "?q=a+bear+and+some+vultures")
    page.locator(".card a").first.click()
    page.wait_for_selector(".word")
    assert page.locator("#words").inner_text() == "a bear and some vultures"

    def light_of(word: str) -> list[float]:
        """How light the overlay is in the middle, where the bear is, and at the bottom left, where a vulture is."""
        page.get_by_role("button", name=word, exact=True).hover()
        until(page, "document.querySelector('#heat').classList.contains('on')")
        assert word in page.locator("#found").inner_text()
        return page.evaluate(
            """() => { const canvas = document.querySelector('#heat');
              const place = (share, length) => Math.round((share + 0.08) / 1.16 * length);
              const at = (x, y) => 255 - canvas.getContext('2d').getImageData(
                place(x, canvas.width), place(y, canvas.height), 1, 1).data[3];
              return [at(0.5, 0.5), at(0.07, 0.66)]; }"""
        )

    bear, vultures = light_of("bear"), light_of("vultures")
    assert bear[0] > bear[1] + 10
    assert vultures[1] > vultures[0] + 10
    page.mouse.move(0, 0)
    until(page, "!document.querySelector('#heat').classList.contains('on')")
    page.get_by_role("button", name="bear", exact=True).focus()
    until(page, "document.querySelector('#heat').classList.contains('on')")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.textContent") == "and"


def test_everything_works_by_keyboard(service: Service, new_page) -> None:
    page = opened(new_page, service, "?q=a+long+red+bus")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "text"
    page.locator(".card a").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    second = page.evaluate("document.activeElement.closest('.card').dataset.id")
    assert second == page.locator(".card").nth(1).get_attribute("data-id")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    page.wait_for_selector("#viewer[open]")
    assert state(page)["open"] == second
    page.keyboard.press("ArrowRight")
    third = page.locator(".card").nth(2).get_attribute("data-id")
    until(page, f"location.search.includes({json.dumps(third)})")
    page.keyboard.press("Escape")
    page.wait_for_selector("#viewer", state="hidden")
    until(page, f"document.activeElement.closest('.card')?.dataset.id === {json.dumps(third)}")
    assert "open" not in state(page)


def test_an_opened_photo_has_an_address(service: Service, new_page) -> None:
    page = opened(new_page, service, "?q=a+long+red+bus")
    page.locator(".card a").first.click()
    page.wait_for_selector(".word")
    other = opened(new_page, service, "?" + urlsplit(page.url).query)
    other.wait_for_selector("#viewer[open] .word")
    other.click("#close")
    other.wait_for_selector("#viewer", state="hidden")
    assert other.locator(".card").count() > 1
    gone = opened(new_page, service, "?q=bus&open=nothing", allow="404")
    gone.wait_for_selector(".heading")
    assert "cannot be opened" in gone.locator(".heading").inner_text()


def test_an_error_is_one_line_with_another_attempt(service: Service, new_page) -> None:
    page = opened(new_page, service, allow="ERR_FAILED")
    page.route("**/v1/search", lambda route: route.abort())
    page.fill("#text", "a bus")
    page.keyboard.press("Enter")
    page.wait_for_selector(".choices button:text('Try again')")
    assert "does not answer" in page.locator("#message").inner_text()
    page.unroute("**/v1/search")
    page.get_by_role("button", name="Try again").click()
    page.wait_for_selector(".card")
    assert not page.locator("#message").is_visible()


def test_collections_are_chosen(service: Service, new_page) -> None:
    page = opened(new_page, service, "?q=a+bear")
    page.select_option("#collection", "other")
    until(page, "document.querySelectorAll('.card').length === 1")
    page.locator(".card a").first.click()
    page.wait_for_selector(".word")
    until(page, "document.querySelector('#picture').naturalWidth > 0")


@pytest.mark.parametrize("query", ["", "?q=a+long+red+bus", "?q=two+dogs&min=95"])
def test_a_phone_scrolls_in_one_direction(service: Service, new_page, query: str) -> None:
    page = opened(new_page, service, query, viewport={"width": 360, "height": 740}, has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    if query.startswith("?q=a"):
        page.locator(".card a").first.tap()
        page.wait_for_selector(".word")
        page.get_by_role("button", name="bus", exact=True).tap()
        until(page, "document.querySelector('#heat').classList.contains('on')")
        assert page.evaluate("document.querySelector('#viewer').scrollWidth") <= 360


def test_nothing_jumps_while_pictures_arrive(service: Service, new_page) -> None:
    page = opened(new_page, service)
    page.evaluate(
        """() => { window.jumps = 0; new PerformanceObserver((list) => {
          for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.jumps += entry.value;
        }).observe({type: 'layout-shift', buffered: false}); }"""
    )
    page.route("**/thumbnail*", lambda route: (page.wait_for_timeout(100), route.continue_()))
    page.fill("#text", "a long red bus")
    page.keyboard.press("Enter")
    page.wait_for_selector(".card")
    boxes = "[...document.querySelectorAll('.photo')].map(one => JSON.stringify(one.getBoundingClientRect()))"
    before = page.evaluate(boxes)
    settle(page)
    assert page.evaluate(boxes) == before
    assert page.evaluate("window.jumps") < 0.05


def test_hostile_texts_stay_texts(service: Service, new_page) -> None:
    page = opened(new_page, service, "?q=a+boy+doing+a+trick+on+a+skateboard")
    assert page.locator(".caption").first.inner_text() == HOSTILE
    page.click("#filter-button")
    page.locator(".card a").first.click()
    page.wait_for_selector(".word")
    assert HOSTILE in page.locator("#viewer").inner_text()
    assert page.locator("#viewer a[href^='javascript']").count() == 0
    assert page.evaluate("window.hacked") is None


STATES = {
    "empty": ("/", ".heading"),
    "results": ("/?q=a+long+red+bus", ".card"),
    "photo": (f"/?q=a+bear&open={{{BEAR}}}", ".word"),
    "filters": ('/?q=a+bear&filter={"metadata.album":"animals"}', ".chip"),
    "nothing": ("/?q=two+dogs&min=95", ".heading"),
    "runs": ("/runs", ".run, .heading"),
}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", STATES)
def test_axe_finds_nothing_serious(service: Service, new_page, name: str, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    path, selector = STATES[name]
    page = new_page(service.url(path.replace(f"{{{BEAR}}}", sha256_of(BEAR))), color_scheme=scheme).page
    page.wait_for_selector(selector)
    settle(page)
    if name == "filters":
        page.click("#filter-button")
    found = axe.Axe().run(page).response["violations"]
    serious = [one for one in found if one["impact"] in ("serious", "critical")]
    assert not serious, json.dumps([(one["id"], [node["html"] for node in one["nodes"]]) for one in serious], indent=1)


def sha256_of(name: str) -> str:
    from ldot_milvus.images import content_id

    return content_id(Path(PHOTOS / name).read_bytes())
