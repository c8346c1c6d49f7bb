"""The console in a browser, on a running platform."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from playwright.sync_api import Locator, Page, expect

from perdure.security import PrivateKey, mint_link
from tests.e2e.console_platform import ADMINISTRATOR, PASSWORD, PHONE, ConsolePlatform, keep, sign_in

pytestmark = pytest.mark.timeout(180)

OPEN_LETTER = re.compile("failed permanently")


def test_approve_trip_on_live_page(console, contexts):
    console.trip("lisbon", amount_minor=250_000)
    console.until(lambda: console.phase("lisbon") == "running", "start of the trip")
    page = sign_in(contexts())
    page.goto("/sagas/lisbon")
    page.evaluate("window.loadedOnce = true")
    # The page may be open before the approval, which then arrives in an event.
    expect(page.get_by_role("heading", name="Trip of")).to_be_visible()
    expect(page.locator("#saga .headline")).to_contain_text("running")
    expect(page.locator(".timeline li.waiting")).to_contain_text("approval")
    keep(page, "saga-waits")

    page.reload()
    page.evaluate("window.loadedOnce = true")
    # Text typed before the stream opens stays, since data that the page shows is not sent again.
    so_far = page.locator(".scale span").last.inner_text()
    page.get_by_label("Reason").fill("a fair price")
    expect(page.locator(".scale span").last).not_to_have_text(so_far)
    page.get_by_role("button", name="Approve").click()
    expect(page.locator("#saga .headline")).to_contain_text("completed")
    expect(page.locator(".timeline li", has_text="payment")).to_have_class("done")
    expect(page.locator("#approval form")).to_have_count(0)
    assert page.evaluate("window.loadedOnce") is True
    assert console.phase("lisbon") == "completed"
    keep(page, "saga-confirmed")

    page.goto("/approvals/lisbon")
    expect(page.locator(".headline")).to_contain_text("approved")
    expect(page.locator("table.numbered")).to_contain_text(ADMINISTRATOR)
    expect(page.locator("table.numbered")).to_contain_text("a fair price")


def test_reject_and_delegate_in_inbox(console, contexts):
    for trip in ("kyoto", "oslo"):
        console.trip(trip, amount_minor=980_000)
    console.until(lambda: console.api("GET", "/api/approvals").json()["total"] >= 2, "approvals in the inbox")
    page = sign_in(contexts())
    page.goto("/approvals")
    keep(page, "approvals")
    page.locator("tr", has_text="kyoto").get_by_role("link").click()
    page.get_by_label("Reason").first.fill("too expensive")
    page.get_by_role("button", name="Reject").click()
    expect(page.get_by_role("status")).to_contain_text("You rejected kyoto.")
    expect(page.locator(".failure")).to_contain_text("too expensive")
    console.until(lambda: console.phase("kyoto") == "rolled_back", "rollback of the rejected trip")

    page.goto("/approvals/oslo")
    page.locator("summary", has_text="Delegate").click()
    page.get_by_label("To").fill("Lin@Example.com")
    page.get_by_role("button", name="Delegate").click()
    expect(page.get_by_role("status")).to_contain_text("lin@example.com may decide oslo in your place")
    keep(page, "approval-delegated")


def link_to(console: ConsolePlatform, trip_id: str) -> str:
    """Return the token of a link of the administrator to the approval of a trip."""
    return mint_link(
        PrivateKey.load(console.launched.home / "keys" / "approval-links.pem"),
        approval_id=trip_id,
        person=ADMINISTRATOR,
        payload_digest=console.api("GET", f"/api/approvals/{trip_id}").json()["payload_digest"],
        issued_at=datetime.now(UTC),
        expires_at=datetime.now(UTC) + timedelta(hours=1),
        nonce=uuid4().hex,
    )


def test_link_decides_once(console, contexts):
    console.trip("linked", amount_minor=250_000)
    console.until(lambda: console.api("GET", "/api/approvals/linked").status_code == 200, "approval")
    token = link_to(console, "linked")
    page = contexts().new_page()  # without a session
    assert page.goto(f"/l/{token}").headers["referrer-policy"] == "no-referrer"
    expect(page.get_by_role("heading", level=1)).to_contain_text("Trip of")
    expect(page.get_by_text("2,500.00 EUR")).to_be_visible()
    keep(page, "link")
    assert console.api("GET", "/api/approvals/linked").json()["status"] == "open"
    page.get_by_label("Reason").fill("from the train")
    page.get_by_role("button", name="Approve").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Approved")
    status = console.api("GET", "/api/approvals/linked").json()
    assert (status["status"], status["decisions"][0]["actor"]) == ("approved", ADMINISTRATOR)

    page.goto(f"/l/{token}")
    expect(page.get_by_text("no longer valid")).to_be_visible()
    expect(page.get_by_role("button")).to_have_count(0)
    forged = token[:-4] + ("AAAA" if token[-4:] != "AAAA" else "BBBB")
    assert page.goto(f"/l/{forged}").status == 403
    expect(page.get_by_text("this link is not signed by a trusted key")).to_be_visible()


# Records the clicks and submissions that Enter causes, and prevents them.
LISTEN = """() => {
    window.pressed = [];
    for (const name of ["click", "submit"])
        document.addEventListener(name, (event) => {
            if (window.pressed === null) return;
            window.pressed.push(`${name} ${event.target.textContent.trim()}`);
            event.preventDefault();
            event.stopImmediatePropagation();
        }, true);
}"""


def pressed_by_enter(page: Page, field: Locator) -> list[str]:
    """Press Enter in a field, and return the clicks and submissions."""
    field.fill("not yet")
    page.evaluate(LISTEN)
    field.press("Enter")
    pressed = page.evaluate("() => { const all = window.pressed; window.pressed = null; return all; }")
    assert isinstance(pressed, list)
    return pressed


def test_enter_decides_only_on_a_button(console, contexts):
    for trip in ("unhurried", "unlinked"):
        console.trip(trip, amount_minor=250_000)
    for trip in ("unhurried", "unlinked"):
        path = f"/api/approvals/{trip}"
        console.until(lambda path=path: console.api("GET", path).status_code == 200, "approval")
    page = sign_in(contexts())
    # First a form that Enter submits, to show that the recording works.
    page.goto("/sagas")
    assert pressed_by_enter(page, page.locator("[data-search]")) == ["click Filter"]
    for path in ("/sagas/unhurried", f"/l/{link_to(console, 'unlinked')}", "/approvals/unhurried"):
        page.goto(path)
        reason = page.get_by_label("Reason").first
        assert pressed_by_enter(page, reason) == [], path
        reason.press("Tab")
        expect(page.get_by_role("button", name="Approve")).to_be_focused()
        page.keyboard.press("Tab")
        expect(page.get_by_role("button", name="Reject")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_contain_text("You rejected unhurried.")
    expect(page.locator(".failure")).to_contain_text("not yet")
    assert console.api("GET", "/api/approvals/unlinked").json()["status"] == "open"


def test_compare_redrive_and_resolve_dead_letters(console, contexts):
    # Stumble fails two cancellations, which exhausts the attempts. A redrive succeeds.
    console.trip("stumbles", hotel="Stumble", account="acct-declined")
    console.trip("stuck", hotel="Fortress", account="acct-declined")
    for trip in ("stumbles", "stuck"):
        console.until(lambda trip=trip: console.phase(trip) == "needs_attention", f"dead letter of {trip}")
    page = sign_in(contexts())
    expect(page.locator(".tile", has_text="Dead letters").locator("strong")).to_have_text("2")
    keep(page, "overview")

    page.goto("/sagas/stumbles")
    expect(page.get_by_text(OPEN_LETTER)).to_be_visible()
    keep(page, "saga-needs-attention")
    page.get_by_role("link", name="view the dead letter").click()
    page.get_by_text("Edit the payload and redrive").click()
    payload = page.get_by_label("Payload, as JSON")
    payload.fill("{ no json")
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_text("the payload is not JSON")).to_be_visible()
    page.go_back()
    page.get_by_text("Edit the payload and redrive").click()
    payload.fill('{"key": "trip:stumbles:hotel", "trip_id": "another-trip"}')
    page.get_by_role("button", name="Compare").click()
    expect(page.locator(".diff .removed")).to_contain_text('"trip_id": "stumbles"')
    expect(page.locator(".diff .added")).to_contain_text('"trip_id": "another-trip"')
    keep(page, "dead-letter-compared")
    assert pressed_by_enter(page, page.get_by_label("Reason")) == []
    page.go_back()

    stale = page.context.new_page()
    stale.goto("/dead-letters?service=Trips")
    assert pressed_by_enter(page, page.get_by_label("Reason").first) == []
    page.get_by_label("Reason").first.fill("the hotel answers again")
    page.get_by_role("button", name="Redrive", exact=True).click()
    expect(page.get_by_role("status")).to_contain_text(re.compile("Dead letter stumbles/.* redriven"))
    expect(page.locator("#saga .headline")).to_contain_text("rolled back")
    expect(page.locator("#saga table")).to_contain_text("the hotel answers again")

    # The stale page shows both in the group, so its action is rejected.
    questions = []
    for shown in (stale, page):
        shown.on("dialog", lambda dialog: (questions.append(dialog.message), dialog.accept()))
    stale.get_by_role("button", name="Discard all 2").click()
    expect(stale.get_by_text("have changed, so nothing was done")).to_be_visible()
    keep(stale, "dead-letters-changed")
    page.goto("/dead-letters?service=Trips")
    keep(page, "dead-letters")
    assert pressed_by_enter(page, page.get_by_label("Reason")) == []
    page.get_by_label("Reason").fill("called the hotel")
    page.get_by_role("button", name="Resolve").click()
    expect(page.get_by_role("status")).to_contain_text("1 resolved")
    expect(page.get_by_text("No dead letters.")).to_be_visible()
    assert re.fullmatch(r"Discard all 2 dead letters of .*hotel.*, service Trips\?", questions[0])
    assert re.fullmatch(r"Resolve the dead letter of .*hotel.*, service Trips\?", questions[1])
    console.until(lambda: console.phase("stuck") == "rolled_back", "end of the rollback")


def test_viewer_has_no_actions(console, contexts):
    console.trip("viewed", amount_minor=250_000)
    console.until(lambda: console.api("GET", "/api/approvals/viewed").status_code == 200, "approval")
    page = sign_in(contexts(), "vera@example.com")
    pages = ("alerts", "sagas", "approvals", "dead-letters", "invocations", "services", "schedules", "account")
    for path in ("/", *(f"/{name}" for name in pages)):
        page.goto(path)
        expect(page.get_by_role("heading", level=1)).to_be_visible()
        expect(page.locator("main .problem")).to_have_count(0)
    assert page.goto("/users").status == 403
    expect(page.get_by_text("requires role 'administrator'")).to_be_visible()

    page.goto("/approvals/viewed")
    expect(page.get_by_text("Requires role approver")).to_be_visible()
    expect(page.get_by_role("button", name="Approve")).to_have_count(0)
    # A forged form with the viewer's session is rejected.
    rejected = page.evaluate(
        """async () => {
            const csrf = document.querySelector("input[name=csrf]").value;
            const body = new URLSearchParams({csrf, reason: "let me"});
            const answer = await fetch("/approvals/viewed/approve", {method: "POST", body});
            return [answer.status, await answer.text()];
        }"""
    )
    assert rejected[0] == 403
    assert "equires role" in rejected[1]
    assert console.api("GET", "/api/approvals/viewed").json()["status"] == "open"
    keep(page, "viewer")


def test_act_on_live_alert_by_keyboard(console, contexts):
    for trip in ("weary", "wearier"):
        console.trip(trip, amount_minor=250_000)
    page = sign_in(contexts())
    page.goto("/alerts")
    page.evaluate("window.loadedOnce = true")
    console.pause("weary")
    weary = page.locator("li.alert.paused", has_text="Trips/weary/run")
    expect(weary).to_contain_text("paused by an operator")
    expect(page.locator("#alert-count")).to_have_text(re.compile(r"^[1-9]\d* open$"))

    page.keyboard.press("j")
    expect(weary.get_by_role("link")).to_be_focused()
    page.keyboard.press("Tab")
    expect(weary.get_by_role("button", name="Resume")).to_be_focused()
    console.pause("wearier")
    wearier = page.locator("li.alert.paused", has_text="Trips/wearier/run")
    expect(wearier).to_be_visible()
    expect(page.locator("#alert-count")).to_have_text(f"{page.locator('li.alert').count()} open")
    keep(page, "alerts")
    # A new alert does not move the focus.
    expect(weary.get_by_role("button", name="Resume")).to_be_focused()
    assert page.evaluate("window.loadedOnce") is True
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_contain_text("Invocation resumed: inv_")
    expect(page.locator("table.list tr", has_text="Trips/weary/run")).to_contain_text("paused")
    expect(weary).to_have_count(0)

    page.once("dialog", lambda dialog: dialog.accept())
    wearier.get_by_role("button", name="Kill").click()
    killed = page.locator("li.alert.killed", has_text="Trips/wearier/run")
    expect(killed).to_be_visible()
    expect(killed.get_by_role("button")).to_have_count(0)
    killed.get_by_role("link").click()
    expect(page.locator("#saga .headline")).to_contain_text("rolled back")


def test_navigate_and_approve_by_keyboard(console, contexts):
    console.trip("typed", amount_minor=250_000)
    console.until(lambda: console.api("GET", "/api/approvals/typed").status_code == 200, "approval")
    page = sign_in(contexts())
    keys = page.keyboard
    keys.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    keys.press("Enter")
    keys.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("next, previous row")
    keys.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    keys.press("g")
    keys.press("s")
    page.wait_for_url("**/sagas")
    keys.press("/")
    keys.type("typed")
    keys.press("Enter")
    page.wait_for_url("**/sagas?search=typed*")
    keys.press("j")
    expect(page.get_by_role("link", name="typed", exact=True)).to_be_focused()
    keys.press("Enter")
    page.wait_for_url("**/sagas/typed?*")
    approve = page.get_by_role("button", name="Approve")
    expect(approve).to_be_visible()
    for _ in range(30):
        if approve.evaluate("each => each === document.activeElement"):
            break
        keys.press("Tab")
    keys.press("Enter")
    expect(page.locator("#saga .headline")).to_contain_text("completed")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_phone_and_have_contrast(console, contexts, scheme):
    console.schedule("trips/new-year")
    console.trip(f"rests-{scheme}", amount_minor=250_000)
    paused = console.pause(f"rests-{scheme}")
    console.until(lambda: paused in console.api("GET", "/api/alerts").text, "alert")
    page = sign_in(contexts(viewport=PHONE, color_scheme=scheme))
    for name, path in {
        "overview": "/",
        "alerts": "/alerts",
        "sagas": "/sagas",
        "saga": "/sagas/lisbon",
        "approvals": "/approvals",
        "dead-letters": "/dead-letters",
        "invocations": "/invocations",
        "services": "/services",
        "schedules": "/schedules",
        "users": "/users",
        "api-keys": "/keys",
        "account": "/account",
    }.items():
        page.goto(path)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], f"{path} is too wide"
        assert page.evaluate(CONTRAST) == [], f"{path} in {scheme}"
        keep(page, f"phone-{scheme}-{name}")


# Texts with less contrast than WCAG 2.2 AA requires (4.5 to 1).
CONTRAST = """() => {
    const parse = (color) => (color.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
    const light = ([r, g, b]) => [r, g, b].map((each) => each / 255)
        .map((each) => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4)
        .reduce((sum, each, index) => sum + each * [0.2126, 0.7152, 0.0722][index], 0);
    const ground = (element) => {
        for (let each = element; each; each = each.parentElement) {
            const color = parse(getComputedStyle(each).backgroundColor);
            if (color.length < 4 || color[3] === 1) return color;
        }
        return [255, 255, 255];
    };
    const faint = [];
    for (const element of document.querySelectorAll("body *")) {
        const text = [...element.childNodes].some((each) => each.nodeType === 3 && each.data.trim());
        if (!text || !element.checkVisibility() || element.closest("svg")) continue;
        const [a, b] = [light(parse(getComputedStyle(element).color)), light(ground(element))];
        const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (contrast < 4.5) faint.push(`${element.textContent.trim().slice(0, 40)}: ${contrast.toFixed(2)}`);
    }
    return faint;
}"""


def test_sign_out_and_wrong_credentials(console, contexts):
    page = sign_in(contexts())
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/signin")
    page.goto("/sagas?phase=completed")
    page.wait_for_url("**/signin?to=*")
    messages = []
    for name in (ADMINISTRATOR, "unknown@example.com"):
        page.get_by_label("Username").fill(name)
        page.get_by_label("Password").fill("not the password")
        page.get_by_role("button", name="Sign in").click()
        messages.append(page.get_by_role("alert").filter(has_text="username").inner_text())
    assert messages == ["Incorrect username or password"] * 2
    page.get_by_label("Username").fill(ADMINISTRATOR)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/sagas?phase=completed")
