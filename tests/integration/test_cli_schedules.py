"""`perdure schedules`, as an operator types it, on a real engine."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
import restate as sdk
from typer.testing import CliRunner, Result

from perdure import handler
from perdure.cli import options
from perdure.cli.main import app
from perdure.errors import ConfigurationError, IngressError
from perdure.schedules import SchedulePage, ScheduleStatus, definitions
from perdure.schedules.recurrence import CatchUp
from tests.support import Recording, eventually


def reports(did: Recording) -> sdk.Service:
    service = sdk.Service("Reports")

    @handler(service)
    async def build(ctx: sdk.Context, rows: dict[str, int]) -> None:
        did.add(f"build {rows}")

    return service


@pytest.mark.restate_modes("http2")
async def test_a_schedule_is_set_looked_at_steered_and_removed(
    restate, did, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(options.console, "_width", 300)  # so that no cell is broken into lines
    env = await restate.serve(reports(did), *definitions())
    name = f"nightly-{uuid4()}"
    rows = tmp_path / "rows.json"
    rows.write_text('{"rows": 3}')

    async def typed(*words: str) -> Result:
        command = ["schedules", *words, "--ingress", env.ingress]
        return await asyncio.to_thread(CliRunner().invoke, app, command)

    async def done(*words: str) -> str:
        result = await typed(*words)
        assert result.exit_code == 0, (result.output, result.exception)
        return " ".join(result.output.split())

    async def refused(*words: str) -> str:
        result = await typed(*words)
        assert result.exit_code == 1
        assert isinstance(result.exception, ConfigurationError | IngressError)
        return str(result.exception)

    me = ("--actor", "olga@example.com", "-m", "quarter's end")
    setting = ("--target", "Reports/build", "--payload", f"@{rows}", *me)
    cron = ("--cron", "0 2 * * *", "--timezone", "Europe/Vienna", "--catch-up", "latest", "--end", "2126-01-01")
    said = await done("set", name, *cron, *setting)
    assert said.startswith(f"{name}: set by olga@example.com, active, next 2")

    found = ScheduleStatus.model_validate_json((await typed("show", name, "--json")).output)
    assert found.spec.catch_up is CatchUp.LATEST
    assert found.spec.payload == {"rows": 3}
    assert found.spec.end is not None
    assert found.spec.end.isoformat() == "2126-01-01T00:00:00+00:00"
    page = SchedulePage.model_validate_json((await typed("list", "--json", "--page-size", "200")).output)
    assert found in page.items
    assert "0 2 * * *" in await done("list", "--page-size", "200")

    assert f"{name}: pause by olga@example.com, now paused, next never" in await done("pause", name, *me)
    await done("trigger", name, *me)

    async def ran() -> bool:
        return did.count("build {'rows': 3}") == 1

    await eventually(ran, what="triggered run")
    assert "now active, next 2" in await done("resume", name, *me)

    async def shown() -> str | None:
        said = await done("show", name)
        return said if "1 succeeded" in said else None

    said = await eventually(shown, what="end of the run")
    for fact in ("0 2 * * * (Europe/Vienna)", "Reports/build", '{"rows": 3}', "trigger quarter's end", "1 started"):
        assert fact in said
    assert await done("set", name, "--every", "1h30m", *setting)
    found = ScheduleStatus.model_validate_json((await typed("show", name, "--json")).output)
    assert found.spec.every == timedelta(minutes=90)

    assert await done("remove", name, *me) == f"{name}: removed by olga@example.com"
    assert f"there is no schedule '{name}'" in await refused("show", name)
    assert "'soon' is no duration" in await refused("set", name, "--every", "soon", *setting)
    assert "'Reports' is no handler" in await refused("set", name, "--every", "1h", "--target", "Reports", *me)
    assert "give a cron expression or an interval" in await refused("set", name, *setting)
    assert "--payload is no JSON" in await refused("set", name, "--payload", "{", "--every", "1h", *setting[:2], *me)
