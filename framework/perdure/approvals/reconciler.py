"""Reconciler of approvals: detects the effects of kills in the engine's tables and repairs them.

A killed handler runs no clean-up, so it can leave

- a wait of an ended invocation: the wait ends, and the last one withdraws the approval;
- an open approval without a scheduled end of its stage: `Approvals` repeats the effects of its state;
- a paused invocation of the approval services: it is resumed.

A process scans at an interval with plain queries. When a scan finds orphans, it calls `reconcile`, a durable handler
that scans again, so any client may call it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

import restate
from pydantic import BaseModel, ValidationError

from perdure._runtime.checks import check_types
from perdure._runtime.dispatch import BACKGROUND_CALL_RETRIES
from perdure._runtime.places import ValueCodec
from perdure.approvals.messages import Leave
from perdure.approvals.schema import (
    RECONCILER,
    SELECT_OPEN_APPROVALS,
    Approval,
    select_ended_waiters,
    select_missing_timers,
    select_paused_invocations,
    wait_of,
    waiting_invocation,
)
from perdure.approvals.targets import leave_approval, repair_approval
from perdure.clients import ObjectClient
from perdure.engine.admin import AdminClient
from perdure.engine.ingress import IngressClient
from perdure.engine.polling import Pace, Poller
from perdure.errors import Acceptance, ConfigurationError, IngressError, InvocationNotFound, UnreadableValue
from perdure.handlers import Definition, handler
from perdure.observability.gauge_collector import GaugeCollector, Sample, age_in_seconds, decode_state_value
from perdure.observability.logging import get_logger
from perdure.observability.metrics import OLDEST_APPROVAL, OPEN_APPROVALS, OVERDUE_APPROVALS
from perdure.runs import RunConfig, run_with_retry
from perdure.targets import KeyedTarget, Target

log = get_logger("perdure.approvals.reconciler")

_KEY: Final = "all"
# Shares of a core, see `perdure.saga.reconciler`.
_SHARE: Final = 0.003
_GAUGES_SHARE: Final = 0.001
_WORK_SHARE: Final = 0.2
_FREE: Final = timedelta(milliseconds=50)
_ANY_HANDLER: Final = Target("any", "any", None, None)


@dataclass(frozen=True)
class ApprovalReconcilerConfig:
    """Configuration of the reconciler.

    Args:
        admin_url: The engine's admin API.
        ingress_url: The engine's ingress.
        interval: Interval of scans.
        grace: Minimum age of an orphan; a younger one may be about to be handled.
        codec: Codec of the journal; None for an unencrypted journal.

    Raises:
        ConfigurationError: The interval is not positive.
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


class Orphan(BaseModel):
    """Work that a kill interrupted.

    Args:
        kind: Kind of the orphan.
        id: The approval, or the paused invocation.
        wait: Wait of an ended invocation.
        missing: ID of the invocation, if the engine's tables do not contain it.
    """

    kind: Literal["ended_waiter", "missing_timer", "paused_invocation"]
    id: str
    wait: str = ""
    missing: str = ""


class ReconcileReport(BaseModel):
    """Orphans that `reconcile` handled."""

    repaired: list[Orphan] = []


_reconcile = KeyedTarget(RECONCILER, "reconcile", None, ReconcileReport)


async def find_orphans(admin: AdminClient, grace: timedelta) -> list[Orphan]:
    """Return the orphans in the engine's tables.

    Args:
        admin: Client of the engine.
        grace: Minimum age of an orphan.

    Raises:
        EngineError: The engine does not answer, or refuses the query.
    """
    ended = await admin.query(select_ended_waiters(grace))
    untimed = await admin.query(select_missing_timers(grace))
    paused = await admin.query(select_paused_invocations(grace))
    return [
        *(
            Orphan(
                kind="ended_waiter",
                id=row["id"],
                wait=wait_of(row["entry"]) or "",
                missing=waiting_invocation(row["entry"]) if row["missing"] else "",
            )
            for row in ended
        ),
        *(Orphan(kind="missing_timer", id=row["id"]) for row in untimed),
        *(Orphan(kind="paused_invocation", id=row["id"]) for row in paused),
    ]


async def count_approvals(admin: AdminClient, codec: ValueCodec | None) -> list[Sample]:
    """Return the gauges of open approvals. Unreadable ones count as open.

    Args:
        admin: Client of the engine.
        codec: Codec of the journal; None for an unencrypted journal.

    Raises:
        EngineError: The engine does not answer, or refuses the query.
    """
    now = datetime.now(UTC)
    approvals: list[Approval] = []
    unreadable = 0
    for row in await admin.query(SELECT_OPEN_APPROVALS):
        try:
            approvals.append(Approval.model_validate_json(decode_state_value(row, codec)))
        except (ValidationError, UnreadableValue):
            unreadable += 1
    if unreadable:
        log.warning("approvals.gauges.unreadable", number=unreadable)
    waiting = [approval for approval in approvals if approval.outcome is None]
    return [
        (OPEN_APPROVALS, len(waiting) + unreadable, {}),
        (OLDEST_APPROVAL, max((age_in_seconds(approval.opened_at, now) for approval in waiting), default=0.0), {}),
        (OVERDUE_APPROVALS, sum(approval.is_overdue(now) for approval in waiting), {}),
    ]


async def is_missing(ingress: IngressClient, invocation_id: str) -> bool:
    """Return whether the engine has no such invocation, as the leader of its partition says, unlike the tables.

    Raises:
        IngressError: The outcome is unknown.
    """
    try:
        await ingress.output(_ANY_HANDLER, invocation_id=invocation_id)
    except InvocationNotFound:
        return True
    except IngressError as error:
        if error.acceptance is not Acceptance.ACCEPTED:
            raise
    return False


class ApprovalReconciler:
    """Scans one engine for orphaned approvals.

    Args:
        config: The configuration.
    """

    def __init__(self, config: ApprovalReconcilerConfig) -> None:
        self._config = config
        self.definition = restate.VirtualObject(
            RECONCILER,
            description="Repairs approvals that a kill interrupted.",
            invocation_retry_policy=BACKGROUND_CALL_RETRIES,
        )
        handler(self.definition, "exclusive", ingress_private=False)(self.reconcile)
        self._begin()

    def _begin(self) -> None:
        # The queries read the state of all objects and workflows.
        self._pace, self._gauges_pace = Pace(_SHARE, free=_FREE), Pace(_GAUGES_SHARE, free=_FREE)
        self._has_orphans = False
        self._samples: list[Sample] = []

    def definitions(self) -> list[Definition]:
        """Return the definitions to serve."""
        return [self.definition]

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Scan at once and at the interval while the context is entered."""
        config = self._config
        self._begin()
        watch = Poller(
            "approvals.reconciler",
            log,
            config.admin_url,
            config.ingress_url,
            config.interval,
            config.codec,
            GaugeCollector("approvals", OPEN_APPROVALS, OLDEST_APPROVAL, OVERDUE_APPROVALS),
            self._sample,
            self._scan,
        )
        async with watch.watching():
            yield

    async def _scan(self, admin: AdminClient, ingress: IngressClient) -> None:
        if not (self._pace.is_due_for(_WORK_SHARE) if self._has_orphans else self._pace.is_due):
            return
        with self._pace.measured():
            self._has_orphans = bool(await find_orphans(admin, self._config.grace))
        if self._has_orphans:
            await ingress.call(_reconcile, key=_KEY)

    async def _sample(self, admin: AdminClient, codec: ValueCodec | None) -> list[Sample]:
        if self._gauges_pace.is_due:
            with self._gauges_pace.measured():
                self._samples = await count_approvals(admin, codec)
        return self._samples

    async def reconcile(self, ctx: restate.ObjectContext) -> ReconcileReport:
        """Repair all orphans."""
        orphans = await run_with_retry(ctx, RunConfig("find orphans", max_retries=5), self._find_orphans)
        for orphan in orphans:
            log.warning("approvals.reconciler.orphan", kind=orphan.kind, id=orphan.id)
            if orphan.kind == "ended_waiter":
                request = Leave(wait=orphan.wait, reason="the waiting invocation ended")
                await ObjectClient(ctx, leave_approval, orphan.id).send(request)
            elif orphan.kind == "missing_timer":
                await ObjectClient(ctx, repair_approval, orphan.id).send()
            else:
                await run_with_retry(ctx, f"resume {orphan.id}", self._resume, orphan.id)
        return ReconcileReport(repaired=orphans)

    async def _find_orphans(self) -> list[Orphan]:
        config = self._config
        async with AdminClient(config.admin_url) as admin, IngressClient(config.ingress_url) as ingress:
            orphans = await find_orphans(admin, config.grace)
            return [each for each in orphans if not each.missing or await is_missing(ingress, each.missing)]

    async def _resume(self, invocation_id: str) -> None:
        async with AdminClient(self._config.admin_url) as admin:
            if not await admin.control_if_permitted(invocation_id, "resume"):
                # The invocation is no longer paused. A later scan finds it if it pauses again.
                log.warning("approvals.reconciler.resume_refused", id=invocation_id)
