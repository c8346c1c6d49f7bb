"""Pages that stay open while the engine goes, or the console itself: they say of when what they show is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest
from playwright.sync_api import BrowserContext, Locator, Page, expect

from tests.e2e.consoled import Consoled, keep
from tests.e2e.outage import Outage

pytestmark = pytest.mark.timeout(300)

POLLED = ("/sagas", "/approvals")
AS_OF = re.compile(r"What is below is of (\d\d:\d\d:\d\d) UTC and may be old")


@pytest.fixture(scope="module")
def outage(console: Consoled, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outage]:
    """A console beside the platform's own."""
    opened = Outage(tmp_path_factory.mktemp("outage") / "console", console)
    try:
        opened.begin()
        opened.add_administrator()
        yield opened
    finally:
        opened.end()


@pytest.fixture
def tabs(
    console: Consoled, outage: Outage, contexts: Callable[..., BrowserContext]
) -> Iterator[Callable[..., dict[str, Page]]]:
    """Opens pages side by side, of a platform with a trip that waits; whatever goes is back for the next test."""
    if console.api("GET", "/api/approvals/waits").status_code != 200:
        console.trip("waits", amount_minor=250_000)
        console.until(lambda: console.api("GET", "/api/approvals/waits").status_code == 200, "approval")

    def opened(*paths: str) -> dict[str, Page]:
        context = contexts()
        outage.let_in(context)
        found = {path: context.new_page() for path in paths}
        for path, page in found.items():
            page.goto(outage.url + path)
            expect(old(page)).to_be_hidden()
        return found

    yield opened
    outage.restore()


def old(page: Page) -> Locator:
    return page.locator("[data-cut-off]")


def as_of(page: Page) -> str:
    expect(old(page)).to_be_visible()
    found = AS_OF.search(old(page).inner_text())
    assert found is not None, old(page).inner_text()
    return found[1]


def clock(at: datetime) -> str:
    return f"{at:%H:%M:%S}"


def is_between(shown: str, begin: datetime, end: datetime) -> bool:
    seconds = range(int((end - begin).total_seconds()) + 2)
    return shown in {clock(begin + timedelta(seconds=second)) for second in seconds}


def test_without_the_engine_pages_say_why_and_of_when_they_are_until_it_is_back(outage, tabs):
    begin = datetime.now(UTC)
    pages = tabs(*POLLED, "/", "/sagas/waits", "/alerts", "/account")
    outage.cut()
    cut = datetime.now(UTC)
    shown = {}
    for path in POLLED:
        page = pages[path]
        expect(page.locator("#problems")).to_contain_text("is the engine running?")
        expect(page.locator("#list")).to_contain_text("waits")
        shown[path] = as_of(page)
        assert is_between(shown[path], begin, cut), (path, shown[path], cut)
        keep(page, f"engine-away{path.replace('/', '-')}")
    live = pages["/sagas/waits"]
    expect(old(live)).to_contain_text("is the engine running?")
    shown["/sagas/waits"] = as_of(live)
    assert is_between(shown["/sagas/waits"], begin, cut)
    expect(live.locator(".timeline li", has_text="approval")).to_be_visible()
    keep(live, "engine-away-saga")
    # These ask again themselves, and say in their own words what they don't know.
    expect(pages["/"].locator("#overview")).to_contain_text("is the engine running?")
    expect(pages["/alerts"].locator("#summary")).to_contain_text("is the engine running?")
    for page in pages.values():
        expect(page.locator("#alert-count")).to_contain_text("nobody knows")
    expect(old(pages["/account"])).to_be_hidden()

    # As long as it lasts, the page stays of the time that it is of, and says it once.
    with pages["/sagas"].expect_response(lambda answer: "/sagas" in answer.url and answer.status == 503) as again:
        pass
    again.value.finished()
    assert as_of(pages["/sagas"]) == shown["/sagas"]
    expect(pages["/sagas"].locator("#problems p")).to_have_count(1)

    outage.restore()
    for path, page in pages.items():
        expect(old(page)).to_be_hidden()
        expect(page.locator("#problems")).to_be_empty()
        expect(page.get_by_text("is the engine running?"), path).to_have_count(0)


def test_without_the_console_pages_say_that_it_is_gone_until_it_is_back(outage, tabs):
    begin = datetime.now(UTC)
    pages = tabs(*POLLED, "/", "/sagas/waits", "/alerts", "/account")
    # A stream that is begun anew goes on from what was streamed so far, not from what the page was loaded with.
    stream = pages["/sagas/waits"].locator("[sse-connect]")
    expect(stream).not_to_have_attribute("sse-connect", str(stream.get_attribute("sse-connect")))
    outage.kill()
    gone = datetime.now(UTC)
    for path, page in pages.items():
        expect(page.locator("#alert-count")).to_contain_text("nobody knows")
        if path == "/account":  # never said that it is renewed
            expect(old(page)).to_be_hidden()
            continue
        expect(old(page)).to_contain_text("the console does not answer")
        assert is_between(as_of(page), begin, gone), path
        keep(page, f"console-gone{path.replace('/', '-')}")
    expect(pages["/sagas"].locator("#list")).to_contain_text("waits")

    outage.restore()
    for page in pages.values():
        expect(old(page)).to_be_hidden()
        expect(page.locator("#problems")).to_be_empty()
        expect(page.locator("#alert-count")).not_to_contain_text("nobody knows")


def test_a_console_that_stands_still_is_not_waited_for_for_ever(outage, tabs):
    pages = tabs("/sagas", "/sagas/waits")
    for page in pages.values():  # else it would be 20 seconds
        page.evaluate("""document.querySelectorAll("[hx-request]").forEach(
            (each) => each.setAttribute("hx-request", '{"timeout": 500}'))""")
    with outage.held():
        for page in pages.values():
            expect(old(page)).to_contain_text("the console does not answer")
    for page in pages.values():
        expect(old(page)).to_be_hidden()


def test_a_proxys_own_page_replaces_nothing(tabs):
    page = tabs("/sagas")["/sagas"]
    bad_gateway = {"status": 502, "content_type": "text/html", "body": "<html><h1>502 Bad Gateway</h1></html>"}
    page.route("**/sagas*", lambda route: route.fulfill(**bad_gateway))
    expect(old(page)).to_contain_text("502")
    expect(page.locator("#list")).to_contain_text("waits")
    expect(page.get_by_text("Bad Gateway")).to_have_count(0)
    page.unroute("**/sagas*")
    expect(old(page)).to_be_hidden()


def test_an_act_that_gets_no_answer_is_not_passed_over(outage, tabs):
    page = tabs("/sagas/waits")["/sagas/waits"]
    expect(page.get_by_role("button", name="Approve")).to_be_visible()
    outage.kill()
    page.get_by_role("button", name="Approve").click()
    expect(page.locator("#problems")).to_contain_text("may have been done all the same")
    outage.restore()
    expect(old(page)).to_be_hidden()
    # What somebody has to read stays: it is no poll that has failed.
    expect(page.locator("#problems")).to_contain_text("look before you repeat it")
