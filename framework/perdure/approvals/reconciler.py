"""Finds approvals that nobody looks after any more, and sets them right.

A kill delivers nothing to a handler, so it can leave an approval half done. The engine knows, and is asked in SQL, at
an interval:

- somebody waits whose invocation has ended, as after a kill of an orchestrator: it leaves, and when it was the last
  one, the approval is withdrawn, so that nobody decides for nobody;
- an approval is open and the end of its stage is not scheduled, as after a kill while it was opened or decided: it is
  mended;
- an invocation of the approvals' own services is paused: it is resumed.

As with `perdure.saga.reconciler`, looking is a plain query by a process, and only when it finds something does it call
`sweep`, a durable handler that asks again by itself. So anybody may call `sweep`: it does nothing but what has to be
done.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import restate
from pydantic import BaseModel

from perdure._runtime.checks import check_types
from perdure._runtime.places import ValueCodec
from perdure.approvals.dispatcher import DISPATCHER
from perdure.approvals.gauges import approval_gauges, count_approvals
from perdure.approvals.messages import Leave
from perdure.approvals.store import OPEN_KEY, WAITER_PREFIX
from perdure.approvals.targets import APPROVALS, INBOX, PRINCIPALS, leave_approval, mend
from perdure.clients import ObjectClient
from perdure.engine.admin import AdminClient
from perdure.engine.ingress import IngressClient
from perdure.engine.polling import BACKGROUND_CALL_RETRIES, Poller
from perdure.errors import ConfigurationError, EngineError
from perdure.handlers import Definition, handler
from perdure.observability.logging import get_logger
from perdure.runs import RunConfig, run_with_retry
from perdure.targets import Target

log = get_logger("perdure.approvals.reconciler")

RECONCILER = "ApprovalReconciler"
_KEY = "all"


@dataclass(frozen=True)
class ApprovalReconcilerConfig:
    """Where the reconciler looks, and how often.

    Args:
        admin_url: The engine's admin API.
        ingress_url: The engine's ingress.
        interval: How often it looks.
        grace: How long something is left alone: what is missing may be on its way.
        codec: What the services' journal is encrypted with; None when it is in clear.

    Raises:
        ConfigurationError: An interval that is not positive.
    """

    admin_url: str
    ingress_url: str
    interval: timedelta = timedelta(seconds=10)
    grace: timedelta = timedelta(seconds=5)
    codec: ValueCodec | None = None

    def __post_init__(self) -> None:
        check_types(self)
        if self.interval <= timedelta(0):
            raise ConfigurationError(f"ApprovalReconcilerConfig.interval must be positive; got {self.interval}")


class Orphaned(BaseModel):
    """What nobody looks after.

    Args:
        kind: Somebody waits who has ended, a stage whose end isn't scheduled, or an invocation that is paused.
        id: The approval; of a paused invocation, its id.
        wait: The wait of the ended invocation.
    """

    kind: Literal["abandoned", "unscheduled", "halted"]
    id: str
    wait: str = ""


class ReconcilerScan(BaseModel):
    """What a sweep set right."""

    done: list[Orphaned] = []


async def look(admin: AdminClient, grace: timedelta) -> list[Orphaned]:
    """Ask the engine what nobody looks after.

    Args:
        admin: The engine.
        grace: How long something is left alone.

    Raises:
        EngineError: The engine does not answer, or refuses the query.
    """
    past = f"now() - interval '{int(grace.total_seconds() * 1000)} milliseconds'"
    abandoned = f"""
      select s.service_key as id, s.key as entry from state s
      left join sys_invocation_status i on i.id = split_part(s.key, '/', 2)
      where s.service_name = '{APPROVALS}' and s.key like '{WAITER_PREFIX}inv_%'
      and (i.id is null or (i.status = 'completed' and i.modified_at < {past}))"""
    unscheduled = f"""
      select s.service_key as id from state s where s.service_name = '{APPROVALS}' and s.key = '{OPEN_KEY}'
      and not exists (select 1 from sys_invocation_status i where i.target_service_name = '{APPROVALS}'
        and i.target_service_key = s.service_key
        and ((i.target_handler_name = 'end_stage' and i.status != 'completed') or i.modified_at >= {past}))"""
    halted = f"""
      select i.id as id from sys_invocation_status i where i.status = 'paused' and i.modified_at < {past}
      and i.target_service_name in ('{APPROVALS}', '{INBOX}', '{PRINCIPALS}', '{DISPATCHER}', '{RECONCILER}')"""
    return [
        *(
            Orphaned(kind="abandoned", id=row["id"], wait=row["entry"].rpartition("/")[2])
            for row in await admin.query(abandoned)
        ),
        *(Orphaned(kind="unscheduled", id=row["id"]) for row in await admin.query(unscheduled)),
        *(Orphaned(kind="halted", id=row["id"]) for row in await admin.query(halted)),
    ]


class ApprovalReconciler:
    """Watches one engine's approvals.

    Args:
        config: Where to look, and how often.
    """

    def __init__(self, config: ApprovalReconcilerConfig) -> None:
        self._config = config
        self._definition = restate.VirtualObject(
            RECONCILER,
            description="Sets approvals right that nobody looks after any more.",
            invocation_retry_policy=BACKGROUND_CALL_RETRIES,
        )
        handler(self._definition, "exclusive", ingress_private=False)(self.sweep)
        self._sweep: Target[None, ReconcilerScan] = Target(RECONCILER, "sweep", None, ReconcilerScan)

    def definitions(self) -> list[Definition]:
        """Return what to serve."""
        return [self._definition]

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Look at once, and then at the interval, as long as the context is entered."""
        config = self._config
        watch = Poller(
            "approvals.reconciler",
            log,
            config.admin_url,
            config.ingress_url,
            config.interval,
            config.codec,
            approval_gauges(),
            count_approvals,
            self._look_and_act,
        )
        async with watch.watching():
            yield

    async def _look_and_act(self, admin: AdminClient, ingress: IngressClient) -> None:
        if await look(admin, self._config.grace):
            await ingress.call(self._sweep, key=_KEY)

    async def sweep(self, ctx: restate.ObjectContext) -> ReconcilerScan:
        """Set right what nobody looks after."""
        found = await run_with_retry(ctx, RunConfig("look", max_retries=5), self._look)
        for each in found:
            log.warning("approvals.reconciler.found", kind=each.kind, id=each.id)
            if each.kind == "abandoned":
                wish = Leave(wait=each.wait, reason="who asked has ended")
                await ObjectClient(ctx, leave_approval, each.id).send(wish)
            elif each.kind == "unscheduled":
                await ObjectClient(ctx, mend, each.id).send()
            else:
                await run_with_retry(ctx, f"resume {each.id}", self._resume, each.id)
        return ReconcilerScan(done=found)

    async def _look(self) -> list[Orphaned]:
        async with AdminClient(self._config.admin_url) as admin:
            return await look(admin, self._config.grace)

    async def _resume(self, invocation_id: str) -> None:
        async with AdminClient(self._config.admin_url) as admin:
            try:
                await admin.act(invocation_id, "resume")
            except EngineError as error:
                if not 400 <= error.status_code < 500:
                    raise
                # Somebody else resumed, ended or purged it; what is left will be found again.
                log.warning("approvals.reconciler.refused", id=invocation_id, act="resume", why=str(error))
