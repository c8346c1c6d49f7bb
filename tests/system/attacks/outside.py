"""Attacks on the public entry points: console and gateway."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Final

from services.runtime.booking import ORDINARY
from tests.system.attacks.attack import Attack, Run, status_of
from tests.system.attacks.platform import ADA, MAX_BODY, OLGA, VERA, DefendedPlatform
from tests.system.attacks.raw_http import raw_answer

_ORDER: Final = ORDINARY.model_dump(mode="json")


def _console(method: str, path: Callable[[DefendedPlatform], str], *, by: str | None, cookie: bool = False) -> Run:
    async def run(at: DefendedPlatform) -> str:
        headers = {}
        if by is not None:
            token = at.sessions[by]
            headers = {"cookie": f"perdure-console={token}"} if cookie else {"authorization": f"Bearer {token}"}
        url = at.topology.console_url + path(at)
        body = {"reason": "attack"} if method == "POST" else None
        return status_of(await at.http.request(method, url, headers=headers, json=body))

    return run


def _redrive_path(at: DefendedPlatform) -> str:
    return f"/api/dead-letters/{at.letter.id}/redrive"


CONSOLE: Final = (
    Attack("console", "a redrive without a session", "401", _console("POST", _redrive_path, by=None)),
    Attack("console", "a redrive by a viewer", "403", _console("POST", _redrive_path, by=VERA)),
    Attack(
        "console",
        "a redrive from another site's page",
        "403",
        _console("POST", _redrive_path, by=OLGA, cookie=True),
    ),
    Attack(
        "console",
        "the requester approves at the console",
        "403",
        _console("POST", lambda at: f"/api/approvals/{at.waiting}/approve", by=ADA),
    ),
    Attack("console", "an operator lists the users", "403", _console("GET", lambda _: "/api/users", by=OLGA)),
)


def _gateway(
    path: str, *, token: Callable[[DefendedPlatform], str | None] = lambda at: at.api_key, body: bytes | None = None
) -> Run:
    async def run(at: DefendedPlatform) -> str:
        given = token(at)
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {given}"} if given else {})
        content = json.dumps(_ORDER).encode() if body is None else body
        return status_of(
            await at.http.post(f"{at.topology.console_url}/gateway{path}", content=content, headers=headers)
        )

    return run


def _raw(request: Callable[[DefendedPlatform], bytes]) -> Run:
    async def run(at: DefendedPlatform) -> str:
        return await raw_answer(at.topology.console_port, request(at))

    return run


def _lines(at: DefendedPlatform, path: str, *more: str) -> bytes:
    lines = (f"POST {path} HTTP/1.1", "host: x", f"authorization: Bearer {at.api_key}", *more)
    return "".join(f"{line}\r\n" for line in lines).encode("latin-1") + b"\r\n"


def _trick(path: str, expected: str = "400") -> Attack:
    def request(at: DefendedPlatform) -> bytes:
        return _lines(at, path, "content-length: 0", "connection: close")

    return Attack("gateway", f"path {path}", expected, _raw(request))


_RUN: Final = "/gateway/Trips/attack/run"
GATEWAY: Final = (
    Attack("gateway", "no key", "401", _gateway("/Trips/attack/run", token=lambda _: None)),
    Attack("gateway", "an unknown key", "401", _gateway("/Trips/attack/run", token=lambda _: "pdk_" + "x" * 43)),
    Attack("gateway", "a handler that the key does not permit", "403", _gateway("/DeadLetters/redrive")),
    Attack("gateway", "a viewer redrives", "403", _gateway("/DeadLetters/redrive", token=lambda at: at.sessions[VERA])),
    Attack("gateway", "a viewer books", "403", _gateway("/Trips/attack/run", token=lambda at: at.sessions[VERA])),
    Attack("gateway", "a private handler", "404", _gateway("/Payments/charge")),
    Attack("gateway", "the admin API", "404", _gateway("/query/run", body=b'{"query":"select 1"}')),
    Attack("gateway", "a body that is too long", "413", _gateway("/Trips/attack/run", body=b" " * (MAX_BODY + 1))),
    Attack(
        "gateway",
        "a body that never ends",
        "408",
        _raw(lambda at: _lines(at, _RUN, "content-type: application/json", "content-length: 50") + b"{"),
    ),
    Attack(
        "gateway",
        "a body without an end, in chunks",
        "413",
        _raw(
            lambda at: (
                _lines(at, _RUN, "content-type: application/json", "transfer-encoding: chunked")
                + (b"2000\r\n" + b" " * 0x2000 + b"\r\n") * 10
                + b"0\r\n\r\n"
            )
        ),
    ),
    Attack(
        "gateway",
        "a header within a header's value",
        "400",
        _raw(lambda at: _lines(at, _RUN, "idempotency-key: a\rx-evil: b", "content-length: 0", "connection: close")),
    ),
    Attack(
        "gateway",
        "an idempotency key that can't be printed",
        "400",
        _raw(lambda at: _lines(at, _RUN, "idempotency-key: a\xa0b", "content-length: 0", "connection: close")),
    ),
    Attack(
        "gateway",
        "two authorizations",
        "401",
        _raw(lambda at: _lines(at, _RUN, "authorization: Bearer other", "content-length: 0", "connection: close")),
    ),
    *map(
        _trick,
        (
            "/gateway//Trips/x/run",
            "/gateway/Trips//run",
            "/gateway/Trips/x/run/",
            "/gateway/Trips/../Payments/charge",
            "/gateway/Trips/%2e%2e/run",
            "/gateway/Trips/x%2f..%2fPayments/run",
            "/gateway/Trips/x%5Cy/run",
            "/gateway/Trips/x%00/run",
            "/gateway/%54rips%2fx/run",
            "/gateway/restate/invocation/inv_1/cancel",
            "/gateway/Trips/x/run?delay=1s",
        ),
    ),
    _trick("/gateway/Trips/x%0d%0aevil:1/run", "404"),  # no route of the console matches a line break
)
