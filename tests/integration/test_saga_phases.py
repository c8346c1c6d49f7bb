"""Phases of sagas in the list and in the status, with and without encryption."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import restate as sdk

from perdure import ControlPlaneService, IngressClient, Orchestration, RunConfig, SagaConfig, StatusData, Target
from perdure.engine.admin import AdminClient, sql_text
from perdure.errors import Refused
from perdure.saga import hosting
from perdure.saga.messages import ActionReceipt, DeadLetterActionRequest
from perdure.saga.queries import ALL_PHASES, list_sagas
from perdure.saga.status import SagaPhase
from perdure.saga.timeline import read_timeline
from perdure.security.codec import new_encryption_key
from perdure.security.config import SecurityConfig
from tests.integration.saga_bench import QUICK
from tests.support import eventually

pytestmark = pytest.mark.restate_modes("http2")


def jobs_of(name: str) -> ControlPlaneService:
    """Return a service whose sagas end in the phase that their keys begin with."""
    jobs = ControlPlaneService(name, saga=SagaConfig(**{**QUICK, "max_attempts": 1}), run=RunConfig(max_retries=0))

    @jobs.compensation
    async def undo(ctx: sdk.Context, key: str) -> None:
        if key.startswith("needs_attention"):
            raise Refused("can't be undone", 503)

    @jobs.main
    async def run(cp: Orchestration) -> None:
        async def act(key: str) -> str:
            return key

        if not cp.key.startswith("failed"):
            await cp.step("act", act, cp.key, compensate=undo.bind(cp.key))
        if cp.key.startswith(("running", "cancelled", "orphaned")):
            _, never = cp.ctx.awakeable()
            await never
        elif not cp.key.startswith("completed"):
            raise Refused("enough", 410)

    return jobs


@pytest.mark.parametrize("encrypted", [False, True])
async def test_list_shows_recorded_phases(restate: Any, tmp_path: Path, encrypted: bool):
    keys = tmp_path / "journal.key"
    codec = new_encryption_key(keys) if encrypted else None
    security = SecurityConfig.development(encryption_keys_file=keys) if encrypted else None
    name = f"Phases{uuid4().hex[:8]}"
    env = await restate.serve(jobs_of(name), *hosting.definitions(), security=security)
    wanted = {
        f"{phase}-{uuid4()}": phase
        for phase in ("completed", "failed", "rolled_back", "needs_attention", "running", "cancelled", "orphaned")
    }
    run, status = Target(name, "run", None, object), Target(name, "status", None, StatusData)
    async with IngressClient(env.ingress, codec=codec) as ingress, AdminClient(env.admin) as admin:
        started = {key: await ingress.send(run, None, key=key) for key in wanted}

        async def phases() -> dict[str, str]:
            found = await list_sagas(admin, phases=ALL_PHASES, service=name)
            return {row.key: row.phase.value for row in found.items}

        async def first_steps() -> bool:
            return all([(await ingress.call(status, key=key)).phase != "not_started" for key in started])

        await eventually(first_steps, what="first steps")
        for key, phase in wanted.items():
            if phase in ("cancelled", "orphaned"):
                await admin.control_invocation(started[key], "cancel" if phase == "cancelled" else "kill")

        async def as_wanted() -> bool:
            return await phases() == wanted

        await eventually(as_wanted, what=lambda: f"phases {wanted}")
        for key, phase in wanted.items():
            shown = await ingress.call(status, key=key)
            if phase != SagaPhase.FAILED:  # it has no steps
                assert shown.started_at is not None
                assert shown.updated_at is not None
                assert shown.updated_at >= shown.started_at
            # A handler is not told that it is killed, so its own status is that before the kill.
            assert shown.phase == ("running" if phase == SagaPhase.ORPHANED else phase)
            rollback = (await read_timeline(admin, ingress, key, service=name, codec=codec)).rollback
            assert (rollback is not None) is (phase in ("rolled_back", "needs_attention", "cancelled"))
        await admin.control_invocation(started[next(key for key in wanted if key.startswith("running"))], "kill")
        # Tests without encryption list the same index.
        skip = Target("DeadLetters", "skip", DeadLetterActionRequest, ActionReceipt)
        stuck = next(key for key in wanted if key.startswith("needs_attention"))
        await ingress.call(skip, DeadLetterActionRequest(id=f"{name}:{stuck}/1", actor="olga"))
        letters = "select key from state where service_name = 'DeadLetterIndex' and key like {}"

        async def removed() -> bool:
            return not await admin.query(letters.format(sql_text(f"%{stuck}%")))

        await eventually(removed, what="an index without the dead letter")
