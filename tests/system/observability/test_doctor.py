"""`perdure doctor` on a platform that is well, and on one that is not."""

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

from perdure import AdminClient, IngressClient, Target
from perdure.cli import local_checks, options
from perdure.cli.local_checks import disk_finding, key_findings
from perdure.cli.main import app
from perdure.saga.status import RollbackState
from perdure.security import PrivateKey
from perdure.security.signed_actions import ActorKey
from perdure.serving import build_app
from perdure.testing import ServedApp
from services.runtime.booking import ORDINARY, new_trip_id
from services.runtime.topology import SERVICES
from tests.support import eventually
from tests.system.observability.conftest import Observed
from tests.system.observability.meddler import meddling
from tests.system.scenarios.orders import order

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options.console, "_width", 400)


@pytest.fixture
def observed(observed: Observed) -> Iterator[Observed]:
    """The platform, whose news somebody takes."""
    observed.webhook.takes.set()
    yield observed
    observed.webhook.takes.clear()


async def doctor(observed: Observed, **urls: str) -> Result:
    topology = observed.stage.platform.topology
    asked = {"ingress": topology.ingress_url, "admin": topology.admin_url, "folder": str(topology.home), **urls}
    command = ["doctor", *(word for name, value in asked.items() for word in (f"--{name}", value))]
    result = await asyncio.to_thread(CliRunner().invoke, app, command)
    # Whatever is broken, it is a line and an exit code, and no traceback.
    assert result.exit_code == (1 if "!!" in result.output else 0), result.output
    assert "Traceback" not in result.output
    return result


async def saga_shown(observed: Observed, saga_id: str) -> str:
    topology = observed.stage.platform.topology
    command = ["sagas", "show", saga_id, "--ingress", topology.ingress_url, "--admin", topology.admin_url]
    result = await asyncio.to_thread(CliRunner().invoke, app, command)
    assert result.exit_code == 0, result.output
    return result.output


def ill_lines(result: Result) -> list[str]:
    return [line.removeprefix("!! ") for line in result.output.splitlines() if line.startswith("!!")]


async def ill(observed: Observed, saying: str, **urls: str) -> list[str]:
    """Return what is wrong, once one line says something."""

    async def probe() -> list[str] | None:
        lines = ill_lines(await doctor(observed, **urls))
        return lines if any(saying in line for line in lines) else None

    return await eventually(probe, what=f"line that says '{saying}'", within=30)


async def well(observed: Observed) -> Result:
    async def probe() -> Result | None:
        result = await doctor(observed)
        return result if result.exit_code == 0 else None

    try:
        return await eventually(probe, what="platform that is well", within=30)
    except AssertionError:
        raise AssertionError((await doctor(observed)).output) from None


@pytest.mark.asyncio(loop_scope="session")
async def test_says_what_is_down_and_that_all_is_well_again(observed):
    platform = observed.stage.platform
    output = (await well(observed)).output
    for spec in SERVICES:
        assert f"services at {platform.topology.service_url(spec.name)}" in output
    assert "reconciler of sagas" in output
    assert "restate-sdk-python/" in output

    await platform.kill("flights")
    trip_id = new_trip_id()
    await observed.stage.send(trip_id, ORDINARY)
    lines = await ill(observed, "1 of Flights is backing off")
    assert len(lines) == 2
    assert "(Flights) do not answer (ConnectError): start them" in lines[0]
    assert "Flights/reserve fails (" in (shown := await saga_shown(observed, trip_id))
    assert "Connection refused" in shown

    async with AdminClient(platform.topology.admin_url) as admin:
        rows = await admin.query(
            "select id from sys_invocation where target_service_name = 'Flights' and status != 'completed'"
        )
        await admin.act(rows[0]["id"], "pause")
        lines = await ill(observed, "1 of Flights is paused")
        resume = f"perdure invocations resume {rows[0]['id']}"
        assert f"then resume: {resume}" in lines[1]
        shown = await saga_shown(observed, trip_id)
        assert "Flights/reserve is paused: " in shown
        assert "Connection refused" in shown
        assert f"Correct that, then {resume}" in shown
        await platform.start_again("flights")
        await admin.act(rows[0]["id"], "resume")
    assert await observed.stage.result(trip_id) == "confirmed"
    assert "Flights/reserve is" not in await saga_shown(observed, trip_id)


@pytest.mark.asyncio(loop_scope="session")
async def test_says_that_dead_letters_wait_for_somebody(observed):
    await well(observed)
    trip_id = new_trip_id()
    await observed.stage.book(trip_id, order(hotel="Fortress", account="acct-declined"))
    (line,) = ill_lines(await doctor(observed))
    assert " ".join(line.split()).startswith("dead letters 1 waits for somebody: perdure dead-letters list, then")
    async with observed.stage.hotel_repaired("Fortress"):
        topology = observed.stage.platform.topology
        redrive = ["dead-letters", "redrive", f"{trip_id}/3", "--actor", "olga", "--ingress", topology.ingress_url]
        assert (await asyncio.to_thread(CliRunner().invoke, app, redrive)).exit_code == 0
        await observed.stage.until_rollback(trip_id, RollbackState.ROLLED_BACK)
    assert "dead letters none is open" in " ".join((await well(observed)).output.split())


@pytest.mark.asyncio(loop_scope="session")
async def test_is_right_as_soon_as_a_reconciler_has_been_started(observed):
    platform = observed.stage.platform
    await well(observed)
    for name, watched in (("saga", "sagas"), ("approvals", "approvals")):
        await platform.kill(name)
        lines = ill_lines(await doctor(observed))
        assert any(f"reconciler of {watched}" in line and "does not answer" in line for line in lines), lines
        await platform.start_again(name)
        assert ill_lines(await doctor(observed)) == []


@pytest.mark.asyncio(loop_scope="session")
async def test_says_that_the_schema_is_behind(observed):
    file = observed.stage.platform.topology.database_url.partition(":///")[2]

    def change(version: str) -> str:
        with sqlite3.connect(file, timeout=10) as database:
            (before,) = database.execute("select version_num from alembic_version").fetchone()
            database.execute("update alembic_version set version_num = ?", (version,))
        return str(before)

    newest = change("0001")
    try:
        lines = ill_lines(await doctor(observed))
    finally:
        change(newest)
    assert len(lines) == 4
    assert all("are not ready: schema failed (SchemaBehind); migrate the database: perdure" in line for line in lines)
    await well(observed)


@pytest.mark.asyncio(loop_scope="session")
async def test_says_whose_service_is_gone_while_invocations_wait(observed):
    topology = observed.stage.platform.topology
    ghost = sdk.Service("Ghost")

    @ghost.handler()
    async def haunt(ctx: sdk.Context) -> None:
        await ctx.sleep(timedelta(hours=1))

    async with AdminClient(topology.admin_url) as admin, IngressClient(topology.ingress_url) as ingress:
        with ServedApp(build_app(ghost)) as served:
            await admin.register(served.url)
            invocation = await ingress.send(Target("Ghost", "haunt", type(None), type(None)))
            assert "Ghost; they speak HTTP/2 alone" in (await well(observed)).output
            for each in await admin.deployments():
                if str(each["uri"]).rstrip("/") == served.url:
                    await admin.remove_deployment(each["id"])
        try:
            await ill(observed, "1 of Ghost wait, and no deployment has that service: register it, or kill them")
        finally:
            await admin.act(invocation, "kill")
    await well(observed)


def an_older_sdk(path: str, answer: Any) -> Any:
    if path == "/deployments":
        answer["deployments"][0] |= {"sdk_version": "restate-sdk-python/0.9.0", "max_protocol_version": 4}
    return answer


def nothing_registered(path: str, answer: Any) -> Any:
    return {"deployments": []} if path == "/deployments" else answer


def without_watchers(path: str, answer: Any) -> Any:
    if path == "/deployments":
        for each in answer["deployments"]:
            gone = ("SagaReconciler", "ApprovalReconciler")
            each["services"] = [service for service in each["services"] if service["name"] not in gone]
    return answer


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize(
    ("change", "saying"),
    [
        (lambda path, answer: {"version": "1.6.2"} if path == "/version" else answer, "version 1.6.2: perdure is test"),
        (
            lambda _, answer: {"rows": [{"now": "2020-01-01T00:00:00"}]} if "rows" in answer else answer,
            "set both by NTP",
        ),
        (
            an_older_sdk,
            "versions                                services differ: restate-sdk-python/0.9.0, protocol 4 at",
        ),
        (nothing_registered, "none is registered: perdure-platform register"),
        (without_watchers, "none is registered: nobody looks for lost sagas; serve and register SagaReconciler"),
        (lambda _, __: [], "what answers there is something else"),
        (lambda path, answer: {} if path == "/query" else answer, "correct PERDURE_ADMIN_URL"),
    ],
    ids=["engine", "clock", "sdk", "nothing", "nobody", "something-else", "no-rows"],
)
async def test_says_what_is_wrong_with_the_engines_answers(observed, change, saying):
    with meddling(observed.stage.platform.topology.admin_url, change) as admin:
        lines = ill_lines(await doctor(observed, admin=admin))
    assert any(" ".join(saying.split()) in " ".join(line.split()) for line in lines), lines


@pytest.mark.asyncio(loop_scope="session")
async def test_says_whose_clock_is_wrong_and_what_is_no_service(observed):
    topology = observed.stage.platform.topology
    true = topology.service_url("flights")
    with meddling(true, clock=datetime.now(UTC) + timedelta(minutes=2)) as fast:

        def moved(path: str, answer: Any) -> Any:
            if path == "/deployments":
                for each in answer["deployments"]:
                    if each["uri"].rstrip("/") == true:
                        each["uri"] = fast
                    elif each["uri"].rstrip("/") == topology.service_url("hotels"):
                        each["uri"] = topology.ingress_url
            return answer

        with meddling(topology.admin_url, moved) as admin:
            lines = ill_lines(await doctor(observed, admin=admin))
    (clock,) = (line for line in lines if line.startswith("clocks"))
    assert f"the clock of {fast} and this one are 1" in clock
    assert "set both by NTP" in clock


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "http://[nonsense", "localhost:9", "http://127.0.0.1:port"])
async def test_says_that_the_engine_does_not_answer_or_can_have_no_such_address(observed, address):
    lines = ill_lines(await doctor(observed, admin=address, ingress=address))
    assert [line.split()[0] for line in lines] == ["ingress", "engine"]
    assert "PERDURE_INGRESS_URL" in lines[0]
    assert "PERDURE_ADMIN_URL" in lines[1]


@pytest.mark.asyncio(loop_scope="session")
async def test_says_that_addresses_were_mixed_up(observed):
    topology = observed.stage.platform.topology
    lines = ill_lines(await doctor(observed, admin=topology.ingress_url, ingress=topology.admin_url))
    assert "answers 404: if that is the ingress" in lines[0]
    assert f"its admin API at {topology.ingress_url} does not answer" in lines[1]


def test_looks_at_the_credential_of_who_acts(tmp_path: Path):
    now = datetime.now(UTC)

    def look(name: str, begin: timedelta, lifetime: timedelta) -> tuple[bool, str]:
        key = ActorKey.issue(PrivateKey.generate(), actor="ada", roles=["operator"], lifetime=lifetime, now=now + begin)
        key.save(tmp_path / name)
        (found,) = key_findings({"PERDURE_KEY_FILE": str(tmp_path / name)})
        return found.trouble, found.text

    day = timedelta(days=1)
    assert look("good", -day, 90 * day) == (
        False,
        f"PERDURE_KEY_FILE is the key of ada, and holds until {now + 89 * day:%Y-%m-%d %H:%M} UTC",
    )
    assert look("ends", -day, 3 * day)[1].endswith("UTC; soon, have another one issued for ada: perdure actors issue")
    trouble, text = look("over", -2 * day, day)
    assert trouble
    assert "expired at" in text
    assert look("early", day, day)[0]
    PrivateKey.generate().save(tmp_path / "other")
    (found,) = key_findings({"PERDURE_KEY_FILE": str(tmp_path / "other")})
    assert "no actor's key file" in found.text


def test_says_that_a_disk_is_nearly_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(local_checks, "_LEAST_SPACE", 1.0)
    found = disk_finding(tmp_path)
    assert found.trouble
    assert "make room, or the engine stops taking work" in found.text


def test_looks_at_keys_and_disk(tmp_path: Path):
    good, open_to_all = tmp_path / "good.pem", tmp_path / "open.pem"
    PrivateKey.generate().save(good)
    PrivateKey.generate().save(open_to_all)
    open_to_all.chmod(0o644)
    environment = {
        "PERDURE_A_KEY_FILE": str(good),
        "PERDURE_B_KEY_FILE": str(open_to_all),
        "PERDURE_C_KEY_FILE": str(tmp_path / "none.pem"),
        "PERDURE_D_KEY_FILE": str(tmp_path),
        "PERDURE_SECURITY_ENCRYPTION_KEYS_FILE": str(good),
        "OTHER_KEY_FILE": "nobody looks",
    }
    assert [(each.trouble, each.text.split(":")[0]) for each in key_findings(environment)] == [
        (False, "PERDURE_A_KEY_FILE can be read, and by its owner alone"),
        (True, "PERDURE_B_KEY_FILE"),
        (True, "PERDURE_C_KEY_FILE"),
        (True, "PERDURE_D_KEY_FILE"),
        (True, "PERDURE_SECURITY_ENCRYPTION_KEYS_FILE"),
    ]
    assert not key_findings({})[0].trouble
    assert "are free where" in disk_finding(tmp_path).text
    assert disk_finding(tmp_path / "gone").trouble
