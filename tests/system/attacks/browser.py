"""Attacks of a web page, whose requests the local browser sends to the ports of engine and services."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Final, Literal

from services.runtime.booking import ORDINARY
from tests.system.attacks.attack import Attack, Run, input_at, status_of
from tests.system.attacks.platform import DefendedPlatform
from tests.system.attacks.raw_http import raw_answer

_ORDER: Final = ORDINARY.model_dump_json().encode()
_QUERY: Final = json.dumps({"query": "select id from sys_invocation"}).encode()
_JSON: Final = {"content-type": "application/json"}
_EVIL: Final = {"origin": "https://evil.example.com", "sec-fetch-site": "cross-site"}
_SANDBOXED: Final = {"origin": "null", "sec-fetch-site": "cross-site"}
_IMAGE: Final = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}
_FORM: Final = {"origin": "https://evil.example.com", "content-type": "text/plain"}
_REBOUND: Final = {"host": "evil.example.com"}
_PREFLIGHT: Final = {**_EVIL, "access-control-request-method": "POST", "access-control-request-headers": "content-type"}

_Port = Literal["ingress", "admin", "service"]


def _address(at: DefendedPlatform, port: _Port) -> str:
    topology = at.topology
    return {"ingress": topology.ingress_url, "admin": topology.admin_url, "service": topology.service_url("payments")}[
        port
    ]


def _sent(port: _Port, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> Run:
    async def run(at: DefendedPlatform) -> str:
        content = at.seal(body, input_at(path)) if body and port == "ingress" else body
        answer = await at.http.request(method, _address(at, port) + path, headers=headers, content=content)
        if answer.is_success and (leaked := answer.headers.get("access-control-allow-origin")):
            return f"{answer.status_code} readable by {leaked}"
        return status_of(answer)

    return run


def _of_page_beside(port: _Port, method: str, path: str) -> Run:
    """Send the request of a page from another local port: same site, other origin."""

    async def run(at: DefendedPlatform) -> str:
        headers = {**_JSON, "origin": at.topology.console_url, "sec-fetch-site": "same-site"}
        return await _sent(port, method, path, headers, _QUERY)(at)

    return run


def _raw(lines: Callable[[DefendedPlatform], list[str]]) -> Run:
    async def run(at: DefendedPlatform) -> str:
        return await raw_answer(
            at.topology.ingress_port, "".join(f"{each}\r\n" for each in lines(at)).encode() + b"\r\n"
        )

    return run


def _upgrade(_: DefendedPlatform) -> list[str]:
    return [
        "GET /restate/health HTTP/1.1",
        "host: localhost",
        "origin: https://evil.example.com",
        "connection: upgrade",
        "upgrade: websocket",
        "sec-websocket-version: 13",
        "sec-websocket-key: x3JJHMbDL1EzLkh9GBhXDw==",
    ]


def _two_hosts(_: DefendedPlatform) -> list[str]:
    return ["GET /restate/health HTTP/1.1", "host: localhost", "host: evil.example.com", "connection: close"]


def _two_lengths(_: DefendedPlatform) -> list[str]:
    return ["POST /Trips/x/run HTTP/1.1", "host: localhost", "content-length: 0", "content-length: 5"]


async def _resolves_awakeable(at: DefendedPlatform) -> str:
    path = f"/restate/awakeables/sign_1{'A' * 30}/resolve"
    return await _sent("ingress", "POST", path, {**_FORM}, b"true")(at)


def _ingress(name: str, expected: str, run: Run) -> Attack:
    return Attack("page at ingress", name, expected, run)


def _admin(name: str, expected: str, run: Run) -> Attack:
    return Attack("page at admin API", name, expected, run)


def _service(name: str, expected: str, run: Run) -> Attack:
    return Attack("page at a service", name, expected, run)


_RUN: Final = "/Trips/of-a-page/run"
BROWSER: Final = (
    _ingress("a trip is booked with fetch", "403", _sent("ingress", "POST", _RUN, {**_JSON, **_EVIL}, _ORDER)),
    _ingress("a trip is sent with a form", "403", _sent("ingress", "POST", f"{_RUN}/send", _FORM, _ORDER)),
    _ingress("a sandboxed frame books", "403", _sent("ingress", "POST", _RUN, {**_JSON, **_SANDBOXED}, _ORDER)),
    _ingress("an image calls a handler", "403", _sent("ingress", "GET", _RUN, _IMAGE)),
    _ingress("an image of an old browser calls a handler", "405", _sent("ingress", "GET", _RUN, {})),
    _ingress("an inbox is read", "403", _sent("ingress", "POST", "/ApprovalInbox/a/list", {**_JSON, **_EVIL}, b"{}")),
    _ingress("a result is read", "403", _sent("ingress", "GET", "/restate/workflow/Trips/a/output", _EVIL)),
    _ingress("an awakeable is resolved", "403", _resolves_awakeable),
    _ingress("a preflight", "403", _sent("ingress", "OPTIONS", _RUN, _PREFLIGHT)),
    _ingress("a page of the console's host", "403", _of_page_beside("ingress", "POST", _RUN)),
    _ingress("a rebound name books", "403", _sent("ingress", "POST", _RUN, {**_JSON, **_REBOUND}, _ORDER)),
    _ingress("a rebound name reads", "403", _sent("ingress", "GET", "/restate/health", _REBOUND)),
    _ingress(
        "a name that ends like an address",
        "403",
        _sent("ingress", "GET", "/restate/health", {"host": "127.0.0.1.nip.io"}),
    ),
    _ingress(
        "the address of all interfaces", "403", _sent("ingress", "GET", "/restate/health", {"host": "0.0.0.0:8080"})
    ),
    _ingress("a web socket", "403", _raw(_upgrade)),
    _ingress("two hosts", "400", _raw(_two_hosts)),
    _ingress("two lengths", "400", _raw(_two_lengths)),
    _admin("a query with fetch", "403", _sent("admin", "POST", "/query", {**_JSON, **_EVIL}, _QUERY)),
    _admin("a query with a form", "403", _sent("admin", "POST", "/query", _FORM, _QUERY)),
    _admin("a page of the console's host", "403", _of_page_beside("admin", "POST", "/query")),
    _admin("a rebound name lists services", "403", _sent("admin", "GET", "/services", _REBOUND)),
    _admin("a rebound name queries", "403", _sent("admin", "POST", "/query", {**_JSON, **_REBOUND}, _QUERY)),
    _admin("a preflight of a cancel", "403", _sent("admin", "OPTIONS", "/invocations/inv_1/cancel", _PREFLIGHT)),
    _admin("a cancel", "403", _sent("admin", "PATCH", "/invocations/inv_1/cancel", _EVIL)),
    _admin(
        "the engine's pages in a frame", "403", _sent("admin", "GET", "/ui/", {**_IMAGE, "sec-fetch-dest": "iframe"})
    ),
    _service("metrics under a rebound name", "403", _sent("service", "GET", "/metrics", _REBOUND)),
    _service("readiness with fetch", "403", _sent("service", "GET", "/ready", _EVIL)),
    _service("an invocation with fetch", "403", _sent("service", "POST", "/invoke/Payments/charge", _EVIL)),
)
"""Attacks of web pages."""
