"""`perdure doctor` on healthy and faulty platforms."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import restate as sdk
from typer.testing import CliRunner, Result

from perdure import IngressClient, Target
from perdure.cli import local_checks, options
from perdure.cli.local_checks import disk_finding, key_findings
from perdure.cli.main import app
from perdure.engine.admin import AdminClient
from perdure.saga.status import RollbackState
from perdure.security import PrivateKey
from perdure.security.signed_actions import ActorKey
from perdure.serving import build_app
from perdure.testing import ServedApp
from services.runtime.booking import ORDINARY, new_trip_id
from services.runtime.topology import SERVICES
from tests.support import eventually
from tests.system.observability.changing_proxy import changing_proxy
from tests.system.observability.conftest import Observed
from tests.system.scenarios.orders import order

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options.console, "_width", 400)


@pytest.fixture
def observed(observed: Observed) -> Iterator[Observed]:
    """The platform with a working webhook."""
    observed.webhook.accepts.set()
    yield observed
    observed.webhook.accepts.clear()


async def doctor(observed: Observed, **urls: str) -> Result:
    topology = observed.harness.platform.topology
    options_ = {"ingress": topology.ingress_url, "admin": topology.admin_url, "folder": str(topology.home), **urls}
    command = ["doctor", *(word for name, value in options_.items() for word in (f"--{name}", value))]
    result = await asyncio.to_thread(CliRunner().invoke, app, command)
    assert result.exit_code == (1 if "!!" in result.output else 0), result.output
    assert "Traceback" not in result.output
    return result


async def show_saga(observed: Observed, saga_id: str) -> str:
    topology = observed.harness.platform.topology
    command = ["sagas", "show", saga_id, "--ingress", topology.ingress_url, "--admin", topology.admin_url]
    result = await asyncio.to_thread(CliRunner().invoke, app, command)
    assert result.exit_code == 0, result.output
    return result.output


def problems(result: Result) -> list[str]:
    return [line.removeprefix("!! ") for line in result.output.splitlines() if line.startswith("!!")]


async def await_problem(observed: Observed, text: str, **urls: str) -> list[str]:
    """Return all problems as soon as one of them contains a text."""

    async def probe() -> list[str] | None:
        lines = problems(await doctor(observed, **urls))
        return lines if any(text in line for line in lines) else None

    return await eventually(probe, what=f"a problem '{text}'", within=30)


async def await_healthy(observed: Observed) -> Result:
    async def probe() -> Result | None:
        result = await doctor(observed)
        return result if result.exit_code == 0 else None

    try:
        return await eventually(probe, what="a healthy platform", within=30)
    except AssertionError:
        raise AssertionError((await doctor(observed)).output) from None


@pytest.mark.asyncio(loop_scope="session")
async def test_stopped_service_and_recovery(observed):
    platform = observed.harness.platform
    output = (await await_healthy(observed)).output
    for spec in SERVICES:
        assert f"services at {platform.topology.service_url(spec.name)}" in output
    assert "sagas reconciler" in output
    assert "restate-sdk-python/" in output

    await platform.kill("flights")
    trip_id = new_trip_id()
    await observed.harness.send(trip_id, ORDINARY)
    lines = await await_problem(observed, "1 of Flights is backing off")
    assert len(lines) == 2
    assert "(Flights) do not respond (ConnectError); start them" in lines[0]
    assert "Flights/reserve fails (" in (shown := await show_saga(observed, trip_id))
    assert "Connection refused" in shown

    async with AdminClient(platform.topology.admin_url) as admin:
        rows = await admin.query(
            "select id from sys_invocation where target_service_name = 'Flights' and status != 'completed'"
        )
        await admin.control_invocation(rows[0]["id"], "pause")
        lines = await await_problem(observed, "1 of Flights is paused")
        resume = f"perdure invocations resume {rows[0]['id']}"
        assert f"then run: {resume}" in lines[1]
        shown = await show_saga(observed, trip_id)
        assert "Flights/reserve is paused: " in shown
        assert "Connection refused" in shown
        assert f"Fix the cause, then resume: {resume}" in shown
        await platform.restart("flights")
        await admin.control_invocation(rows[0]["id"], "resume")
    assert await observed.harness.result(trip_id) == "confirmed"
    assert "Flights/reserve is" not in await show_saga(observed, trip_id)


@pytest.mark.asyncio(loop_scope="session")
async def test_open_dead_letters(observed):
    await await_healthy(observed)
    trip_id = new_trip_id()
    await observed.harness.book(trip_id, order(hotel="Fortress", account="acct-declined"))
    (line,) = problems(await doctor(observed))
    assert " ".join(line.split()).startswith("dead letters 1 open; run perdure dead-letters list, then")
    async with observed.harness.hotel_repaired("Fortress"):
        topology = observed.harness.platform.topology
        redrive = ["dead-letters", "redrive", f"{trip_id}/3", "--actor", "olga", "--ingress", topology.ingress_url]
        assert (await asyncio.to_thread(CliRunner().invoke, app, redrive)).exit_code == 0
        await observed.harness.until_rollback(trip_id, RollbackState.ROLLED_BACK)
    assert "dead letters none" in " ".join((await await_healthy(observed)).output.split())


@pytest.mark.asyncio(loop_scope="session")
async def test_restarted_reconciler_is_healthy_at_once(observed):
    platform = observed.harness.platform
    await await_healthy(observed)
    for name, resource in (("saga", "sagas"), ("approvals", "approvals")):
        await platform.kill(name)
        lines = problems(await doctor(observed))
        assert any(f"{resource} reconciler" in line and "no response" in line for line in lines), lines
        await platform.restart(name)
        assert problems(await doctor(observed)) == []


@pytest.mark.asyncio(loop_scope="session")
async def test_report_outdated_schema(observed):
    file = observed.harness.platform.topology.databases["flights"].partition(":///")[2]

    def execute(statement: str) -> None:
        with sqlite3.connect(file, timeout=10) as database:
            database.execute(statement)

    execute("delete from alembic_version")
    try:
        (line,) = problems(await doctor(observed))
    finally:
        execute("insert into alembic_version values ('flights_0001')")
    assert "Flights" in line
    assert "are not ready: schema failed (SchemaBehind); run perdure-platform migrate" in line
    await await_healthy(observed)


@pytest.mark.asyncio(loop_scope="session")
async def test_invocations_of_unregistered_service(observed):
    topology = observed.harness.platform.topology
    ghost = sdk.Service("Ghost")

    @ghost.handler()
    async def haunt(ctx: sdk.Context) -> None:
        await ctx.sleep(timedelta(hours=1))

    async with AdminClient(topology.admin_url) as admin, IngressClient(topology.ingress_url) as ingress:
        with ServedApp(build_app(ghost)) as served:
            await admin.register(served.url)
            invocation = await ingress.send(Target("Ghost", "haunt", None, None))
            assert "Ghost; not checked, since they accept HTTP/2 only" in (await await_healthy(observed)).output
            for each in await admin.deployments():
                if str(each["uri"]).rstrip("/") == served.url:
                    await admin.remove_deployment(each["id"])
        try:
            await await_problem(observed, "1 of Ghost wait for a deployment of this service; register it, or kill them")
        finally:
            await admin.control_invocation(invocation, "kill")
    await await_healthy(observed)


def older_sdk(path: str, response: Any) -> Any:
    if path == "/deployments":
        response["deployments"][0] |= {"sdk_version": "restate-sdk-python/0.9.0", "max_protocol_version": 4}
    return response


def nothing_registered(path: str, response: Any) -> Any:
    return {"deployments": []} if path == "/deployments" else response


def without_reconcilers(path: str, response: Any) -> Any:
    if path == "/deployments":
        for each in response["deployments"]:
            gone = ("SagaReconciler", "ApprovalReconciler")
            each["services"] = [service for service in each["services"] if service["name"] not in gone]
    return response


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda path, response: {"version": "1.6.2"} if path == "/version" else response,
            "version 1.6.2, but perdure",
        ),
        (
            lambda _, response: {"rows": [{"now": "2020-01-01T00:00:00"}]} if "rows" in response else response,
            "synchronize both by NTP",
        ),
        (
            older_sdk,
            "versions                                services differ: restate-sdk-python/0.9.0, protocol 4 at",
        ),
        (nothing_registered, "none is registered; run perdure-platform register"),
        (without_reconcilers, "not registered, so orphaned sagas are not repaired; serve and register SagaReconciler"),
        (lambda _, __: [], "unexpected response"),
        (lambda path, response: {} if path == "/query" else response, "correct PERDURE_ADMIN_URL"),
    ],
    ids=["engine", "clock", "sdk", "no-deployments", "no-reconcilers", "wrong-format", "no-rows"],
)
async def test_problems_of_engine_responses(observed, change, text):
    with changing_proxy(observed.harness.platform.topology.admin_url, change) as admin:
        lines = problems(await doctor(observed, admin=admin))
    assert any(" ".join(text.split()) in " ".join(line.split()) for line in lines), lines


@pytest.mark.asyncio(loop_scope="session")
async def test_clock_skew_of_a_service(observed):
    topology = observed.harness.platform.topology
    flights = topology.service_url("flights")
    with changing_proxy(flights, clock=datetime.now(UTC) + timedelta(minutes=2)) as fast_clock:

        def moved(path: str, response: Any) -> Any:
            if path == "/deployments":
                for each in response["deployments"]:
                    if each["uri"].rstrip("/") == flights:
                        each["uri"] = fast_clock
                    elif each["uri"].rstrip("/") == topology.service_url("hotels"):
                        each["uri"] = topology.ingress_url
            return response

        with changing_proxy(topology.admin_url, moved) as admin:
            lines = problems(await doctor(observed, admin=admin))
    (clock,) = (line for line in lines if line.startswith("clocks"))
    assert f"the clock of {fast_clock} and this one differ by 1" in clock
    assert "synchronize both by NTP" in clock


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "http://[nonsense", "localhost:9", "http://127.0.0.1:port"])
async def test_unreachable_or_invalid_addresses(observed, address):
    lines = problems(await doctor(observed, admin=address, ingress=address))
    assert [line.split()[0] for line in lines] == ["ingress", "engine"]
    assert "PERDURE_INGRESS_URL" in lines[0]
    assert "PERDURE_ADMIN_URL" in lines[1]


@pytest.mark.asyncio(loop_scope="session")
async def test_report_swapped_addresses(observed):
    topology = observed.harness.platform.topology
    lines = problems(await doctor(observed, admin=topology.ingress_url, ingress=topology.admin_url))
    assert "returned 404; check the engine's log" in lines[0]
    assert f"no response from the admin API at {topology.ingress_url}" in lines[1]


def test_report_credentials_that_expire(tmp_path: Path):
    now = datetime.now(UTC)

    def check(name: str, begin: timedelta, lifetime: timedelta) -> tuple[bool, str]:
        key = ActorKey.issue(PrivateKey.generate(), actor="ada", roles=["operator"], lifetime=lifetime, now=now + begin)
        key.save(tmp_path / name)
        (finding,) = key_findings({"PERDURE_KEY_FILE": str(tmp_path / name)})
        return finding.is_problem, finding.text

    day = timedelta(days=1)
    assert check("good", -day, 90 * day) == (
        False,
        f"PERDURE_KEY_FILE: key of ada, valid until {now + 89 * day:%Y-%m-%d %H:%M} UTC",
    )
    assert check("ends", -day, 3 * day)[1].endswith("UTC; issue a new one for ada: perdure actors issue")
    is_problem, text = check("over", -2 * day, day)
    assert is_problem
    assert "expired at" in text
    assert check("early", day, day)[0]
    PrivateKey.generate().save(tmp_path / "other")
    (finding,) = key_findings({"PERDURE_KEY_FILE": str(tmp_path / "other")})
    assert "is not an actor's key file" in finding.text


def test_nearly_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(local_checks, "_MIN_FREE_SHARE", 1.0)
    finding = disk_finding(tmp_path)
    assert finding.is_problem
    assert "free some, or the engine stops accepting work" in finding.text


def test_keys_and_disk(tmp_path: Path):
    good, world_readable = tmp_path / "good.pem", tmp_path / "open.pem"
    PrivateKey.generate().save(good)
    PrivateKey.generate().save(world_readable)
    world_readable.chmod(0o644)
    environment = {
        "PERDURE_A_KEY_FILE": str(good),
        "PERDURE_B_KEY_FILE": str(world_readable),
        "PERDURE_C_KEY_FILE": str(tmp_path / "none.pem"),
        "PERDURE_D_KEY_FILE": str(tmp_path),
        "PERDURE_SECURITY_ENCRYPTION_KEYS_FILE": str(good),
        "OTHER_KEY_FILE": "not checked",
    }
    assert [(finding.is_problem, finding.text.split(":")[0]) for finding in key_findings(environment)] == [
        (False, "PERDURE_A_KEY_FILE"),
        (True, "PERDURE_B_KEY_FILE"),
        (True, "PERDURE_C_KEY_FILE"),
        (True, "PERDURE_D_KEY_FILE"),
        (True, "PERDURE_SECURITY_ENCRYPTION_KEYS_FILE"),
    ]
    assert not key_findings({})[0].is_problem
    assert " free at " in disk_finding(tmp_path).text
    assert disk_finding(tmp_path / "gone").is_problem
