"""An attacker's web page in a browser, which attacks a server of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from playwright.sync_api import Browser, Page, Route

REBOUND = "rebound.example.com"
"""The attacker's host name, which the browser resolves to this machine, as after DNS rebinding."""

BLANK = "<!doctype html><title>attack</title>"

# Each attempt results in the text that the page could read, or its error.
_ATTEMPTS = """
async ([target, reads, acts, body]) => {
  const found = {};
  const attempt = async (name, url, options) => {
    try {
      const answer = await fetch(url, options);
      found[name] = answer.type === "opaque" ? "opaque" : `${answer.status} ${await answer.text()}`;
    } catch (error) { found[name] = `failed: ${error.name}`; }
  };
  const json = { "content-type": "application/json" };
  for (const path of reads) {
    await attempt(`read ${path}`, target + path, {});
    await attempt(`read ${path} with credentials`, target + path, { credentials: "include" });
  }
  for (const path of acts) {
    await attempt(`post ${path}`, target + path, { method: "POST", headers: json, body });
    await attempt(`post ${path} with credentials`, target + path,
      { method: "POST", headers: json, body, credentials: "include" });
    await attempt(`simple post ${path}`, target + path, { method: "POST", body, mode: "no-cors" });
    await attempt(`beacon-like post ${path}`, target + path,
      { method: "POST", body: new Blob([body], { type: "text/plain" }), mode: "no-cors", keepalive: true });
    await attempt(`get ${path}`, target + path, { mode: "no-cors" });
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
    """Serve an empty page at another origin, and yield its address."""
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
    """Run all attempts from an open page, and return their results."""
    learned: dict[str, str] = page.evaluate(_ATTEMPTS, [target, reads, acts, body])
    return learned


def rebound_page(browser: Browser, port: int) -> Page:
    """Open the attacker's page under a name and port that resolve to this machine."""
    page = browser.new_page()
    address = f"http://{REBOUND}:{port}/attack"

    def fulfil(route: Route) -> None:
        route.fulfill(status=200, content_type="text/html", body=BLANK)

    page.route(address, fulfil)
    page.goto(address)
    return page


def rejected(answer: str) -> bool:
    """Return whether an attempt failed: blocked by the browser, or rejected by the server."""
    return answer.startswith(("failed", "403 ", "405 ", "401 "))
