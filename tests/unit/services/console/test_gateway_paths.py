"""Paths at the gateway: what is taken, what is refused, and that what is sent on can't be read otherwise."""

from __future__ import annotations

import time
from contextlib import suppress
from urllib.parse import quote, unquote, urlsplit

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from limits import parse
from services.console.gateway.limits import RateLimits
from services.console.gateway.paths import read_path

from services.console.problems import ConsoleError

KEYED = frozenset({"Trips", "Approvals"})


def ask(path: str | bytes, query: bytes = b"") -> str:
    raw = path if isinstance(path, bytes) else path.encode("latin-1")
    asked = read_path(raw, query, KEYED)
    return f"{asked.method} {asked.path}"


@pytest.mark.parametrize(
    ("path", "query", "sent"),
    [
        ("/gateway/DeadLetters/list", b"", "POST /DeadLetters/list"),
        ("/gateway/DeadLetters/list/send", b"delay=10s", "POST /DeadLetters/list/send?delay=10s"),
        ("/gateway/Trips/t1/run", b"", "POST /Trips/t1/run"),
        ("/gateway/Trips/t1/run/send", b"", "POST /Trips/t1/run/send"),
        ("/gateway/Trips/send/send", b"", "POST /Trips/send/send"),
        ("/gateway/Trips/a%20b/status", b"", "POST /Trips/a%20b/status"),
        ("/gateway/Trips/%C3%A9/status", b"", "POST /Trips/%C3%A9/status"),
        ("/gateway/Trips/%252f/status", b"", "POST /Trips/%252f/status"),
        ("/gateway/%54rips/t1/run", b"", "POST /Trips/t1/run"),
        ("/gateway/restate/workflow/Trips/t1/attach", b"", "GET /restate/workflow/Trips/t1/attach"),
        ("/gateway/restate/workflow/Trips/t1/output", b"", "GET /restate/workflow/Trips/t1/output"),
    ],
)
def test_what_is_taken_is_written_anew(path: str, query: bytes, sent: str):
    assert ask(path, query) == sent


@pytest.mark.parametrize(
    ("path", "query"),
    [
        *[
            (path, b"")
            for path in (
                "/gateway/",
                "/gateway",
                "/gateway%2fTrips/t1/run",
                "/Gateway/Trips/t1/run",
                "/gateway//Trips/t1/run",
                "/gateway/Trips//run",
                "/gateway/Trips/t1/run/",
                "/gateway/Trips/../t1/run",
                "/gateway/Trips/./run",
                "/gateway/Trips/%2e%2e/run",
                "/gateway/Trips/%2E/run",
                "/gateway/Trips/a%2fb/run",
                "/gateway/Trips/a%2Fb/run",
                "/gateway/Trips/a%5cb/run",
                "/gateway/Trips/a\\b/run",
                "/gateway/Trips/a%00/run",
                "/gateway/Trips/a%0d%0ab/run",
                "/gateway/Trips/a%7f/run",
                "/gateway/Trips/a b/run",
                "/gateway/Trips/a?b/run",
                "/gateway/Trips/a#b/run",
                "/gateway/Trips/%ff/run",
                "/gateway/Trips/%c0%af/run",
                "/gateway/Trips/%/run",
                "/gateway/Trips/%2/run",
                "/gateway/Trips/%zz/run",
                "/gateway/Trips/\xe9/run",
                "/gateway/Trips/%E2%80%AE/run",
                "/gateway/Trips/t1",
                "/gateway/Trips",
                "/gateway/Trips/t1/x/run",
                "/gateway/Trips/t1/run%20/send",
                "/gateway/Tr%20ips/t1/run",
                "/gateway/DeadLetters/x/list",
                "/gateway/restate/invocation/inv_1/attach",
                "/gateway/restate/invocation/inv_1/cancel",
                "/gateway/restate/awakeables/x/resolve",
                "/gateway/restate/workflow/Trips/t1",
                "/gateway/restate/workflow/Trips/t1/purge",
                "/gateway/restate/health",
                f"/gateway/Trips/{'x' * 5000}/run",
            )
        ],
        ("/gateway/Trips/t1/run", b"delay=10s"),
        ("/gateway/Trips/t1/run/send", b"delay=10s&x=1"),
        ("/gateway/Trips/t1/run/send", b"delay=%0d"),
        ("/gateway/Trips/t1/run/send", b"delay="),
        ("/gateway/Trips/t1/run/send", b"x"),
    ],
)
def test_what_is_refused(path: str, query: bytes):
    with pytest.raises(ConsoleError) as refused:
        ask(path, query)
    assert refused.value.status in (400, 414)


@given(st.binary(max_size=60) | st.text("/%.2fFeE5c\\ab?#;:@", max_size=40).map(lambda text: text.encode()))
def test_whatever_comes_is_refused_or_read_by_everybody_in_the_same_way(rest: bytes):
    try:
        asked = read_path(b"/gateway/" + rest, b"", KEYED)
    except ConsoleError:
        return
    segments = urlsplit(asked.path).path.split("/")[1:]
    assert all(each not in ("", ".", "..") for each in map(unquote, segments))
    key = [] if asked.key is None else [asked.key]
    if asked.way in ("attach", "output"):
        assert list(map(unquote, segments)) == ["restate", "workflow", asked.service, *key, asked.way]
    else:
        sent = ["send"] if asked.way == "send" else []
        assert list(map(unquote, segments)) == [asked.service, *key, asked.handler, *sent]
    # An HTTP client sends it as it is.
    assert httpx.URL(f"http://engine{asked.path}").raw_path == asked.path.encode()


@given(st.text(min_size=1, max_size=30))
def test_a_key_arrives_as_it_is_or_not_at_all(key: str):
    try:
        path = f"/gateway/Trips/{quote(key, safe='')}/run"
    except UnicodeEncodeError:
        return
    try:
        asked = read_path(path.encode(), b"", KEYED)
    except ConsoleError:
        assert key in (".", "..") or "/" in key or "\\" in key or not key.isprintable()
        return
    assert asked.key == key
    assert unquote(asked.path.split("/")[2]) == key


async def refused(found: RateLimits, caller: str) -> ConsoleError:
    with pytest.raises(ConsoleError) as error:
        async with found.taken(caller):
            pass
    assert error.value.status == 429
    return error.value


async def take(found: RateLimits, caller: str, times: int = 1) -> None:
    for _ in range(times):
        async with found.taken(caller):
            pass


async def test_each_caller_has_a_rate_of_their_own(monkeypatch):
    now = 1_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    found = RateLimits(parse("3/2 seconds"), at_once=2)
    await take(found, "ada", 3)
    error = await refused(found, "ada")
    assert 1 <= error.retry_after <= 2
    assert error.message == "at most 3 per 2 second: slow down"
    await take(found, "bob")
    now += 4
    await take(found, "ada", 3)
    await refused(found, "ada")


async def test_error_frees_gateway_slot():
    found = RateLimits(parse("100/second"), at_once=2)
    async with found.taken("ada"):
        with suppress(RuntimeError):
            async with found.taken("ada"):
                assert "open already" in (await refused(found, "ada")).message
                raise RuntimeError
        await take(found, "ada")
