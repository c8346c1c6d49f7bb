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


def guarded(**settings: Any) -> SecurityMiddleware:
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
async def test_a_signed_request_gets_through(key: PrivateKey):
    assert (await ask(guarded(), "/invoke/S/h", *signature("/invoke/S/h", key)))[0] == 200


@pytest.mark.parametrize(
    "path",
    ["/discover", "/invoke/S/h", "/", "", "//health", "/health/", "/x/health", "/Health", "/ready/x"],
)
async def test_everything_else_is_refused_without_a_signature(path: str):
    before = refusals("identity", "strict")
    assert await ask(guarded(), path) == (401, "the request is not signed\n")
    assert refusals("identity", "strict") == before + 1


@pytest.mark.parametrize("path", ["/health", "/ready"])
async def test_health_and_readiness_are_open(path: str):
    assert (await ask(guarded(require_https=True), path))[0] == 200


async def test_what_it_would_not_help_to_know_is_403():
    assert await ask(guarded(require_https=True), "/discover", *signature("/discover")) == (
        403,
        "HTTPS required but request received over HTTP\n",
    )
    status, text = await ask(guarded(), "/discover", (b"origin", b"https://evil.example"), *signature("/discover"))
    assert (status, text) == (403, "origin not allowed\n")


async def test_permissive_logs_and_counts_and_lets_through(caplog: pytest.LogCaptureFixture):
    before = refusals("identity", "permissive")
    secret = (b"authorization", b"Bearer very-secret")
    assert (await ask(guarded(validation_mode="permissive"), "/invoke/S/h", secret))[0] == 200
    assert refusals("identity", "permissive") == before + 1
    assert "let through (permissive)" in caplog.text
    assert "the request is not signed" in caplog.text
    assert "very-secret" not in caplog.text


async def test_disabled_says_so_at_the_start(caplog: pytest.LogCaptureFixture):
    app = SecurityMiddleware(inner, SecurityConfig.development(validation_mode="disabled"))
    assert "security is disabled" in caplog.text
    assert (await ask(app, "/invoke/S/h"))[0] == 200
    assert (await ask(app, "/metrics"))[0] == 200


def test_a_start_that_protects_nobody_is_refused():
    with pytest.raises(ConfigurationError, match="PERDURE_SECURITY_SIGNING_KEYS"):
        guarded(signing_keys=())


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
        (signature("/metrics"), "10.1.2.3", 401),  # the engine has no business there
    ],
)
async def test_metrics_are_for_this_machine_or_with_the_token(
    headers: list[tuple[bytes, bytes]], peer: str, status: int
):
    app = guarded(metrics_token=SecretStr("f7GxPQ2m9sRt"), require_https=True)
    assert (await ask(app, "/metrics", *headers, peer=peer))[0] == status


async def test_without_a_token_metrics_are_for_this_machine():
    assert (await ask(guarded(), "/metrics", (b"authorization", b"Bearer "), peer="10.1.2.3"))[0] == 401


async def test_a_stranger_who_never_ends_is_left(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_PATIENCE", module.timedelta(milliseconds=20))
    slow: Message = {"type": "http.request", "body": b"x", "more_body": True}
    assert (await ask(guarded(), "/invoke/S/h", events=[slow]))[0] == 401


async def test_a_stranger_who_sends_without_end_is_left():
    chunk: Message = {"type": "http.request", "body": b"x" * 65536, "more_body": True}
    events = [chunk] * 100
    assert (await ask(guarded(), "/invoke/S/h", events=events))[0] == 401


async def test_a_stranger_who_hangs_up_is_left():
    assert (await ask(guarded(), "/discover", events=[{"type": "http.disconnect"}]))[0] == 401


def service() -> sdk.Service:
    greeter = sdk.Service("GuardedGreeter")

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


async def test_an_app_with_security_keeps_handlers_private_unless_declared_public():
    greeter = service()
    config = SecurityConfig(signing_keys=(KEY.public.id,), require_https=False)
    assert await manifest(build_app(greeter, security=config)) == {"greet": True, "wave": False}
    open_config = SecurityConfig(signing_keys=(KEY.public.id,), require_https=False, restrict_public_access=False)
    assert await manifest(build_app(greeter, security=open_config)) == {"greet": None, "wave": False}


async def test_an_app_with_security_refuses_strangers_and_counts_no_attempt_of_theirs():
    app = build_app(service(), security=SecurityConfig(signing_keys=(KEY.public.id,), require_https=False))
    assert (await ask(app, "/invoke/GuardedGreeter/greet"))[0] == 401
    assert "GuardedGreeter" not in prometheus_text()[0].decode()
    assert app.drain.open_attempts == 0


def test_an_app_with_settings_that_protect_nobody_is_not_made():
    with pytest.raises(ConfigurationError, match="no engine's key is known"):
        build_app(service(), security=SecurityConfig())


def test_keys_go_into_the_settings_or_beside_them_but_not_both():
    config = SecurityConfig(signing_keys=(KEY.public.id,), require_https=False)
    with pytest.raises(ConfigurationError, match="not beside them"):
        build_app(service(), security=config, identity_keys=[KEY.public.id])


def test_an_app_without_security_says_so(caplog: pytest.LogCaptureFixture):
    build_app(service())
    assert "no security settings are given" in caplog.text
