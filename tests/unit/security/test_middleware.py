"""Middleware that refuses unauthorised requests, and the apps that use it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any

import pytest
import restate as sdk
from pydantic import SecretStr

from perdure._runtime.asgi import Message, Receive, Scope, Send, respond_json
from perdure.errors import ConfigurationError
from perdure.observability.instruments import export_to_prometheus, prometheus_text
from perdure.security import PrivateKey
from perdure.security import middleware as module
from perdure.security.config import SecurityConfig
from perdure.security.encodings import base64url_encode
from perdure.security.middleware import SecurityMiddleware
from perdure.serving import build_app

KEY, OLD_KEY = PrivateKey(b"k" * 32), PrivateKey(b"o" * 32)
END: Message = {"type": "http.request", "body": b"", "more_body": False}


async def inner(scope: Scope, receive: Receive, send: Send) -> None:
    await respond_json(send, 200, {"path": scope["path"]})


def protected(**settings: Any) -> SecurityMiddleware:
    defaults = {"signing_keys": (KEY.public.id, OLD_KEY.public.id), "require_https": False}
    return SecurityMiddleware(inner, SecurityConfig(**{**defaults, **settings}))


def signature(path: str, key: PrivateKey = KEY) -> list[tuple[bytes, bytes]]:
    now = int(time.time())
    head = base64url_encode(json.dumps({"alg": "EdDSA", "kid": key.public.id}).encode())
    claims = base64url_encode(json.dumps({"aud": path, "iat": now, "nbf": now - 60, "exp": now + 60}).encode())
    jwt = f"{head}.{claims}.{base64url_encode(key.sign(f'{head}.{claims}'.encode()))}"
    return [(b"x-restate-signature-scheme", b"v1"), (b"x-restate-jwt-v1", jwt.encode())]


async def ask(
    app: Any,
    path: str,
    *headers: tuple[bytes, bytes],
    events: Sequence[Message] = (END,),
    peer: str = "10.1.2.3",
    within: float = 5,
) -> tuple[int, str]:
    sent: list[Message] = []
    incoming: asyncio.Queue[Message] = asyncio.Queue()
    for event in events:
        incoming.put_nowait(event)

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "http_version": "2",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "headers": headers,
        "client": (peer, 1),
    }
    await asyncio.wait_for(app(scope, incoming.get, send), within)
    assert sent[0]["type"] == "http.response.start"
    assert not sent[-1].get("more_body", False)
    if sent[0]["status"] != 200:
        assert sent[1]["body"]  # granian sends the status with it
        assert sent[1]["more_body"]
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent).decode()


def refusals(rule: str, mode: str) -> float:
    export_to_prometheus()
    for line in prometheus_text()[0].decode().splitlines():
        if line.startswith("perdure_security_refusals") and f'rule="{rule}"' in line and f'mode="{mode}"' in line:
            return float(line.rpartition(" ")[2])
    return 0


@pytest.mark.parametrize("key", [KEY, OLD_KEY])
async def test_signed_request_is_served(key: PrivateKey):
    assert (await ask(protected(), "/invoke/S/h", *signature("/invoke/S/h", key)))[0] == 200


@pytest.mark.parametrize(
    "path",
    ["/discover", "/invoke/S/h", "/", "", "//health", "/health/", "/x/health", "/Health", "/ready/x"],
)
async def test_refuse_unsigned_request(path: str):
    before = refusals("identity", "strict")
    assert await ask(protected(), path) == (401, "the request is not signed\n")
    assert refusals("identity", "strict") == before + 1


@pytest.mark.parametrize("path", ["/health", "/ready"])
async def test_health_and_readiness_are_open(path: str):
    assert (await ask(protected(require_https=True), path))[0] == 200


async def test_https_and_origin_violations_return_403():
    assert await ask(protected(require_https=True), "/discover", *signature("/discover")) == (
        403,
        "HTTPS required but request received over HTTP\n",
    )
    status, text = await ask(protected(), "/discover", (b"origin", b"https://evil.example"), *signature("/discover"))
    assert (status, text) == (403, "origin not allowed\n")


async def test_permissive_mode_logs_counts_and_serves(caplog: pytest.LogCaptureFixture):
    before = refusals("identity", "permissive")
    secret = (b"authorization", b"Bearer very-secret")
    assert (await ask(protected(validation_mode="permissive"), "/invoke/S/h", secret))[0] == 200
    assert refusals("identity", "permissive") == before + 1
    assert "violates a security rule (permissive)" in caplog.text
    assert "the request is not signed" in caplog.text
    assert "very-secret" not in caplog.text


async def test_disabled_mode_is_logged_at_start(caplog: pytest.LogCaptureFixture):
    app = SecurityMiddleware(inner, SecurityConfig.development(validation_mode="disabled"))
    assert "security is disabled" in caplog.text
    assert (await ask(app, "/invoke/S/h"))[0] == 200
    assert (await ask(app, "/metrics"))[0] == 200


def test_refuse_missing_signing_keys():
    with pytest.raises(ConfigurationError, match="PERDURE_SECURITY_SIGNING_KEYS"):
        protected(signing_keys=())


@pytest.mark.parametrize(
    ("headers", "peer", "status"),
    [
        ([], "127.0.0.1", 200),
        ([], "::1", 200),
        ([], "::ffff:127.0.0.1", 200),
        ([], "10.1.2.3", 401),
        ([(b"authorization", b"Bearer f7GxPQ2m9sRt")], "10.1.2.3", 200),
        ([(b"authorization", b"Bearer f7GxPQ2m9sR")], "10.1.2.3", 401),
        ([(b"authorization", b"bearer f7GxPQ2m9sRt")], "10.1.2.3", 401),
        ([(b"authorization", b"Bearer f7GxPQ2m9sRt"), (b"authorization", b"Bearer x")], "10.1.2.3", 401),
        ([(b"x-forwarded-for", b"127.0.0.1")], "10.1.2.3", 401),
        (signature("/metrics"), "10.1.2.3", 401),  # not for the engine
    ],
)
async def test_metrics_require_local_client_or_token(headers: list[tuple[bytes, bytes]], peer: str, status: int):
    app = protected(metrics_token=SecretStr("f7GxPQ2m9sRt"), require_https=True)
    assert (await ask(app, "/metrics", *headers, peer=peer))[0] == status


async def test_metrics_without_token_are_local():
    assert (await ask(protected(), "/metrics", (b"authorization", b"Bearer "), peer="10.1.2.3"))[0] == 401


async def test_stop_reading_slow_refused_request(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_READ_TIMEOUT", 0.02)
    slow: Message = {"type": "http.request", "body": b"x", "more_body": True}
    assert (await ask(protected(), "/invoke/S/h", events=[slow]))[0] == 401


async def test_stop_reading_large_refused_request():
    chunk: Message = {"type": "http.request", "body": b"x" * 65536, "more_body": True}
    events = [chunk] * 100
    assert (await ask(protected(), "/invoke/S/h", events=events))[0] == 401


async def test_refused_client_may_disconnect():
    assert (await ask(protected(), "/discover", events=[{"type": "http.disconnect"}]))[0] == 401


def service() -> sdk.Service:
    greeter = sdk.Service("PrivateGreeter")

    @greeter.handler()
    async def greet(ctx: sdk.Context, name: str) -> str:
        return name

    @greeter.handler(ingress_private=False)
    async def wave(ctx: sdk.Context, name: str) -> str:
        return name

    return greeter


ACCEPT = (b"accept", b"application/vnd.restate.endpointmanifest.v3+json")


async def manifest(app: Any) -> dict[str, Any]:
    status, text = await ask(app, "/discover", ACCEPT, *signature("/discover"))
    assert status == 200
    return {handler["name"]: handler.get("ingressPrivate") for handler in json.loads(text)["services"][0]["handlers"]}


async def test_handlers_are_private_unless_declared_public():
    greeter = service()
    config = SecurityConfig(signing_keys=(KEY.public.id,), require_https=False)
    assert await manifest(build_app(greeter, security=config)) == {"greet": True, "wave": False}
    open_config = SecurityConfig(signing_keys=(KEY.public.id,), require_https=False, restrict_public_access=False)
    assert await manifest(build_app(greeter, security=open_config)) == {"greet": None, "wave": False}


async def test_refused_attempts_are_not_counted():
    app = build_app(service(), security=SecurityConfig(signing_keys=(KEY.public.id,), require_https=False))
    assert (await ask(app, "/invoke/PrivateGreeter/greet"))[0] == 401
    assert "PrivateGreeter" not in prometheus_text()[0].decode()
    assert app.drain.open_attempts == 0


def test_build_app_refuses_unsafe_settings():
    with pytest.raises(ConfigurationError, match="needs an engine's public key"):
        build_app(service(), security=SecurityConfig())


def test_reject_identity_keys_beside_security():
    config = SecurityConfig(signing_keys=(KEY.public.id,), require_https=False)
    with pytest.raises(ConfigurationError, match="not both"):
        build_app(service(), security=config, identity_keys=[KEY.public.id])


def test_missing_security_is_logged(caplog: pytest.LogCaptureFixture):
    build_app(service())
    assert "no security settings" in caplog.text
