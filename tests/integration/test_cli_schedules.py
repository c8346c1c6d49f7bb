"""`perdure schedules` on a real engine."""

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
async def test_set_show_control_and_remove_schedule(restate, did, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(options.console, "_width", 300)  # prevent line breaks in cells
    env = await restate.serve(reports(did), *definitions())
    name = f"nightly-{uuid4()}"
    rows = tmp_path / "rows.json"
    rows.write_text('{"rows": 3}')

    async def run_command(*words: str) -> Result:
        command = ["schedules", *words, "--ingress", env.ingress]
        return await asyncio.to_thread(CliRunner().invoke, app, command)

    async def output_of(*words: str) -> str:
        result = await run_command(*words)
        assert result.exit_code == 0, (result.output, result.exception)
        return " ".join(result.output.split())

    async def error_of(*words: str) -> str:
        result = await run_command(*words)
        assert result.exit_code == 1
        assert isinstance(result.exception, ConfigurationError | IngressError)
        return str(result.exception)

    by = ("--actor", "olga@example.com", "-m", "quarter's end")
    setting = ("--target", "Reports/build", "--payload", f"@{rows}", *by)
    cron = ("--cron", "0 2 * * *", "--timezone", "Europe/Vienna", "--catch-up", "latest", "--end", "2126-01-01")
    output = await output_of("set", name, *cron, *setting)
    assert output.startswith(f"Schedule '{name}' set. State: active. Next firing: 2")

    found = ScheduleStatus.model_validate_json((await run_command("show", name, "--json")).output)
    assert found.spec.catch_up is CatchUp.LATEST
    assert found.spec.payload == {"rows": 3}
    assert found.spec.end is not None
    assert found.spec.end.isoformat() == "2126-01-01T00:00:00+00:00"
    page = SchedulePage.model_validate_json((await run_command("list", "--json", "--page-size", "200")).output)
    assert found in page.items
    assert "0 2 * * *" in await output_of("list", "--page-size", "200")

    assert f"Schedule '{name}' paused. State: paused. Next firing: none." in await output_of("pause", name, *by)
    await output_of("trigger", name, *by)

    async def ran() -> bool:
        return did.count("build {'rows': 3}") == 1

    await eventually(ran, what="the triggered run")
    assert "resumed. State: active. Next firing: 2" in await output_of("resume", name, *by)

    async def shown() -> str | None:
        output = await output_of("show", name)
        return output if "1 succeeded" in output else None

    output = await eventually(shown, what="the end of the run")
    for fact in ("0 2 * * * (Europe/Vienna)", "Reports/build", '{"rows": 3}', "trigger quarter's end", "1 started"):
        assert fact in output
    assert await output_of("set", name, "--every", "1h30m", *setting)
    found = ScheduleStatus.model_validate_json((await run_command("show", name, "--json")).output)
    assert found.spec.every == timedelta(minutes=90)

    assert f"did you mean '{name}'?" in await error_of("pause", name[:-1], *by)
    triggered = await run_command("trigger", name, "--json", *by)
    assert ScheduleStatus.model_validate_json(triggered.output).counts.started == 2
    assert await output_of("remove", name, *by) == f"Schedule '{name}' removed."
    assert f"schedule '{name}' does not exist" in await error_of("show", name)
    assert "'soon' is not a duration" in await error_of("set", name, "--every", "soon", *setting)
    assert "'Reports' is not a handler" in await error_of("set", name, "--every", "1h", "--target", "Reports", *by)
    assert "give either a cron expression or an interval" in await error_of("set", name, *setting)
    assert "--payload is not JSON" in await error_of("set", name, "--payload", "{", "--every", "1h", *setting[:2], *by)
