"""Parsing of the gateway's paths, and limits per caller."""

from __future__ import annotations

import time
from contextlib import suppress
from urllib.parse import quote, unquote, urlsplit

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from limits import parse

from services.console.problems import ConsoleError
from services.gateway.limits import RateLimits
from services.gateway.paths import parse_path

KEYED = frozenset({"Trips", "Approvals"})


def forwarded(path: str | bytes, query: bytes = b"") -> str:
    raw = path if isinstance(path, bytes) else path.encode("latin-1")
    request = parse_path(raw, query, KEYED)
    return f"{request.method} {request.path}"


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
def test_forwarded_path_is_built_anew(path: str, query: bytes, sent: str):
    assert forwarded(path, query) == sent


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
def test_reject_invalid_paths(path: str, query: bytes):
    with pytest.raises(ConsoleError) as caught:
        forwarded(path, query)
    assert caught.value.status in (400, 414)


@given(st.binary(max_size=60) | st.text("/%.2fFeE5c\\ab?#;:@", max_size=40).map(lambda text: text.encode()))
def test_paths_are_unambiguous(rest: bytes):
    try:
        request = parse_path(b"/gateway/" + rest, b"", KEYED)
    except ConsoleError:
        return
    segments = urlsplit(request.path).path.split("/")[1:]
    assert all(each not in ("", ".", "..") for each in map(unquote, segments))
    key = [] if request.key is None else [request.key]
    if request.operation in ("attach", "output"):
        assert list(map(unquote, segments)) == ["restate", "workflow", request.service, *key, request.operation]
    else:
        sent = ["send"] if request.operation == "send" else []
        assert list(map(unquote, segments)) == [request.service, *key, request.handler, *sent]
    # An HTTP client sends it unchanged.
    assert httpx.URL(f"http://engine{request.path}").raw_path == request.path.encode()


@given(st.text(min_size=1, max_size=30))
def test_key_arrives_unchanged(key: str):
    try:
        path = f"/gateway/Trips/{quote(key, safe='')}/run"
    except UnicodeEncodeError:
        return
    try:
        request = parse_path(path.encode(), b"", KEYED)
    except ConsoleError:
        assert key in (".", "..") or "/" in key or "\\" in key or not key.isprintable()
        return
    assert request.key == key
    assert unquote(request.path.split("/")[2]) == key


async def rejected(found: RateLimits, caller: str) -> ConsoleError:
    with pytest.raises(ConsoleError) as error:
        async with found.counted(caller):
            pass
    assert error.value.status == 429
    return error.value


async def take(found: RateLimits, caller: str, times: int = 1) -> None:
    for _ in range(times):
        async with found.counted(caller):
            pass


async def test_rates_are_separate_per_caller(monkeypatch):
    now = 1_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    found = RateLimits(parse("3/2 seconds"), concurrency=2)
    await take(found, "ada", 3)
    error = await rejected(found, "ada")
    assert 1 <= error.retry_after <= 2
    assert error.message == "rate limit exceeded: 3 per 2 second"
    await take(found, "bob")
    now += 4
    await take(found, "ada", 3)
    await rejected(found, "ada")


async def test_error_frees_slot():
    found = RateLimits(parse("100/second"), concurrency=2)
    async with found.counted("ada"):
        with suppress(RuntimeError):
            async with found.counted("ada"):
                assert "of your requests are open" in (await rejected(found, "ada")).message
                raise RuntimeError
        await take(found, "ada")
