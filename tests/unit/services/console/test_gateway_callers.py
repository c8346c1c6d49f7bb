"""What the gateway tells handlers of their callers, and what callers may read of executions."""

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
from perdure.security.callers import SignedCall, vouch_for_call
from services.console.engine import Engine
from services.console.gateway.executions import Executions
from services.console.people.roles import Role
from services.console.signing import Signer

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
    """An engine that keeps what the gateway sends, as a journal does."""

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
async def gateway(desk: Any) -> AsyncIterator[tuple[Recorder, httpx.AsyncClient]]:
    engine = Recorder()
    async with httpx.AsyncClient(transport=httpx.MockTransport(engine)) as http, desk.client() as client:
        desk.app.state.parts = dataclasses.replace(
            desk.parts, engine=Engine("http://ingress.test", "http://admin.test", http)
        )
        yield engine, client


async def key_of(desk: Any, name: str) -> dict[str, str]:
    secret, _ = await desk.parts.api_keys.add(name, RIGHTS, by="olga@example.com")
    return {"authorization": f"Bearer {secret}"}


async def session_of(desk: Any, name: str, *roles: Role) -> dict[str, str]:
    return {"authorization": f"Bearer {await desk.add(name, *roles)}"}


def trust(desk: Any) -> TrustedKeys:
    return TrustedKeys(issuers=(desk.parts.signer.issuer,))


async def test_handler_is_told_who_calls_what(desk):
    async with gateway(desk) as (engine, client):
        shop, zoe = await key_of(desk, "shop"), await session_of(desk, "zoë 王@example.com", Role.OPERATOR)
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
                trust(desk),
                engine.token,
                target=CallTarget(service="Trips", handler="run", key="té"),
                body=body,
                now=desk.clock(),
            )
            assert found == caller
            assert engine.sent[-1].headers.get_list(CALLER_HEADER) == [engine.token]


@pytest.mark.parametrize(
    ("delay", "waits"),
    [
        ("10s", timedelta(seconds=10)),
        ("1h30m", timedelta(minutes=90)),
        ("500ms", timedelta(milliseconds=500)),
        ("3d", timedelta(days=3)),
        ("PT10S", timedelta(seconds=10)),
        ("P2D", timedelta(days=2)),
    ],
)
async def test_delayed_send_is_signed_for_later(desk, delay: str, waits: timedelta):
    async with gateway(desk) as (engine, client):
        shop = await key_of(desk, "shop")
        assert (await client.post(f"/gateway/Trips/t1/run/send?delay={delay}", headers=shop)).status_code == 200
        assert engine.sent[-1].url.query == f"delay={delay}".encode()
        call = SignedCall.from_token(engine.token, longest=10_000)
        assert call is not None
        assert call.expires_at - call.at == waits + timedelta(days=1)


@pytest.mark.parametrize(
    "delay", ["soon", "10", "s", "1.5s", "P", "PT", "10S", "1w", "99999999999d", "999999999d", "P-1D"]
)
async def test_refuse_delay_that_is_no_duration(desk, delay: str):
    async with gateway(desk) as (engine, client):
        shop = await key_of(desk, "shop")
        answer = await client.post(f"/gateway/Trips/t1/run/send?delay={delay}", headers=shop)
        assert (answer.status_code, answer.json()["code"]) == (400, "path_refused")
        assert engine.sent == []


async def test_idempotency_keys_are_the_callers_own(desk):
    async with gateway(desk) as (engine, client):
        callers = [
            await key_of(desk, "shop"),
            await key_of(desk, "till"),
            await session_of(desk, "shop", Role.OPERATOR),
        ]
        for headers in callers:
            for given in ("order-1", "order-1", "order-2"):
                sent = {**headers, "idempotency-key": given}
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


async def test_caller_reads_only_own_executions(desk):
    async with gateway(desk) as (engine, client):
        shop, till = await key_of(desk, "shop"), await key_of(desk, "till")
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
        # What is no reading is what the key was made for, whoever has started the workflow.
        assert (await client.post("/gateway/Trips/t1/pay", headers=till)).status_code == 200


async def test_operators_read_all_executions_and_viewers_their_own(desk):
    async with gateway(desk) as (engine, client):
        operator = await session_of(desk, "olga@example.com", Role.OPERATOR)
        viewer = await session_of(desk, "vera@example.com", Role.VIEWER)
        await client.post("/gateway/Trips/t1/run", headers=await key_of(desk, "shop"))
        for method, path in READS:
            assert (await client.request(method, path.format("t1"), headers=operator)).status_code == 200
            expected = 200 if path.endswith("status") else 404  # the console shows a viewer the status of each saga
            assert (await client.request(method, path.format("t1"), headers=viewer)).status_code == expected
        vouched = desk.parts.signer.vouch(
            Caller(name="vera@example.com"), CallTarget(service="Trips", handler="run", key="t2"), b""
        )
        engine.journal["t2"] = [(CALLER_HEADER, vouched)]
        assert (await client.get("/gateway/restate/workflow/Trips/t2/output", headers=viewer)).status_code == 200


async def test_forged_starter_owns_nothing(desk):
    stranger, own = PrivateKey.generate(), desk.parts.signer
    shop = Caller(name="key:shop", kind=CallerKind.PROGRAM, owner="olga@example.com")
    target, other = (CallTarget(service="Trips", handler="run", key=key) for key in ("t1", "t2"))
    genuine = own.vouch(shop, target, b"")
    copied = f'x"}},{{"name":"{CALLER_HEADER}","value":"{genuine}"}}'
    async with gateway(desk) as (engine, _):
        for headers, expected in (
            ([(CALLER_HEADER, genuine)], "key:shop"),
            ([(CALLER_HEADER, own.vouch(shop, other, b""))], None),
            ([(CALLER_HEADER, vouch_for_call(stranger, shop, target, b"", at=desk.clock()))], None),
            ([(CALLER_HEADER, vouch_for_call(own._issuer, shop, target, b"", at=desk.clock(), platform="b"))], None),
            ([(CALLER_HEADER, "key:shop")], None),
            ([(CALLER_HEADER, genuine), (CALLER_HEADER, "key:till")], None),
            ([("user-agent", copied)], None),
            ([], None),
        ):
            engine.journal["t1"] = headers
            executions = Executions(desk.app.state.parts.engine, trust(desk))
            assert await executions.starter(target) == expected, headers


async def test_start_before_a_change_of_keys_counts(desk):
    old = PrivateKey.generate()
    shop = Caller(name="key:shop", kind=CallerKind.PROGRAM, owner="olga@example.com")
    target = CallTarget(service="Trips", handler="run", key="t1")
    async with gateway(desk) as (engine, _):
        engine.journal["t1"] = [(CALLER_HEADER, Signer(old, desk.clock).vouch(shop, target, b""))]
        both = TrustedKeys(issuers=(desk.parts.signer.issuer, old.public))
        assert await Executions(desk.app.state.parts.engine, both).starter(target) == "key:shop"


async def test_known_starter_is_remembered_briefly(desk):
    async with gateway(desk) as (engine, _):
        now = 0.0
        target = CallTarget(service="Trips", handler="run", key="t'1")
        executions = Executions(desk.app.state.parts.engine, trust(desk), clock=lambda: now)
        for _ in range(2):
            assert await executions.starter(target) is None
        assert len(engine.queries) == 2
        assert "target_service_key = 't''1'" in engine.queries[0]
        shop = Caller(name="key:shop", kind=CallerKind.PROGRAM, owner="olga@example.com")
        engine.journal["t''1"] = [(CALLER_HEADER, desk.parts.signer.vouch(shop, target, b""))]
        for _ in range(3):
            assert await executions.starter(target) == "key:shop"
        assert len(engine.queries) == 3
        now = 6.0
        assert await executions.starter(target) == "key:shop"
        assert len(engine.queries) == 4
