"""All attacks and a search for leaked secrets, on a platform with all security features enabled."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from uuid import uuid4

import httpx
import pytest
import pytest_asyncio

from perdure.engine import LocatedEngine
from services.runtime.booking import ORDINARY, new_trip_id
from services.runtime.platform import Platform
from services.runtime.topology import SERVICES
from tests.e2e.uncompressed import found_in, uncompressed_topology
from tests.support import eventually
from tests.system.attacks import ATTACKS, Attack, attack_all
from tests.system.attacks.platform import ADA, GRACE, KIM, MALLORY, VERA, DefendedPlatform, defended_environment
from tests.system.attacks.signed_actions import SIGNED_ACTIONS
from tests.system.observability.receiver import TraceReceiver
from tests.system.scenarios.orders import order

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

METRICS_TOKEN = f"planted-{uuid4().hex}"


@pytest.fixture(scope="module")
def traces() -> Iterator[TraceReceiver]:
    with TraceReceiver() as receiver:
        yield receiver


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def defended(
    engine: LocatedEngine, tmp_path_factory: pytest.TempPathFactory, traces: TraceReceiver
) -> AsyncIterator[DefendedPlatform]:
    topology = uncompressed_topology(tmp_path_factory.mktemp("defended"), tracing=traces.engine_endpoint)
    environment = {
        **defended_environment(topology, os.environ),
        "PERDURE_SECURITY_METRICS_TOKEN": METRICS_TOKEN,
        "OTEL_EXPORTER_OTLP_ENDPOINT": traces.url,
    }
    platform = Platform(topology, engine, report=print, environment=environment, console=True)
    try:
        await platform.start()
        async with DefendedPlatform.on(platform) as opened:
            yield opened
    finally:
        await platform.stop(asyncio.Event())


@pytest.mark.timeout(400)
async def test_every_attack_is_refused_and_changes_nothing(defended: DefendedPlatform):
    assert len(ATTACKS) >= 50
    assert {attack.boundary for attack in ATTACKS} == {
        "service",
        "engine",
        "page at ingress",
        "page at admin API",
        "page at a service",
        "completion",
        "signed action",
        "link",
        "rights",
        "files",
        "console",
        "gateway",
        "encryption",
        "floods",
        "text",
        "identity",
    }
    outcomes = await attack_all(defended)
    assert len(outcomes) == len(ATTACKS)
    assert [each for each in outcomes if not each.refused] == []


async def test_viewer_sees_steps_of_encrypted_saga(defended: DefendedPlatform):
    headers = {"authorization": f"Bearer {defended.sessions[VERA]}"}
    url = defended.topology.console_url
    saga = (await defended.http.get(f"{url}/api/sagas/{defended.linked}", headers=headers)).json()
    steps = [step["step"] for step in saga["timeline"]["steps"]]
    assert steps == ["order", "flight", "hotel", "approval", "payment"]
    rows = (await defended.http.get(f"{url}/api/sagas", headers=headers)).json()["items"]
    phases = {row["key"]: row["phase"] for row in rows}
    assert phases[defended.linked] == "completed"
    assert phases[defended.waiting] == "running"
    assert phases[defended.letter.saga_id] == "needs_attention"
    overview = (await defended.http.get(f"{url}/api/overview", headers=headers)).json()
    assert overview["open_approvals"] == 2


async def test_responses_contain_no_secret(defended: DefendedPlatform, traces: TraceReceiver):
    planted = f"planted-{uuid4().hex}"
    traveller = f"{uuid4().hex}@example.com"
    order = ORDINARY.model_copy(update={"traveller": traveller}).model_dump(mode="json")
    gateway = f"{defended.topology.console_url}/gateway/Trips/{new_trip_id()}"
    key = {"authorization": f"Bearer {defended.api_key}"}
    secrets = {
        "cookie": f"session={planted}",
        "x-api-key": planted,
        "proxy-authorization": planted,
        "x-secret": planted,
    }
    trace = uuid4().hex
    headers = {**key, **secrets, "traceparent": f"00-{trace}-{uuid4().hex[:16]}-01"}
    booked = await defended.http.post(f"{gateway}/run", json=order, headers=headers)
    assert booked.json()["status"] == "confirmed", booked.text

    failed = {"name": "vera@example.com", "password": planted}
    answers = [
        await defended.http.post(f"{defended.topology.console_url}/api/session", json=failed),
        await defended.http.post(f"{gateway}/run", json={**order, "payment": planted}, headers=key),
        await defended.http.post(f"{gateway}/run", json=order, headers={"authorization": f"Bearer pdk_{planted}"}),
        await defended.http.get(f"{defended.topology.console_url}/l/{defended.link}"),
        *[await defended.http.get(f"{defended.topology.service_url(spec.name)}/metrics") for spec in SERVICES],
    ]
    assert [answer.status_code for answer in answers[:3]] == [401, 400, 401]
    keys = defended.topology.keys_dir
    hidden = {
        planted,
        traveller,
        METRICS_TOKEN,
        defended.api_key,
        defended.other_key,
        defended.link,
        *defended.sessions.values(),
        (keys / "journal.keys").read_text().strip(),
        *(pem.read_text().splitlines()[1] for pem in keys.glob("*.pem")),
    }
    assert len(hidden) == 16
    assert [secret for secret in hidden for answer in answers if secret in answer.text] == []
    assert found_in(defended.topology.log_dir, hidden) == {}

    async def senders() -> bool:
        found = {span.service for span in traces.spans() if span.trace_id == trace}
        return {"Restate", "orchestrator", "flights", "console"} <= found

    await eventually(senders, what="spans of engine and services")
    spans = "\n".join(map(repr, traces.spans()))
    assert [secret for secret in hidden if secret in spans] == []
    assert found_in(defended.topology.home / "data" / "restate", hidden) == {}
    # The console's database contains only hashes of credentials.
    assert found_in(defended.topology.home / "data", hidden - {traveller}) == {}
    # Callers and trip IDs are no secrets, so the search must find them.
    assert found_in(defended.topology.home / "data" / "restate", ["key:shop", defended.waiting]).keys() == {
        "key:shop",
        defended.waiting,
    }


async def test_report_attack_that_succeeds(defended: DefendedPlatform):
    """Run a permitted action as an attack, so that its outcome counts as not refused."""
    genuine = next(each for each in SIGNED_ACTIONS if each.name == "the requester approves their own trip")

    async def approve(at: DefendedPlatform) -> str:
        allowed = {**at.keys, "ada@example.com": at.keys[GRACE]}
        at.keys = allowed
        return await genuine.run(at)

    (outcome,) = await attack_all(defended, [Attack("signed action", "an approver approves", "403", approve)])
    assert (outcome.observed, outcome.unchanged, outcome.refused) == ("200", False, False)
    assert await defended.harness.result(defended.waiting) == "confirmed"


async def test_gateway_treats_sessions_and_keys_alike(defended: DefendedPlatform):
    url = f"{defended.topology.console_url}/gateway/Trips/{defended.linked}"

    async def asked(method: str, path: str, token: str) -> httpx.Response:
        return await defended.http.request(method, f"{url}{path}", headers={"authorization": f"Bearer {token}"})

    for token in (defended.api_key, defended.sessions[VERA]):
        status = await asked("POST", "/status", token)
        assert status.json()["phase"] == "completed"
        assert status.headers["x-restate-id"].startswith("inv_")
    attach = f"{defended.topology.console_url}/gateway/restate/workflow/Trips/{defended.linked}/attach"
    confirmation = await defended.http.get(attach, headers={"authorization": f"Bearer {defended.api_key}"})
    assert confirmation.json()["trip_id"] == defended.linked


async def test_unauthenticated_trip_over_the_limit_is_refused(defended: DefendedPlatform):
    answer = await defended.harness.book(new_trip_id(), order(amount_minor=900_000))
    assert answer == "401 unauthenticated_requester, rolled_back"


async def test_approval_names_requester_owner_and_subject(defended: DefendedPlatform):
    shops, mallorys = await defended.approval(), await defended.approval(defended.disguised)
    found = [
        (each.requester, each.requester_verified, each.requester_owner, each.subject) for each in (shops, mallorys)
    ]
    assert found == [("key:shop", True, KIM, ADA), (MALLORY, True, "", ADA)]
