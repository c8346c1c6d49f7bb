from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
import restate as sdk

from perdure._runtime.asgi import Message
from perdure.errors import ConfigurationError
from perdure.serving import ServiceApp, build_app
from perdure.serving import app as serving_app
from tests.support import PATIENCE


def service(name: str = "Greeter") -> sdk.Service:
    greeter = sdk.Service(name)

    @greeter.handler()
    async def greet(ctx: sdk.Context, name: str) -> str:
        return name

    return greeter


class Definitions:
    """Stand-in for a service of Perdure."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def definitions(self) -> Sequence[sdk.Service]:
        return [service(name) for name in self.names]


async def ask(app: ServiceApp, path: str, *, headers: Sequence[tuple[bytes, bytes]] = ()) -> tuple[int, Any]:
    sent: list[Message] = []
    incoming: asyncio.Queue[Message] = asyncio.Queue()
    incoming.put_nowait({"type": "http.request", "body": b"", "more_body": False})

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "http_version": "2", "method": "GET", "path": path, "headers": list(headers)}
    await asyncio.wait_for(app(scope, incoming.get, send), PATIENCE)
    body = b"".join(message.get("body", b"") for message in sent)
    status = sent[0]["status"]
    return status, json.loads(body) if body and status != 401 else None  # refusals are plain text


async def test_serve_perdure_and_sdk_services():
    app = build_app(Definitions("Trips", "TripsCompensations"), service("Plain"), sdk.VirtualObject("Thing"))

    status, manifest = await ask(
        app, "/discover", headers=[(b"accept", b"application/vnd.restate.endpointmanifest.v3+json")]
    )

    assert status == 200
    assert [each["name"] for each in manifest["services"]] == ["Trips", "TripsCompensations", "Plain", "Thing"]
    assert app.names == ("Trips", "TripsCompensations", "Plain", "Thing")


async def test_health_returns_ok():
    assert await ask(build_app(service()), "/health") == (200, {"status": "ok"})


async def test_ready_when_all_checks_pass():
    async def passes() -> None:
        return

    app = build_app(service(), readiness={"database": passes, "cache": passes})

    assert await ask(app, "/ready") == (200, {"status": "ready", "checks": {"database": "ok", "cache": "ok"}})


async def test_failing_check_makes_unready_without_details(caplog: pytest.LogCaptureFixture):
    async def passes() -> None:
        return

    async def fails() -> None:
        raise ConnectionError("postgresql://user:secret@host refused")

    app = build_app(service(), readiness={"cache": passes, "database": fails})
    status, body = await ask(app, "/ready")

    assert status == 503
    assert body == {"status": "unready", "checks": {"cache": "ok", "database": "failed (ConnectionError)"}}
    assert "readiness check failed" in caplog.text


async def test_hanging_check_makes_unready(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(serving_app, "_CHECK_TIMEOUT", timedelta(milliseconds=10))
    app = build_app(service(), readiness={"database": asyncio.Event().wait})

    assert await ask(app, "/ready") == (503, {"status": "unready", "checks": {"database": "timed out"}})


async def test_unready_while_draining():
    app = build_app(service())
    await app.drain.drain(timedelta(0))

    assert await ask(app, "/ready") == (503, {"status": "draining"})
    assert (await ask(app, "/health"))[0] == 200


async def test_unknown_path_or_handler_returns_404():
    app = build_app(service())

    assert (await ask(app, "/nothing"))[0] == 404
    assert (await ask(app, "/invoke/Greeter/nothing"))[0] == 404
    assert (await ask(app, "/invoke/Missing/greet"))[0] == 404


async def test_identity_keys_refuse_unsigned_requests():
    app = build_app(service(), identity_keys=["publickeyv1_w7YHemBctH5Ck2nQRQ47iBBqhNHy4FV7t2Usbye2A6f"])

    assert (await ask(app, "/discover"))[0] == 401
    assert (await ask(app, "/invoke/Greeter/greet"))[0] == 401
    assert (await ask(app, "/health"))[0] == 200
    assert (await ask(app, "/ready"))[0] == 200


async def test_refuse_other_protocols_than_http():
    async def unused(*_: object) -> Any:
        raise AssertionError

    with pytest.raises(NotImplementedError, match="lifespan is not served"):
        await build_app(service())({"type": "lifespan"}, unused, unused)


async def test_sdk_does_not_take_over_sigterm():
    """It takes over SIGTERM in its first call in the main thread, and then servers never stop."""

    def mine(*_: object) -> None:
        return

    before = signal.signal(signal.SIGTERM, mine)
    try:
        app = build_app(service())
        await ask(app, "/discover")
        await ask(app, "/invoke/Greeter/nothing")
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


async def test_raw_sdk_takes_over_sigterm():
    """If this fails after an SDK update, remove the first call in a thread."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        await ask(sdk.app([service()]), "/health")
        assert signal.getsignal(signal.SIGTERM) is not before
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
        signal.signal(signal.SIGTERM, before)


def test_refuse_empty_services():
    with pytest.raises(ConfigurationError, match="no services to serve"):
        build_app()
    with pytest.raises(ConfigurationError, match="no services to serve"):
        build_app(Definitions())


def test_refuse_duplicate_service_names():
    with pytest.raises(ConfigurationError, match="two services have the same name: Trips"):
        build_app(Definitions("Trips"), service("Trips"), service("Other"))


def test_refuse_other_objects_than_services():
    with pytest.raises(ConfigurationError, match=r"cannot serve 'Trips'"):
        build_app("Trips")  # type: ignore[arg-type] # not a service


def test_refuse_malformed_identity_key():
    with pytest.raises(ConfigurationError, match="malformed identity key"):
        build_app(service(), identity_keys=["secret"])
