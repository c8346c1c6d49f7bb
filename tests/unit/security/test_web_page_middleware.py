"""Refusal of web pages at the ports of services."""

from __future__ import annotations

import pytest

from perdure.security import PrivateKey, SecurityConfig, ValidationMode
from perdure.security.middleware import WebPageMiddleware

STRICT = SecurityConfig.development(
    enable_request_validation=True,
    validation_mode=ValidationMode.STRICT,
    signing_keys=(PrivateKey.generate().public.id,),
)
DISABLED = SecurityConfig.development(validation_mode=ValidationMode.DISABLED)
UNCHECKED = [None, SecurityConfig.development()]


async def status(config, *headers, path="/invoke/S/h", peer="127.0.0.1"):
    """Return the status of a request."""
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": list(headers), "client": (peer, 1)}
    await WebPageMiddleware(app, config)(scope, receive, send)
    return sent[0]["status"]


HOST = (b"host", b"127.0.0.1:9081")
REBOUND = (b"host", b"evil.example.com:9081")
PATHS = ["/invoke/S/h", "/discover", "/metrics", "/health", "/ready"]


@pytest.mark.parametrize("config", [*UNCHECKED, STRICT])
@pytest.mark.parametrize("path", PATHS)
async def test_page_is_refused(config, path):
    assert await status(config, HOST, (b"origin", b"https://evil.example.com"), path=path) == 403
    assert await status(config, HOST, (b"sec-fetch-site", b"cross-site"), path=path) == 403
    assert await status(config, HOST, (b"sec-fetch-site", b"same-origin"), path=path) == 403


@pytest.mark.parametrize("config", UNCHECKED)
@pytest.mark.parametrize("path", PATHS)
async def test_rebound_name_is_refused_locally(config, path):
    assert await status(config, REBOUND, path=path) == 403
    assert await status(config, REBOUND, path=path, peer="10.0.0.7") == 200


async def test_signed_invocation_may_name_any_host():
    assert await status(STRICT, REBOUND) == 200
    assert await status(STRICT, REBOUND, path="/metrics") == 403


@pytest.mark.parametrize("config", [*UNCHECKED, STRICT, DISABLED])
@pytest.mark.parametrize("path", PATHS)
async def test_program_is_served(config, path):
    assert await status(config, HOST, path=path) == 200
    assert await status(config, (b"host", b"host.docker.internal:9081"), path=path) == 200


async def test_allowed_page_and_host_are_served():
    config = SecurityConfig.development(allowed_origins=("https://a.example.com",), allowed_hosts=("x.tunnel.example",))
    assert await status(config, HOST, (b"origin", b"https://a.example.com")) == 200
    assert await status(config, (b"host", b"x.tunnel.example")) == 200
    assert await status(config, HOST, (b"origin", b"https://b.example.com")) == 403


async def test_disabled_checks_take_pages():
    assert await status(DISABLED, REBOUND, (b"origin", b"https://evil.example.com")) == 200
