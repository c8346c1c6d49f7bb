"""Signed operator actions on schedules, on a real engine."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import restate as sdk
from typer.testing import CliRunner

from perdure import IngressClient, Target, handler
from perdure.cli.main import app
from perdure.errors import ConfigurationError, IngressError
from perdure.schedules import ScheduleClient, ScheduleStatus, definitions
from perdure.schedules.messages import (
    ScheduleAction,
    ScheduleActionRequest,
    ScheduleRequest,
    ScheduleState,
    action_target,
    apply_target,
    set_target,
)
from perdure.schedules.recurrence import ScheduledTarget, ScheduleSpec
from perdure.schedules.signatures import sign_action, sign_setting
from perdure.security import Role, SignedAction
from perdure.testing import Restate
from tests.integration.actor_keys import MALLORY, OLGA, VERA, key_of

DAILY = timedelta(days=1)
SPEC = ScheduleSpec(every=DAILY, target=ScheduledTarget(service="Reports", handler="build"), payload={"wörter": [1.5]})


def reports() -> sdk.Service:
    service = sdk.Service("Reports")

    @handler(service)
    async def build(ctx: sdk.Context, day: dict[str, Any]) -> None:
        """Accept any request."""

    @handler(service)
    async def declare(ctx: sdk.Context, name: str) -> ScheduleStatus:
        schedules = ScheduleClient(ctx)
        await schedules.set(name, every=DAILY, target=build, request={})
        await schedules.pause(name)
        return await schedules.resume(name, reason="declared")

    return service


class SignedScheduleClient:
    """Sends operator actions on one schedule, with any signature."""

    def __init__(self, ingress: IngressClient, name: str) -> None:
        self.ingress = ingress
        self.name = name

    async def set(self, signed_action: SignedAction | None, spec: ScheduleSpec = SPEC, **who: Any) -> ScheduleStatus:
        facts = {"actor": "olga@example.com", **spec.model_dump(), **who}
        return await self.ingress.call(set_target, ScheduleRequest(signed_action=signed_action, **facts), key=self.name)

    async def act(self, action: ScheduleAction, signed_action: SignedAction | None, **who: Any) -> ScheduleStatus:
        request = ScheduleActionRequest(signed_action=signed_action, **{"actor": "olga@example.com", **who})
        return await self.ingress.call(action_target(action), request, key=self.name)


async def refused(act: Any) -> tuple[int, str]:
    with pytest.raises(IngressError) as error:
        await act
    facts = error.value.metadata
    return error.value.status_code, facts.get("why") or facts["role"]


def now() -> datetime:
    return datetime.now(UTC)


@pytest.mark.usefixtures("signed_acts")
async def test_schedule_action_requires_fresh_operator_signature(restate: Restate):
    env = await restate.serve(reports(), *definitions())
    name = f"signed {uuid4()}"
    async with IngressClient(env.ingress) as ingress:
        schedule = SignedScheduleClient(ingress, name)
        setting = sign_setting(OLGA, name, SPEC, at=now())
        assert await refused(schedule.set(None)) == (401, "unsigned")
        assert await refused(schedule.set(sign_setting(MALLORY, name, SPEC, at=now()))) == (401, "issuer")
        by_vera = sign_setting(VERA, name, SPEC, at=now())
        assert await refused(schedule.set(by_vera, actor="vera@example.com")) == (403, "operator")
        assert await refused(SignedScheduleClient(ingress, f"{name}/2").set(setting)) == (403, "target")
        other = SPEC.model_copy(update={"payload": {"wörter": [1.6]}})
        assert await refused(schedule.set(setting, other)) == (409, "payload")
        first = await schedule.set(setting)
        assert first.spec == SPEC
        assert [(entry.actor, entry.signed_action) for entry in first.audit_log] == [("olga@example.com", setting)]
        assert await refused(schedule.set(setting)) == (409, "replayed")

        pause = sign_action(OLGA, ScheduleAction.PAUSE, first, reason="holidays", at=now())
        assert await refused(schedule.act(ScheduleAction.PAUSE, None)) == (401, "unsigned")
        assert await refused(schedule.act(ScheduleAction.REMOVE, pause, reason="holidays")) == (403, "action")
        assert await refused(schedule.act(ScheduleAction.PAUSE, pause, reason="malice")) == (403, "reason")
        assert await refused(
            schedule.act(ScheduleAction.PAUSE, pause, reason="holidays", actor="vera@example.com")
        ) == (
            403,
            "actor",
        )
        stale = sign_action(OLGA, ScheduleAction.REMOVE, first, at=now())
        paused = await schedule.act(ScheduleAction.PAUSE, pause, reason="holidays")
        assert (paused.state, paused.audit_log[0].signed_action) == (ScheduleState.PAUSED, pause)
        assert await refused(schedule.act(ScheduleAction.REMOVE, stale)) == (409, "payload"), (
            "the schedule changed since it was displayed"
        )

        olga = ScheduleClient(ingress, key=OLGA)
        assert (await olga.resume(name)).state is ScheduleState.ACTIVE
        await olga.remove(name, reason="done")
        assert await refused(schedule.set(setting)) == (409, "replayed"), (
            "a used signature stays known after the schedule's end"
        )
        again = await olga.set(name, every=DAILY, target=Target("Reports", "build", dict, None), request={})
        assert again.audit_log[0].actor == "olga@example.com"
        with pytest.raises(IngressError, match="must be signed"):
            await ScheduleClient(ingress, actor="olga@example.com").trigger(name)
        with pytest.raises(ConfigurationError, match="pass an actor for the audit log, or a key"):
            ScheduleClient(ingress)


@pytest.mark.usefixtures("signed_acts")
@pytest.mark.restate_modes("http2")
async def test_flooding_operator_blocks_no_other(restate: Restate, monkeypatch: pytest.MonkeyPatch):
    for bound, number in {"UNRESTRICTED_NONCES": 3, "NONCES_PER_PERSON": 1}.items():
        monkeypatch.setattr(f"perdure.security.nonces.{bound}", number)
    env = await restate.serve(reports(), *definitions())
    name = f"flooded {uuid4()}"
    async with IngressClient(env.ingress) as ingress:
        schedule = SignedScheduleClient(ingress, name)
        await schedule.set(sign_setting(OLGA, name, SPEC, at=now()))
        olga, otto = (ScheduleClient(ingress, key=key) for key in (OLGA, key_of("otto@example.com", Role.OPERATOR)))
        await olga.pause(name)
        await olga.resume(name)
        with pytest.raises(IngressError, match="too many signed actions") as error:
            await olga.pause(name)
        assert (error.value.status_code, error.value.code) == (429, "too_many_actions")
        assert (await otto.pause(name)).state is ScheduleState.PAUSED


@pytest.mark.usefixtures("signed_acts")
async def test_handler_needs_no_signature(restate: Restate):
    env = await restate.serve(reports(), *definitions())
    name = f"declared {uuid4()}"
    async with IngressClient(env.ingress) as ingress:
        declared = await ingress.call(Target("Reports", "declare", str, ScheduleStatus), name)
        entries = [(entry.actor, entry.action, entry.signed_action) for entry in declared.audit_log]
        assert entries == [("reports/declare", action, None) for action in ("resume", "pause", "set")]
        command = apply_target.input(action=ScheduleAction.REMOVE, actor="olga@example.com")
        with pytest.raises(IngressError) as private:
            await ingress.call(apply_target, command, key=name)
        assert private.value.status_code in (400, 404)
        await ScheduleClient(ingress, key=OLGA).remove(name)


@pytest.mark.usefixtures("signed_acts")
@pytest.mark.restate_modes("http2")
async def test_cli_signs_with_key_file(restate: Restate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    env = await restate.serve(reports(), *definitions())
    name, file = f"typed-{uuid4()}", tmp_path / "olga.key"
    OLGA.save(file)

    async def run_command(*words: str) -> str:
        command = ["schedules", *words, "--ingress", env.ingress, "--actor", "mallory@example.com"]
        result = await asyncio.to_thread(CliRunner().invoke, app, command)
        return result.output or str(result.exception)

    setting = ("set", name, "--every", "1d", "--target", "Reports/build", "--payload", "{}")
    assert "must be signed" in await run_command(*setting)
    assert f"Schedule '{name}' set." in await run_command(*setting, "--key-file", str(file))
    assert "must be signed" in await run_command("pause", name)
    assert f"Schedule '{name}' paused." in await run_command("pause", name, "-k", str(file), "-m", "holidays")
    monkeypatch.setenv("PERDURE_KEY_FILE", str(file))
    assert f"Schedule '{name}' removed." in await run_command("remove", name)
