"""The reconciler of sagas: detects orphaned sagas and rollbacks, and repairs them.

A handler is not told that it is killed, and a paused invocation waits without end; both leave a saga half done. The
reconciler queries the engine at an interval for:

- an orchestration that ended without closing its saga, killed by a person or by its retry policy, or that submitted
  its rollback, which never began because its start was killed;
- an orchestration that has been paused for too long; it is killed, so that it cannot continue beside its rollback;
- an open rollback without a running or scheduled invocation;
- a paused invocation that rollbacks or alerts depend on; it is resumed.

A saga is not rolled back while calls of its orchestration still run, since they could overtake a compensation. The
reconciler cancels them and waits for their end, scan by scan. After a kill by a person, which ends the calls too, their
threads may still commit; so it also waits for a grace period.

The scan is a query by a process. Only if it finds something, it calls the durable handler `reconcile`, which scans
again by itself. So any caller may call `reconcile`. Repaired work is in no later scan.

The engine has no index of open work, so a scan reads the whole history. Scans therefore have a share of a core, and are
rarer the longer they take. The query for orphans, which reads most, runs if an invocation failed or is paused without
explanation (see `perdure.saga.signs`), and otherwise once a minute at most.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Set
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import restate
from pydantic import BaseModel

from perdure._runtime.checks import check_types
from perdure._runtime.dispatch import BACKGROUND_CALL_RETRIES
from perdure._runtime.places import ValueCodec
from perdure._runtime.sdk import is_replaying
from perdure._runtime.waiting import is_own_cancel
from perdure.alerts.conditions import HANGING_LIMIT, MAX_SINGLE_ALERTS, Alert, AlertNotification, Condition
from perdure.alerts.service import (
    ALERT_DISPATCHER,
    ALERT_RETRIES,
    ALERTS_KEY,
    SCAN_INTERVAL,
    Alerts,
    StoredConditions,
    scan_target,
    send_notification,
)
from perdure.clients import ObjectClient
from perdure.determinism import Time
from perdure.engine.admin import AdminClient, sql_text
from perdure.engine.ingress import IngressClient
from perdure.engine.polling import Pace, Poller
from perdure.errors import ConfigurationError, Conflict, TerminalError
from perdure.handlers import Definition, handler
from perdure.idempotency import digest_key
from perdure.observability.logging import get_logger
from perdure.observability.metrics import RECONCILER_REPAIRS
from perdure.runs import RunConfig, run_with_retry
from perdure.saga.gauges import SagaSampler, saga_gauges
from perdure.saga.held_step_monitoring import held_step_alerts
from perdure.saga.messages import roll_back_handler
from perdure.saga.queries import open_sagas_sql
from perdure.saga.recovery import RemainingCalls, UnresponsiveService, remaining_calls, request_rollback
from perdure.saga.rollback import resume_target
from perdure.saga.schema import (
    ATTEMPTS_PREFIX,
    CANCELLED_PREFIX,
    KILLED_PREFIX,
    LATE_PREFIX,
    SAGA_RECONCILER,
    OrphanKind,
    orphan_queries,
)
from perdure.saga.signs import FAILING_SERVICES, Signs
from perdure.security.keys import PrivateKey
from perdure.state import State
from perdure.targets import KeyedTarget

log = get_logger("perdure.saga.reconciler")

RECONCILER_KEY: Final = "all"

# Shares of a core. Together with the reconciler of approvals, an idle platform stays under 2 %, whatever its history.
_CONDITIONS_SHARE: Final = 0.006
_ALERTS_SHARE: Final = 0.003
_ORPHANS_SHARE: Final = 0.003
_WORK_SHARE: Final = 0.2
"""Share of the query for orphans while there is a sign of one."""
_FULL_SCAN_INTERVAL: Final = timedelta(minutes=1)
"""Interval of the query for orphans without a sign of one, if its cost permits that."""
_MAX_ALERT_DELAY: Final = 2
"""Number of intervals after which alerts are scanned whatever the cost; a list of alerts is outdated after three."""
_KILL_DURATION = timedelta(minutes=1)
_MAX_ACTIONS = 500


@dataclass(frozen=True)
class SagaReconcilerConfig:
    """Settings of the reconciler.

    Args:
        admin_url: The engine's admin API.
        ingress_url: The engine's ingress.
        interval: Time between two scans.
        grace: How long an ended orchestration, or a failed call of it, is left alone: a thread may still commit.
        paused_limit: How long an orchestration may be paused before it is killed and rolled back; None for ever.
        webhook_url: Receiver of alerts, see `perdure.alerts.webhook`.
        webhook_key: Signs the alerts; None sends them unsigned.
        alert_retries: Number of failed attempts that raises an alert.
        hanging_limit: How long an attempt may run without progress before it raises an alert.
        codec: Encryption of the services' journal; None if it is not encrypted.

    Raises:
        ConfigurationError: A value is out of range, or the webhook is not an HTTP address.
    """

    admin_url: str
    ingress_url: str
    interval: timedelta = timedelta(seconds=5)
    grace: timedelta = timedelta(seconds=5)
    paused_limit: timedelta | None = timedelta(hours=1)
    webhook_url: str | None = None
    webhook_key: PrivateKey | None = None
    alert_retries: int = ALERT_RETRIES
    hanging_limit: timedelta = HANGING_LIMIT
    codec: ValueCodec | None = None

    def __post_init__(self) -> None:
        check_types(self)
        if self.interval <= timedelta(0):
            raise ConfigurationError(f"SagaReconcilerConfig.interval must be positive; got {self.interval}")
        if self.grace < timedelta(0) or (self.paused_limit or timedelta(0)) < timedelta(0):
            raise ConfigurationError("SagaReconcilerConfig.grace and paused_limit must not be negative")
        if self.hanging_limit <= timedelta(0):
            raise ConfigurationError(f"SagaReconcilerConfig.hanging_limit must be positive; got {self.hanging_limit}")
        if self.alert_retries < 1:
            raise ConfigurationError(f"SagaReconcilerConfig.alert_retries must be 1 or more; got {self.alert_retries}")
        if self.webhook_url is not None and not self.webhook_url.startswith(("https://", "http://")):
            host = self.webhook_url.partition("/")[0][:40]  # the path may contain a secret
            raise ConfigurationError(
                f"SagaReconcilerConfig.webhook_url must begin with https:// or http://; got '{host}…'"
            )


class OrphanedSaga(BaseModel):
    """An orphaned saga or rollback.

    Args:
        kind: An ended orchestration, a paused one, a stalled rollback, or a paused invocation that rollbacks depend
            on.
        id: The invocation; for a rollback, the execution's ID.
        service: The service.
        key: The key.
        reason: The engine's failure message.
        began: When the invocation was created: a reused workflow key has the same invocation ID.
    """

    kind: OrphanKind
    id: str
    service: str
    key: str
    reason: str = ""
    began: str = ""

    @property
    def unique_id(self) -> str:
        """ID that differs between invocations under a reused workflow key."""
        return f"{self.id}@{self.began}" if self.began else self.id


class ReconcileReport(BaseModel):
    """Result of `reconcile`.

    Args:
        acted_on: The repaired orphans.
        failed: Errors of failed repairs, by unique ID.
        left: Number left to the next scan, so that the journal of each stays short.
    """

    acted_on: list[OrphanedSaga] = []
    failed: dict[str, str] = {}
    left: int = 0


reconcile_target: KeyedTarget[None, ReconcileReport] = KeyedTarget(SAGA_RECONCILER, "reconcile", None, ReconcileReport)


async def find_orphans(admin: AdminClient, config: SagaReconcilerConfig) -> list[OrphanedSaga]:
    """Query the engine for orphaned sagas and rollbacks.

    Raises:
        EngineError: The engine does not answer, or refuses the query.
    """
    sagas = await open_sagas_sql(admin.query)
    return [
        OrphanedSaga.model_validate({**row, "reason": row.get("reason") or ""})
        for sql in orphan_queries(config.grace, config.paused_limit, [ALERT_DISPATCHER], sagas)
        for row in await admin.query(sql)
    ]


class SagaReconciler:
    """Reconciles the sagas of one engine, and raises alerts.

    Args:
        config: The settings.
    """

    def __init__(self, config: SagaReconcilerConfig) -> None:
        self._config = config
        self.definition = restate.VirtualObject(
            SAGA_RECONCILER,
            description="Starts the rollback of orphaned sagas.",
            invocation_retry_policy=BACKGROUND_CALL_RETRIES,
        )
        handler(self.definition, "exclusive", ingress_private=False)(self.reconcile)
        self._alerts = Alerts(
            config.admin_url,
            webhook_url=config.webhook_url,
            webhook_key=config.webhook_key,
            retries=config.alert_retries,
            hanging_limit=config.hanging_limit,
            scan_interval=max(SCAN_INTERVAL, config.interval),
            more_conditions=held_step_alerts,
        )
        self._alert_scan: asyncio.Task[None] | None = None
        self._begin()

    def _begin(self) -> None:
        self._stored = StoredConditions(_CONDITIONS_SHARE, FAILING_SERVICES)
        self._signs = Signs(self._config.grace, self._config.paused_limit, [ALERT_DISPATCHER])
        self._orphans_pace = Pace(_ORPHANS_SHARE, _FULL_SCAN_INTERVAL)
        self._has_orphans = False
        self._conditions: frozenset[str] = frozenset()
        self._next_alert_scan = 0.0

    def definitions(self) -> list[Definition]:
        """Return the services to serve."""
        return [self.definition, *self._alerts.definitions()]

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Scan at once and then at the interval while the context is entered."""
        config = self._config
        self._begin()
        poller = Poller(
            "reconciler",
            log,
            config.admin_url,
            config.ingress_url,
            config.interval,
            config.codec,
            saga_gauges(),
            SagaSampler(self._stored, config.hanging_limit),
            self._scan,
        )
        try:
            async with poller.watching():
                yield
        finally:
            if (alert_scan := self._alert_scan) is not None:
                self._alert_scan = None
                alert_scan.cancel()
                await asyncio.gather(alert_scan, return_exceptions=True)

    async def _scan(self, admin: AdminClient, ingress: IngressClient) -> None:
        # Concurrently, since either may wait for a service that does not answer. The alerts may take several scans, and
        # must not delay the sagas.
        stored = await self._stored.read(admin)
        if self._alert_scan is None:
            self._alert_scan = asyncio.create_task(self._scan_alerts(admin, ingress, stored))
        alert_scan = self._alert_scan
        results = list(await asyncio.gather(self._scan_sagas(admin, ingress, stored), return_exceptions=True))
        if (await asyncio.wait([alert_scan], timeout=self._config.interval.total_seconds()))[0]:
            self._alert_scan = None
            results += await asyncio.gather(alert_scan, return_exceptions=True)
        failures = [each for each in results if each is not None]
        if failures:
            raise failures[0] from (failures[1] if len(failures) > 1 else None)

    async def _scan_alerts(self, admin: AdminClient, ingress: IngressClient, stored: list[dict[str, Any]]) -> None:
        conditions = await self._alerts.fingerprint(admin, stored)
        if conditions != self._conditions or time.monotonic() >= self._next_alert_scan:
            await ingress.call(scan_target, key=ALERTS_KEY)
            interval = self._alerts.scan_interval
            pause = min(max(interval, self._stored.pace.duration / _ALERTS_SHARE), interval * _MAX_ALERT_DELAY)
            self._next_alert_scan = time.monotonic() + pause.total_seconds()
        self._conditions = conditions

    async def _scan_sagas(self, admin: AdminClient, ingress: IngressClient, stored: list[dict[str, Any]]) -> None:
        self._signs.add(stored)
        is_suspected = await self._signs.are_unexplained(admin) or self._has_orphans
        pace = self._orphans_pace
        if not (pace.is_due_for(_WORK_SHARE) if is_suspected else pace.is_due):
            return
        with pace.measured():
            self._has_orphans = bool(await find_orphans(admin, self._config))
        if self._has_orphans:
            await ingress.call(reconcile_target, key=RECONCILER_KEY)

    async def reconcile(self, ctx: restate.ObjectContext) -> ReconcileReport:
        """Scan once, and repair each orphan."""
        orphans = await run_with_retry(ctx, RunConfig("find orphans", max_retries=5), self._find_orphans)
        now = await Time(ctx).now()
        names = await ctx.state_keys()
        ids = {each.unique_id for each in orphans}
        await self._clean_up(ctx, sorted(name for name in names if name.partition("/")[2] not in ids), now)
        report = ReconcileReport()
        unresponsive: set[str] = set()
        alerts: defaultdict[str, list[Alert]] = defaultdict(list)
        actions = 0
        for orphan in _pending(orphans, set(names)):
            if actions == _MAX_ACTIONS:
                report.left += 1
                continue
            late = LATE_PREFIX + orphan.unique_id
            try:
                if orphan.service in unresponsive and orphan.kind == "orphaned":
                    raise UnresponsiveService(f"{orphan.service} does not answer")
                actions += 1
                reason = await self._repair(ctx, orphan, now)
            except TerminalError as error:
                if is_own_cancel(error):
                    raise
                report.failed[orphan.unique_id] = message = _log_failure(orphan, error)
                if not isinstance(error, UnresponsiveService):
                    continue
                unresponsive.add(orphan.service)
                if await State(ctx, late, bool).get():
                    continue
                # A later answer starts the rollback, and the saga is then in no scan.
                await State(ctx, late, bool).set(True)
                reason = f"{orphan.reason}; {message}"
            else:
                report.acted_on.append(orphan)
                _report(ctx, orphan)
                if orphan.kind == "paused" or await State(ctx, late, bool).get():
                    continue  # notified when its rollback starts, or before
            alerts[orphan.service].append(_alert(orphan, reason, now))
            if len(alerts[orphan.service]) <= MAX_SINGLE_ALERTS:
                await _notify(ctx, alerts[orphan.service][-1])
        await _notify_rest(ctx, alerts.values(), now)
        return report

    async def _repair(self, ctx: restate.ObjectContext, orphan: OrphanedSaga, now: datetime) -> str:
        """Repair an orphan; return the reason for the alert."""
        if orphan.kind == "stalled":
            await ObjectClient(ctx, resume_target, orphan.key).send()
        elif orphan.kind == "halted":
            await run_with_retry(ctx, f"resume {orphan.id}", self._resume_paused, orphan.id)
        elif orphan.kind == "paused":
            if not await run_with_retry(ctx, f"kill {orphan.id}", self._kill_paused, orphan.id):
                # Resumed or ended since; if it is orphaned, a later scan detects it as that.
                raise Conflict("the orchestration is not paused")
            await State(ctx, KILLED_PREFIX + orphan.unique_id, datetime).set(now)
        else:
            reason = orphan.reason
            if await State(ctx, KILLED_PREFIX + orphan.unique_id, datetime).get() is not None:
                reason = f"paused for longer than {self._config.paused_limit} and killed"
            await self._roll_back(ctx, orphan, f"the orchestration was orphaned: {reason}")
            return reason
        return f"{orphan.kind}: {orphan.reason}"

    async def _roll_back(self, ctx: restate.ObjectContext, orphan: OrphanedSaga, reason: str) -> None:
        calls = await run_with_retry(ctx, f"calls of {orphan.id}", self._remaining_calls, orphan.id)
        # Each call is cancelled once: a second cancel could interrupt its clean-up.
        cancelled = State(ctx, CANCELLED_PREFIX + orphan.unique_id, list[str])
        before = await cancelled.get() or []
        if running := [id_ for id_ in calls.running if id_ not in before]:
            await run_with_retry(ctx, f"cancel calls of {orphan.id}", self._cancel, running)
            await cancelled.set(before + running)
        if (blocked := calls.explain()) is not None:
            raise Conflict(blocked)
        attempts = State(ctx, ATTEMPTS_PREFIX + orphan.unique_id, int)
        number = await attempts.get() or 0
        roll_back = roll_back_handler(orphan.service, orphan.key)
        key = digest_key("reconciler", orphan.unique_id, str(number))
        try:
            await request_rollback(ctx, roll_back, reason=reason, children=calls.failed_children, idempotency_key=key)
        except UnresponsiveService:
            raise
        except TerminalError as error:
            if not is_own_cancel(error):  # answered or killed; the same key would return the same result again
                await attempts.set(number + 1)
            raise

    async def _clean_up(self, ctx: restate.ObjectContext, names: list[str], now: datetime) -> None:
        """Delete the state of former orphans. A killed orchestration is orphaned only after the grace period."""
        for name in names:
            killed_at = await State(ctx, name, datetime).get() if name.startswith(KILLED_PREFIX) else None
            if killed_at is None or now - killed_at > self._config.grace + _KILL_DURATION:
                await State(ctx, name, bool).clear()

    async def _remaining_calls(self, invocation_id: str) -> RemainingCalls:
        async with AdminClient(self._config.admin_url) as admin:
            return await remaining_calls(admin, invocation_id, self._config.grace)

    async def _cancel(self, invocation_ids: list[str]) -> None:
        async with AdminClient(self._config.admin_url) as admin:
            for each in invocation_ids:
                await admin.control_if_permitted(each, "cancel")

    async def _find_orphans(self) -> list[OrphanedSaga]:
        async with AdminClient(self._config.admin_url) as admin:
            return await find_orphans(admin, self._config)

    async def _resume_paused(self, invocation_id: str) -> None:
        async with AdminClient(self._config.admin_url) as admin:
            await admin.control_if_permitted(invocation_id, "resume")

    async def _kill_paused(self, invocation_id: str) -> bool:
        is_paused = "select id from sys_invocation_status where status = 'paused' and id = " + sql_text(invocation_id)
        async with AdminClient(self._config.admin_url) as admin:
            return bool(await admin.query(is_paused)) and await admin.control_if_permitted(invocation_id, "kill")


def _log_failure(orphan: OrphanedSaga, error: TerminalError) -> str:
    message = error.message.partition("\nTraceback")[0]
    log.warning("reconciler.failed", kind=orphan.kind, service=orphan.service, key=orphan.key, error=message)
    return message


def _report(ctx: restate.ObjectContext, orphan: OrphanedSaga) -> None:
    if not is_replaying(ctx):
        RECONCILER_REPAIRS.count(service=orphan.service, kind=orphan.kind)
    log.warning("reconciler.acted", kind=orphan.kind, service=orphan.service, key=orphan.key, reason=orphan.reason)


def _pending(orphans: Iterable[OrphanedSaga], names: Set[str]) -> list[OrphanedSaga]:
    """Return orphans without duplicates; those whose repair failed before come last, so that they block none."""
    pending: dict[str, OrphanedSaga] = {}
    for orphan in orphans:
        pending.setdefault(orphan.unique_id, orphan)
    return sorted(pending.values(), key=lambda orphan: ATTEMPTS_PREFIX + orphan.unique_id in names)


def _alert(orphan: OrphanedSaga, reason: str, now: datetime) -> Alert:
    condition = Condition.RECONCILED
    return Alert(
        id=f"{condition}/{orphan.id}",
        condition=condition,
        invocation=orphan.id,
        service=orphan.service,
        key=orphan.key,
        reason=reason,
        since=now,
    )


async def _notify(ctx: restate.ObjectContext, alert: Alert) -> None:
    await send_notification(ctx, AlertNotification(event="reconciler.acted", alert=alert))


async def _notify_rest(ctx: restate.ObjectContext, alerts: Iterable[list[Alert]], now: datetime) -> None:
    """Send one notification per service for the alerts that exceed the limit of single ones."""
    for each in alerts:
        if rest := each[MAX_SINGLE_ALERTS:]:
            await _notify(ctx, Alert.for_group(rest, len(rest), now))
