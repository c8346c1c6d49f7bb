"""A web page of an attacker's, in a real browser, that tries what a page can try against a server of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from playwright.sync_api import Browser, Page, Route

REBOUND = "rebound.example.com"
"""A name of the attacker's, which the browser resolves to this machine, as after DNS rebinding."""

BLANK = "<!doctype html><title>attack</title>"

# Each attempt ends with what the page learned: the text that it could read, or the way that it failed.
_ATTEMPTS = """
async ([target, reads, acts, body]) => {
  const found = {};
  const asked = async (name, url, options) => {
    try {
      const answer = await fetch(url, options);
      found[name] = answer.type === "opaque" ? "opaque" : `${answer.status} ${await answer.text()}`;
    } catch (error) { found[name] = `failed: ${error.name}`; }
  };
  const json = { "content-type": "application/json" };
  for (const path of reads) {
    await asked(`read ${path}`, target + path, {});
    await asked(`read ${path} with credentials`, target + path, { credentials: "include" });
  }
  for (const path of acts) {
    await asked(`post ${path}`, target + path, { method: "POST", headers: json, body });
    await asked(`post ${path} with credentials`, target + path,
      { method: "POST", headers: json, body, credentials: "include" });
    await asked(`simple post ${path}`, target + path, { method: "POST", body, mode: "no-cors" });
    await asked(`beacon-like post ${path}`, target + path,
      { method: "POST", body: new Blob([body], { type: "text/plain" }), mode: "no-cors", keepalive: true });
    await asked(`get ${path}`, target + path, { mode: "no-cors" });
    await new Promise((done) => {
      const frame = document.createElement("iframe");
      frame.name = `frame-${Math.random()}`;
      const form = document.createElement("form");
      form.method = "POST"; form.enctype = "text/plain"; form.target = frame.name; form.action = target + path;
      const field = document.createElement("input");
      field.name = body; field.value = ""; form.append(field);
      document.body.append(frame, form);
      frame.addEventListener("load", done);
      form.submit();
    });
    await new Promise((done) => {
      const image = new Image();
      image.onload = image.onerror = done;
      image.referrerPolicy = "no-referrer";
      image.src = target + path;
    });
  }
  found.events = await new Promise((done) => {
    const events = new EventSource(target + reads[0], { withCredentials: true });
    events.onmessage = events.onopen = () => { events.close(); done("open"); };
    events.onerror = () => { events.close(); done("failed"); };
  });
  found.socket = await new Promise((done) => {
    const socket = new WebSocket(target.replace("http", "ws") + reads[0]);
    socket.onopen = () => { socket.close(); done("open"); };
    socket.onerror = () => done("failed");
  });
  return found;
}
"""


class _Attacker(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(BLANK.encode())

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def attackers_site() -> Iterator[str]:
    """Serve an empty page at an origin of its own, and yield its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Attacker)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def attack(page: Page, target: str, *, reads: list[str], acts: list[str], body: str) -> dict[str, str]:
    """Try everything from a page that is open, and return what it learned, by attempt."""
    learned: dict[str, str] = page.evaluate(_ATTEMPTS, [target, reads, acts, body])
    return learned


def rebound_page(browser: Browser, port: int) -> Page:
    """Open the attacker's page under a name and port that lead to this machine by now."""
    page = browser.new_page()
    address = f"http://{REBOUND}:{port}/attack"

    def fulfil(route: Route) -> None:
        route.fulfill(status=200, content_type="text/html", body=BLANK)

    page.route(address, fulfil)
    page.goto(address)
    return page


def refused(answer: str) -> bool:
    """Tell if a page learned nothing: the browser kept the answer, or the answer is a refusal."""
    return answer.startswith(("failed", "403 ", "405 ", "401 "))
