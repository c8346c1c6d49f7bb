"""Open pages during an outage of the engine or the console, which show the time of their data."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest
from playwright.sync_api import BrowserContext, Locator, Page, expect

from tests.e2e.console_platform import ConsolePlatform, keep
from tests.e2e.outage import Outage

pytestmark = pytest.mark.timeout(300)

POLLED = ("/sagas", "/approvals")
AS_OF = re.compile(r"Not updated since (\d\d:\d\d:\d\d) UTC")


@pytest.fixture(scope="module")
def outage(console: ConsolePlatform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outage]:
    """A second console of the platform."""
    opened = Outage(tmp_path_factory.mktemp("outage") / "console", console)
    try:
        opened.begin()
        opened.add_administrator()
        yield opened
    finally:
        opened.end()


@pytest.fixture
def tabs(
    console: ConsolePlatform, outage: Outage, contexts: Callable[..., BrowserContext]
) -> Iterator[Callable[..., dict[str, Page]]]:
    """Return a function that opens pages in tabs, with a trip that waits. Ends the outage after the test."""
    if console.api("GET", "/api/approvals/waits").status_code != 200:
        console.trip("waits", amount_minor=250_000)
        console.until(lambda: console.api("GET", "/api/approvals/waits").status_code == 200, "approval")

    def opened(*paths: str) -> dict[str, Page]:
        context = contexts()
        outage.sign_in(context)
        found = {path: context.new_page() for path in paths}
        for path, page in found.items():
            page.goto(outage.url + path)
            expect(outdated(page)).to_be_hidden()
        return found

    yield opened
    outage.restore()


def outdated(page: Page) -> Locator:
    return page.locator("[data-outdated]")


def as_of(page: Page) -> str:
    expect(outdated(page)).to_be_visible()
    found = AS_OF.search(outdated(page).inner_text())
    assert found is not None, outdated(page).inner_text()
    return found[1]


def clock(at: datetime) -> str:
    return f"{at:%H:%M:%S}"


def is_between(shown: str, begin: datetime, end: datetime) -> bool:
    seconds = range(int((end - begin).total_seconds()) + 2)
    return shown in {clock(begin + timedelta(seconds=second)) for second in seconds}


def test_pages_report_outage_of_engine(outage, tabs):
    begin = datetime.now(UTC)
    pages = tabs(*POLLED, "/", "/sagas/waits", "/alerts", "/account")
    outage.cut()
    cut = datetime.now(UTC)
    shown = {}
    for path in POLLED:
        page = pages[path]
        expect(page.locator("#problems")).to_contain_text("check that the engine is running")
        expect(page.locator("#list")).to_contain_text("waits")
        shown[path] = as_of(page)
        assert is_between(shown[path], begin, cut), (path, shown[path], cut)
        keep(page, f"engine-outage{path.replace('/', '-')}")
    live = pages["/sagas/waits"]
    expect(outdated(live)).to_contain_text("check that the engine is running")
    shown["/sagas/waits"] = as_of(live)
    assert is_between(shown["/sagas/waits"], begin, cut)
    expect(live.locator(".timeline li", has_text="approval")).to_be_visible()
    keep(live, "engine-outage-saga")
    # These pages report the outage in their content.
    expect(pages["/"].locator("#overview")).to_contain_text("check that the engine is running")
    expect(pages["/alerts"].locator("#summary")).to_contain_text("check that the engine is running")
    for page in pages.values():
        expect(page.locator("#alert-count")).to_contain_text("unknown")
    expect(outdated(pages["/account"])).to_be_hidden()

    # During the outage, the time stays and the problem is shown once.
    with pages["/sagas"].expect_response(lambda answer: "/sagas" in answer.url and answer.status == 503) as again:
        pass
    again.value.finished()
    assert as_of(pages["/sagas"]) == shown["/sagas"]
    expect(pages["/sagas"].locator("#problems p")).to_have_count(1)

    outage.restore()
    for path, page in pages.items():
        expect(outdated(page)).to_be_hidden()
        expect(page.locator("#problems")).to_be_empty()
        expect(page.get_by_text("check that the engine is running"), path).to_have_count(0)


def test_pages_report_outage_of_console(outage, tabs):
    begin = datetime.now(UTC)
    pages = tabs(*POLLED, "/", "/sagas/waits", "/alerts", "/account")
    # A new stream continues from the streamed data, not from the loaded page.
    stream = pages["/sagas/waits"].locator("[sse-connect]")
    expect(stream).not_to_have_attribute("sse-connect", str(stream.get_attribute("sse-connect")))
    outage.kill()
    killed = datetime.now(UTC)
    for path, page in pages.items():
        expect(page.locator("#alert-count")).to_contain_text("unknown")
        if path == "/account":  # has no updates
            expect(outdated(page)).to_be_hidden()
            continue
        expect(outdated(page)).to_contain_text("the console does not respond")
        assert is_between(as_of(page), begin, killed), path
        keep(page, f"console-outage{path.replace('/', '-')}")
    expect(pages["/sagas"].locator("#list")).to_contain_text("waits")

    outage.restore()
    for page in pages.values():
        expect(outdated(page)).to_be_hidden()
        expect(page.locator("#problems")).to_be_empty()
        expect(page.locator("#alert-count")).not_to_contain_text("unknown")


def test_pages_time_out_on_stopped_console(outage, tabs):
    pages = tabs("/sagas", "/sagas/waits")
    for page in pages.values():  # instead of 20 seconds
        page.evaluate("""document.querySelectorAll("[hx-request]").forEach(
            (each) => each.setAttribute("hx-request", '{"timeout": 500}'))""")
    with outage.stopped():
        for page in pages.values():
            expect(outdated(page)).to_contain_text("the console does not respond")
    for page in pages.values():
        expect(outdated(page)).to_be_hidden()


def test_error_page_of_proxy_is_not_shown(tabs):
    page = tabs("/sagas")["/sagas"]
    bad_gateway = {"status": 502, "content_type": "text/html", "body": "<html><h1>502 Bad Gateway</h1></html>"}
    page.route("**/sagas*", lambda route: route.fulfill(**bad_gateway))
    expect(outdated(page)).to_contain_text("502")
    expect(page.locator("#list")).to_contain_text("waits")
    expect(page.get_by_text("Bad Gateway")).to_have_count(0)
    page.unroute("**/sagas*")
    expect(outdated(page)).to_be_hidden()


def test_action_without_response_is_reported(outage, tabs):
    page = tabs("/sagas/waits")["/sagas/waits"]
    expect(page.get_by_role("button", name="Approve")).to_be_visible()
    outage.kill()
    page.get_by_role("button", name="Approve").click()
    expect(page.locator("#problems")).to_contain_text("the outcome of your action is unknown")
    outage.restore()
    expect(outdated(page)).to_be_hidden()
    # The message stays after the recovery.
    expect(page.locator("#problems")).to_contain_text("check before you repeat it")
