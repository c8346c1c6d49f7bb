"""`perdure doctor` on a platform that is well, and on one that is not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from perdure.cli import app, asking
from perdure.cli.doctor import disk_finding, key_findings
from perdure.security import PrivateKey
from services.launcher.booking import ORDINARY, new_trip_id
from services.launcher.topology import SERVICES
from tests.observability.conftest import Observed
from tests.support import eventually

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking.console, "_width", 400)


async def doctor(observed: Observed, **urls: str) -> Result:
    topology = observed.stage.platform.topology
    asked = {"ingress": topology.ingress_url, "admin": topology.admin_url, "folder": str(topology.home), **urls}
    command = ["doctor", *(word for name, value in asked.items() for word in (f"--{name}", value))]
    return await asyncio.to_thread(CliRunner().invoke, app, command)


@pytest.mark.asyncio(loop_scope="session")
async def test_says_what_is_down_and_that_all_is_well_again(observed):
    async def well() -> Result | None:
        result = await doctor(observed)
        return result if result.exit_code == 0 else None

    try:
        result = await eventually(well, what="platform that is well", within=30)
    except AssertionError:
        raise AssertionError((await doctor(observed)).output) from None
    for spec in SERVICES:
        assert f"services at {observed.stage.platform.topology.service_url(spec.name)}" in result.output
    assert "sentinel of sagas" in result.output
    assert "!!" not in result.output

    await observed.stage.platform.kill("flights")
    trip_id = new_trip_id()
    await observed.stage.send(trip_id, ORDINARY)

    async def ill() -> str | None:
        result = await doctor(observed)
        return result.output if result.exit_code == 1 and "Flights is backing-off" in result.output else None

    output = await eventually(ill, what="trouble with flights", within=30)
    lines = [line for line in output.splitlines() if line.startswith("!!")]
    assert len(lines) == 2
    assert "(Flights) do not answer (ConnectError): start them" in lines[0]
    await observed.stage.platform.start_again("flights")
    assert await observed.stage.result(trip_id) == "confirmed"


@pytest.mark.asyncio(loop_scope="session")
async def test_says_that_the_engine_does_not_answer(observed):
    result = await doctor(observed, admin="http://127.0.0.1:9", ingress="http://127.0.0.1:9")
    assert result.exit_code == 1
    assert "its admin API at http://127.0.0.1:9 does not answer: start it, or set PERDURE_ADMIN_URL" in result.output
    assert "PERDURE_INGRESS_URL" in result.output


def test_looks_at_keys_and_disk(tmp_path: Path):
    good, open_to_all = tmp_path / "good.pem", tmp_path / "open.pem"
    PrivateKey.generate().save(good)
    PrivateKey.generate().save(open_to_all)
    open_to_all.chmod(0o644)
    environment = {
        "PERDURE_A_KEY_FILE": str(good),
        "PERDURE_B_KEY_FILE": str(open_to_all),
        "PERDURE_C_KEY_FILE": str(tmp_path / "none.pem"),
        "OTHER_KEY_FILE": "nobody looks",
    }
    assert [(each.trouble, each.text.split(":")[0]) for each in key_findings(environment)] == [
        (False, "PERDURE_A_KEY_FILE can be read, and by its owner alone"),
        (True, "PERDURE_B_KEY_FILE"),
        (True, "PERDURE_C_KEY_FILE"),
    ]
    assert not key_findings({})[0].trouble
    assert "are free where" in disk_finding(tmp_path).text
    assert disk_finding(tmp_path / "gone").trouble
