"""The caller as signed for handlers, and access of callers to executions."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import httpx
import pytest

from perdure.security import CALLER_HEADER, Caller, CallerKind, CallTarget, PrivateKey, TrustedKeys, verify_call
from perdure.security.callers import SignedCall, issue_call_token
from services.console.auth.roles import Role
from services.console.engine import EngineClient
from services.console.signing import Signer
from services.gateway.executions import Executions

SERVICES: list[dict[str, Any]] = [
    {
        "name": "Trips",
        "ty": "Workflow",
        "handlers": [
            {"name": "run", "ty": "Workflow"},
            {"name": "status", "ty": "Shared", "metadata": {"perdure.read_only": "true"}},
            {"name": "pay", "ty": "Shared"},
        ],
    },
    {"name": "Stock", "ty": "Service", "handlers": [{"name": "take"}]},
]
RIGHTS = ["Trips/*", "Stock/take"]


class Recorder:
    """An engine that records requests of the gateway, as a journal does."""

    def __init__(self) -> None:
        self.sent: list[httpx.Request] = []
        self.journal: dict[str, list[tuple[str, str]]] = {}
        self.queries: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/services":
            return httpx.Response(200, json={"services": SERVICES})
        if request.url.path == "/query":
            self.queries.append(sql := json.loads(request.content)["query"])
            found = [headers for key, headers in self.journal.items() if f"target_service_key = '{key}'" in sql]
            return httpx.Response(200, json={"rows": [{"entry": entry_of(headers)} for headers in found]})
        self.sent.append(request)
        _, service, *rest = request.url.path.split("/")
        if service == "Trips" and rest[1] == "run":
            self.journal.setdefault(rest[0], [(name, value) for name, value in request.headers.items()])
        return httpx.Response(200, json={})

    @property
    def token(self) -> str:
        return self.sent[-1].headers[CALLER_HEADER]


def entry_of(headers: list[tuple[str, str]], body: bytes = b"{}") -> str:
    named = [{"name": name, "value": value} for name, value in headers]
    entry = {"Command": {"Input": {"headers": named, "payload": list(body), "name": ""}}}
    return json.dumps(entry, separators=(",", ":"))


@asynccontextmanager
async def gateway(console: Any) -> AsyncIterator[tuple[Recorder, httpx.AsyncClient]]:
    engine = Recorder()
    async with httpx.AsyncClient(transport=httpx.MockTransport(engine)) as http, console.client() as client:
        console.app.state.components = dataclasses.replace(
            console.components, engine=EngineClient("http://ingress.test", "http://admin.test", http)
        )
        yield engine, client


async def key_of(console: Any, name: str) -> dict[str, str]:
    secret, _ = await console.components.api_keys.add(name, RIGHTS, by="olga@example.com")
    return {"authorization": f"Bearer {secret}"}


async def session_of(console: Any, name: str, *roles: Role) -> dict[str, str]:
    return {"authorization": f"Bearer {await console.add(name, *roles)}"}


def trusted_keys(console: Any) -> TrustedKeys:
    return TrustedKeys(issuers=(console.components.signer.issuer,))


async def test_handler_receives_signed_caller(console):
    async with gateway(console) as (engine, client):
        shop, zoe = await key_of(console, "shop"), await session_of(console, "zoë 王@example.com", Role.OPERATOR)
        program = Caller(name="key:shop", kind=CallerKind.PROGRAM, owner="olga@example.com")
        for headers, caller in ((shop, program), (zoe, Caller(name="zoë 王@example.com"))):
            body = b'{ "seats": 2 }'
            answer = await client.post(
                "/gateway/Trips/t%C3%A9/run",
                content=body,
                headers={**headers, "content-type": "application/json", CALLER_HEADER: "key:forged"},
            )
            assert answer.status_code == 200
            found = verify_call(
                trusted_keys(console),
                engine.token,
                target=CallTarget(service="Trips", handler="run", key="té"),
                body=body,
                now=console.clock(),
            )
            assert found == caller
            assert engine.sent[-1].headers.get_list(CALLER_HEADER) == [engine.token]


@pytest.mark.parametrize(
    ("delay", "duration"),
    [
        ("10s", timedelta(seconds=10)),
        ("1h30m", timedelta(minutes=90)),
        ("500ms", timedelta(milliseconds=500)),
        ("3d", timedelta(days=3)),
        ("PT10S", timedelta(seconds=10)),
        ("P2D", timedelta(days=2)),
    ],
)
async def test_delayed_send_is_signed_for_later(console, delay: str, duration: timedelta):
    async with gateway(console) as (engine, client):
        shop = await key_of(console, "shop")
        assert (await client.post(f"/gateway/Trips/t1/run/send?delay={delay}", headers=shop)).status_code == 200
        assert engine.sent[-1].url.query == f"delay={delay}".encode()
        call = SignedCall.from_token(engine.token, max_length=10_000)
        assert call is not None
        assert call.expires_at - call.at == duration + timedelta(days=1)


@pytest.mark.parametrize(
    "delay", ["soon", "10", "s", "1.5s", "P", "PT", "10S", "1w", "99999999999d", "999999999d", "P-1D"]
)
async def test_reject_invalid_delay(console, delay: str):
    async with gateway(console) as (engine, client):
        shop = await key_of(console, "shop")
        answer = await client.post(f"/gateway/Trips/t1/run/send?delay={delay}", headers=shop)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_path")
        assert engine.sent == []


async def test_idempotency_keys_are_separate_per_caller(console):
    async with gateway(console) as (engine, client):
        callers = [
            await key_of(console, "shop"),
            await key_of(console, "till"),
            await session_of(console, "shop", Role.OPERATOR),
        ]
        for headers in callers:
            for key in ("order-1", "order-1", "order-2"):
                sent = {**headers, "idempotency-key": key}
                assert (await client.post("/gateway/Stock/take", headers=sent)).status_code == 200
        keys = [request.headers["idempotency-key"] for request in engine.sent]
        assert all(keys[number] == keys[number + 1] for number in (0, 3, 6))
        assert len(set(keys)) == 6
        await client.post("/gateway/Stock/take", headers=callers[0])
        assert "idempotency-key" not in engine.sent[-1].headers


READS = [
    ("GET", "/gateway/restate/workflow/Trips/{}/attach"),
    ("GET", "/gateway/restate/workflow/Trips/{}/output"),
    ("POST", "/gateway/Trips/{}/status"),
]


async def test_caller_reads_only_own_executions(console):
    async with gateway(console) as (engine, client):
        shop, till = await key_of(console, "shop"), await key_of(console, "till")
        assert (await client.post("/gateway/Trips/t1/run/send", headers=shop)).status_code == 200
        engine.journal["direct"] = [("x-restate-ingress-path", "/Trips/direct/run")]
        sent = len(engine.sent)
        for method, path in READS:
            for key in ("t1", "direct", "unknown"):
                answer = await client.request(method, path.format(key), headers=till)
                assert (answer.status_code, answer.json()["code"]) == (404, "no_execution"), (path, key)
        assert len(engine.sent) == sent
        for method, path in READS:
            assert (await client.request(method, path.format("t1"), headers=shop)).status_code == 200, path
        # A key may call its other handlers on any workflow.
        assert (await client.post("/gateway/Trips/t1/pay", headers=till)).status_code == 200


async def test_viewer_reads_only_own_executions(console):
    async with gateway(console) as (engine, client):
        operator = await session_of(console, "olga@example.com", Role.OPERATOR)
        viewer = await session_of(console, "vera@example.com", Role.VIEWER)
        await client.post("/gateway/Trips/t1/run", headers=await key_of(console, "shop"))
        for method, path in READS:
            assert (await client.request(method, path.format("t1"), headers=operator)).status_code == 200
            expected = 200 if path.endswith("status") else 404  # viewers see the status of every saga
            assert (await client.request(method, path.format("t1"), headers=viewer)).status_code == expected
        token = console.components.signer.sign_call(
            Caller(name="vera@example.com"), CallTarget(service="Trips", handler="run", key="t2"), b""
        )
        engine.journal["t2"] = [(CALLER_HEADER, token)]
        assert (await client.get("/gateway/restate/workflow/Trips/t2/output", headers=viewer)).status_code == 200


async def test_reject_forged_caller(console):
    other_issuer, own = PrivateKey.generate(), console.components.signer
    shop = Caller(name="key:shop", kind=CallerKind.PROGRAM, owner="olga@example.com")
    target, other = (CallTarget(service="Trips", handler="run", key=key) for key in ("t1", "t2"))
    genuine = own.sign_call(shop, target, b"")
    copied = f'x"}},{{"name":"{CALLER_HEADER}","value":"{genuine}"}}'
    async with gateway(console) as (engine, _):
        for headers, expected in (
            ([(CALLER_HEADER, genuine)], "key:shop"),
            ([(CALLER_HEADER, own.sign_call(shop, other, b""))], None),
            ([(CALLER_HEADER, issue_call_token(other_issuer, shop, target, b"", at=console.clock()))], None),
            (
                [(CALLER_HEADER, issue_call_token(own._issuer, shop, target, b"", at=console.clock(), platform="b"))],
                None,
            ),
            ([(CALLER_HEADER, "key:shop")], None),
            ([(CALLER_HEADER, genuine), (CALLER_HEADER, "key:till")], None),
            ([("user-agent", copied)], None),
            ([], None),
        ):
            engine.journal["t1"] = headers
            executions = Executions(console.app.state.components.engine, trusted_keys(console))
            assert await executions.starter(target) == expected, headers


async def test_caller_is_known_after_key_change(console):
    old = PrivateKey.generate()
    shop = Caller(name="key:shop", kind=CallerKind.PROGRAM, owner="olga@example.com")
    target = CallTarget(service="Trips", handler="run", key="t1")
    async with gateway(console) as (engine, _):
        engine.journal["t1"] = [(CALLER_HEADER, Signer(old, console.clock).sign_call(shop, target, b""))]
        both = TrustedKeys(issuers=(console.components.signer.issuer, old.public))
        assert await Executions(console.app.state.components.engine, both).starter(target) == "key:shop"


async def test_caller_is_cached_briefly(console):
    async with gateway(console) as (engine, _):
        now = 0.0
        target = CallTarget(service="Trips", handler="run", key="t'1")
        executions = Executions(console.app.state.components.engine, trusted_keys(console), clock=lambda: now)
        for _ in range(2):
            assert await executions.starter(target) is None
        assert len(engine.queries) == 2
        assert "target_service_key = 't''1'" in engine.queries[0]
        shop = Caller(name="key:shop", kind=CallerKind.PROGRAM, owner="olga@example.com")
        engine.journal["t''1"] = [(CALLER_HEADER, console.components.signer.sign_call(shop, target, b""))]
        for _ in range(3):
            assert await executions.starter(target) == "key:shop"
        assert len(engine.queries) == 3
        now = 6.0
        assert await executions.starter(target) == "key:shop"
        assert len(engine.queries) == 4
