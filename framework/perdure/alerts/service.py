"""`Alerts`: notifies a webhook of invocations that are paused, killed, hang or fail repeatedly, once each.

`Alerts` is a virtual object. It takes a snapshot of the engine, compares it with the alerts that it has stored, and
passes the changes to its dispatcher. Each request is a separate invocation, retried for a day. A crash
repeats a request only if its response was lost.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import restate
from pydantic import AwareDatetime, BaseModel, TypeAdapter, ValidationError
from restate.serde import BytesSerde

from perdure._runtime.dispatch import BACKGROUND_CALL_RETRIES
from perdure._runtime.places import ValueCodec
from perdure._runtime.sdk import is_replaying
from perdure.alerts.conditions import (
    HANGING_LIMIT,
    Alert,
    AlertNotification,
    Condition,
    PauseFailure,
    Snapshot,
    attempt_conditions_sql,
    attempts_sql,
    compare,
    open_workflows_sql,
    overdue_alert,
    overdue_sql,
    pause_failure,
    snapshot_of,
    stored_conditions_sql,
)
from perdure.alerts.webhook import post_alert
from perdure.clients import ServiceClient
from perdure.determinism import Time
from perdure.engine.admin import AdminClient, sql_text
from perdure.engine.attempts import last_failures
from perdure.engine.polling import Pace
from perdure.errors import RunExhausted
from perdure.handlers import Definition, handler
from perdure.idempotency import digest_key
from perdure.observability.gauge_collector import decode_state_value
from perdure.observability.logging import get_logger
from perdure.observability.metrics import ALERTS as ALERTS_SENT
from perdure.runs import RunConfig, run_with_retry
from perdure.security.keys import PrivateKey
from perdure.state import State, StateContext
from perdure.targets import KeyedTarget, Target

log = get_logger("perdure.alerts.service")

ALERTS: Final = "Alerts"
ALERT_DISPATCHER: Final = "AlertDispatcher"
ALERTS_KEY: Final = "all"

ALERT_RETRIES: Final = 8
"""Default number of failed attempts that raises an alert: 8 s with the default retries, so a restart raises none."""
RECENT_KILL: Final = timedelta(hours=1)
"""Default time for which a kill is a condition."""
SCAN_INTERVAL: Final = timedelta(minutes=1)
"""Interval of the scans while nothing changes."""

_ALERT_PREFIX = "alert/"
_GROUP_PREFIX = "group/"
_MORE_KEY = "more"
_SCANNED_KEY = "scanned_at"
_INTERVAL_KEY = "scan_interval"
_MAX_MISSED_SCANS = 3
_MAX_RESOLVED = 200
_RESOLVED_RETENTION = timedelta(days=1)
_SEND_FOR = timedelta(days=1)
_FAILURES_OVERLAP = timedelta(minutes=2)
_STATE_SQL = (
    "select service_name, service_key, key, encode(value, 'hex') as value from state "
    f"where service_name = '{ALERTS}' and scope is null and service_key = '{ALERTS_KEY}'"
)


class AlertList(BaseModel):
    """Alerts, newest first.

    Args:
        open: Open alerts, at most `perdure.alerts.conditions.MAX_LISTED` per service and condition.
        more: Number of open alerts beyond those.
        resolved: Alerts that were resolved within the last day.
        scanned_at: Time of the last scan; None before the first.
        scan_interval: Longest interval between two scans.
    """

    open: list[Alert]
    resolved: list[Alert]
    more: int = 0
    scanned_at: AwareDatetime | None = None
    scan_interval: timedelta = SCAN_INTERVAL

    def is_current(self, now: datetime) -> bool:
        """Return whether the scans are on time; otherwise the list may be outdated."""
        return self.scanned_at is not None and now - self.scanned_at <= self.scan_interval * _MAX_MISSED_SCANS


list_alerts = KeyedTarget(ALERTS, "list", None, AlertList)
scan_target = KeyedTarget(ALERTS, "scan", None, int)
post_target = Target(ALERT_DISPATCHER, "post", AlertNotification, None)


async def take_snapshot(
    admin: AdminClient,
    retries: int,
    recent_kill: timedelta,
    *,
    excluded_service: str = ALERT_DISPATCHER,
    hanging_limit: timedelta = HANGING_LIMIT,
) -> Snapshot:
    """Return the current conditions.

    Args:
        admin: The engine.
        retries: Number of failed attempts that is a condition.
        recent_kill: How long a kill is a condition.
        excluded_service: A service to ignore.
        hanging_limit: How long an attempt may run without progress.

    Raises:
        EngineError: The engine does not answer, or refuses a query.
    """
    stored = await admin.query(stored_conditions_sql(recent_kill))
    known = {row["id"] for row in stored}  # paused or killed; the attempts are read a moment later
    attempts = [row for row in await attempt_conditions(admin, retries, hanging_limit) if row["id"] not in known]
    return snapshot_of([*stored, *attempts], excluded_service=excluded_service)


async def attempt_conditions(
    admin: AdminClient, retries: int, hanging_limit: timedelta = HANGING_LIMIT
) -> list[dict[str, Any]]:
    """Return rows for invocations that fail repeatedly or hang, see `perdure.alerts.conditions.snapshot_of`.

    Its cost follows the number of such invocations, not the history.

    Args:
        admin: The engine.
        retries: Number of failed attempts that is a condition.
        hanging_limit: How long an attempt may run without progress.

    Raises:
        EngineError: The engine does not answer, or refuses a query.
    """
    ids = [row["id"] for row in await admin.query(attempts_sql(retries, hanging_limit))]
    rows = await admin.query(attempt_conditions_sql(retries, hanging_limit, ids)) if ids else []
    waiting = await last_failures(admin, [row["id"] for row in rows if not row["reason"] and not _hangs(row)])
    return [
        {**row, "reason": waiting[row["id"]][0], "error_code": waiting[row["id"]][1]} if row["id"] in waiting else row
        for row in rows
    ]


def _hangs(row: Mapping[str, Any]) -> bool:
    return bool(row["condition"] == Condition.HANGING)


async def pause_reasons(admin: AdminClient, ids: Collection[str]) -> dict[str, str]:
    """Return why invocations were paused, by ID; empty for a manual pause.

    Raises:
        EngineError: The engine does not answer, or refuses the query.
    """
    return {name: failure.reason for name, failure in (await _pause_failures(admin, ids)).items()}


async def _pause_failures(admin: AdminClient, ids: Collection[str]) -> dict[str, PauseFailure]:
    if not ids:
        return {}
    rows = await admin.query(
        "select id, event_json from sys_journal_events where event_type = 'Paused' "
        f"and id in ({', '.join(map(sql_text, ids))}) order by appended_at"
    )
    return {row["id"]: pause_failure(row["event_json"]) for row in rows}


async def add_pause_reasons(admin: AdminClient, snapshot: Snapshot) -> Snapshot:
    """Return a snapshot with the reasons of paused invocations.

    Raises:
        EngineError: The engine does not answer, or refuses the query.
    """
    paused = [each.invocation for each in snapshot.alerts if each.condition is Condition.PAUSED]
    failures = await _pause_failures(admin, paused)
    alerts = [
        each.model_copy(update={"reason": failure.reason, "error_code": failure.error_code})
        if (failure := failures.get(each.invocation)) and failure.reason
        else each
        for each in snapshot.alerts
    ]
    return snapshot.model_copy(update={"alerts": alerts})


class StoredConditions:
    """Reads paused, killed and failed invocations, not more often than a share of a core permits.

    Args:
        share: The share of a core.
        failing_services: See `perdure.alerts.conditions.stored_conditions_sql`.
    """

    def __init__(self, share: float, failing_services: Collection[str]) -> None:
        self.pace = Pace(share)
        self._failing_services = failing_services
        self._rows: list[dict[str, Any]] = []
        self._read_at: float | None = None

    async def read(self, admin: AdminClient) -> list[dict[str, Any]]:
        """Return the rows of the last query, or of a new one that is due.

        Raises:
            EngineError: The engine does not answer, or refuses the query.
        """
        if self.pace.is_due:
            now = time.monotonic()
            missed = timedelta(0) if self._read_at is None else timedelta(seconds=now - self._read_at)
            sql = stored_conditions_sql(RECENT_KILL, missed + _FAILURES_OVERLAP, self._failing_services)
            with self.pace.measured():
                self._rows = await admin.query(sql)
            self._read_at = now
        return self._rows


async def add_overdue(admin: AdminClient, snapshot: Snapshot) -> Snapshot:
    """Return a snapshot with the sagas that are past their deadline and their pivot.

    Raises:
        EngineError: The engine does not answer, or refuses the query.
    """
    marked = {(row["service"], row["key"]) for row in await admin.query(overdue_sql())}
    if not marked:
        return snapshot
    rows = await admin.query(open_workflows_sql(sorted({key for _, key in marked})))
    overdue = [overdue_alert(row) for row in rows if (row["service"], row["key"]) in marked]
    return snapshot.model_copy(update={"alerts": [*snapshot.alerts, *overdue]})


class Alerts:
    """Alerts on the invocations of one engine.

    Args:
        admin_url: The engine's admin API.
        webhook_url: The receiver of notifications; without one, alerts are only listed.
        webhook_key: Signs the notifications; None sends them unsigned.
        retries: Number of failed attempts that raises an alert.
        recent_kill: How long a kill is a condition.
        hanging_limit: How long an attempt may run without progress.
        scan_interval: Longest interval between two scans.
        more_conditions: Returns conditions of other kinds, from the same engine.
    """

    def __init__(
        self,
        admin_url: str,
        *,
        webhook_url: str | None = None,
        webhook_key: PrivateKey | None = None,
        retries: int = ALERT_RETRIES,
        recent_kill: timedelta = RECENT_KILL,
        hanging_limit: timedelta = HANGING_LIMIT,
        scan_interval: timedelta = SCAN_INTERVAL,
        more_conditions: Callable[[AdminClient], Awaitable[Snapshot]] | None = None,
    ) -> None:
        self._admin_url = admin_url
        self._url = webhook_url
        self._key = webhook_key
        self._retries = retries
        self._recent_kill = recent_kill
        self._hanging_limit = hanging_limit
        self._more_conditions = more_conditions
        self.scan_interval = scan_interval
        self.definition = restate.VirtualObject(
            ALERTS,
            description="Alerts on invocations that are paused, killed, hang or fail repeatedly.",
            invocation_retry_policy=BACKGROUND_CALL_RETRIES,
        )
        self._dispatcher = restate.Service(ALERT_DISPATCHER, description="Sends alert notifications to a webhook.")
        handler(self.definition, "exclusive", name="scan", ingress_private=False)(self.scan)
        handler(self.definition, "shared", name="list", read_only=True, ingress_private=False)(self.list)
        handler(self._dispatcher, name="post", ingress_private=True)(self.post)

    def definitions(self) -> list[Definition]:
        """Return the services to serve."""
        return [self.definition, self._dispatcher]

    async def fingerprint(self, admin: AdminClient, stored: Sequence[Mapping[str, Any]]) -> frozenset[str]:
        """Return a value that changes with the current conditions; then a scan is due.

        Args:
            admin: The engine.
            stored: The rows of `perdure.alerts.conditions.stored_conditions_sql`.

        Raises:
            EngineError: The engine does not answer, or refuses the query.
        """
        attempts = await attempt_conditions(admin, self._retries, self._hanging_limit)
        failing = {row["id"] for row in attempts}
        rows = [*attempts, *(row for row in stored if row["id"] not in failing)]
        found = snapshot_of(rows, excluded_service=ALERT_DISPATCHER)
        return (await self._with_more(admin, found)).fingerprint()

    async def scan(self, ctx: restate.ObjectContext) -> int:
        """Notify of new and resolved alerts; return the number of open ones.

        Public on the ingress for the reconciler. It has no input and sends no notification twice, so other callers only
        cause an earlier scan.
        """
        snapshot = await run_with_retry(ctx, RunConfig("snapshot", max_retries=5), self._snapshot)
        now = await Time(ctx).now()
        stored = await _StoredAlerts.read(ctx)
        known = stored.alerts
        for name in stored.unreadable:  # a condition that lasts is raised anew, under the same idempotency key
            log.warning("alerts.unreadable", alert=name)
            await State(ctx, name, Alert).clear()
        changes = compare(known, stored.groups, snapshot, now)
        # Sent before it is stored: after a kill in between, the next scan sends it under the same idempotency key.
        for notification in changes.notifications:
            alert = notification.alert
            log.warning(
                notification.event, condition=alert.condition, alert=alert.id, count=alert.count, reason=alert.reason
            )
            await send_notification(ctx, notification)
        for alert in changes.alerts:
            await State(ctx, _ALERT_PREFIX + alert.id, Alert).set(alert)
            known[alert.id] = alert
        for name, group in changes.groups.items():
            state = State(ctx, _GROUP_PREFIX + name, Alert)
            await (state.clear() if group is None else state.set(group))
        resolved = [(alert.resolved_at, alert.id) for alert in known.values() if alert.resolved_at is not None]
        for number, (resolved_at, name) in enumerate(sorted(resolved, reverse=True)):
            if number >= _MAX_RESOLVED or resolved_at < now - _RESOLVED_RETENTION:
                await State(ctx, _ALERT_PREFIX + name, Alert).clear()
        more = sum(snapshot.more.values())
        await State(ctx, _MORE_KEY, int).set(more)
        await State(ctx, _SCANNED_KEY, datetime).set(now)
        await State(ctx, _INTERVAL_KEY, timedelta).set(self.scan_interval)
        return len(snapshot.alerts) + more

    async def list(self, ctx: restate.ObjectSharedContext) -> AlertList:
        """List the open alerts, and those resolved within the last day."""
        return (await _StoredAlerts.read(ctx)).listed(
            more=await State(ctx, _MORE_KEY, int, default=0).get(),
            scanned_at=await State(ctx, _SCANNED_KEY, datetime).get(),
            scan_interval=self.scan_interval,
        )

    async def post(self, ctx: restate.Context, notification: AlertNotification) -> None:
        """Send one notification, with retries for a day."""
        if self._url is None:
            return
        config = RunConfig(
            "post",
            max_retries=None,
            initial_delay=timedelta(seconds=1),
            max_delay=timedelta(minutes=5),
            max_duration=_SEND_FOR,
        )
        outcome = "delivered"
        try:
            await run_with_retry(ctx, config, post_alert, self._url, self._key, notification, ctx.request().id)
        except RunExhausted as error:
            outcome = "exhausted"
            log.error("reconciler.webhook_failed", alert=notification.alert.id, error=error.message)  # noqa: TRY400 - the trace adds nothing
        if not is_replaying(ctx):
            ALERTS_SENT.count(kind=notification.alert.condition.value, outcome=outcome)

    async def _snapshot(self) -> Snapshot:
        async with AdminClient(self._admin_url) as admin:
            found = await take_snapshot(admin, self._retries, self._recent_kill, hanging_limit=self._hanging_limit)
            return await add_overdue(admin, await add_pause_reasons(admin, await self._with_more(admin, found)))

    async def _with_more(self, admin: AdminClient, found: Snapshot) -> Snapshot:
        if self._more_conditions is None:
            return found
        others = await self._more_conditions(admin)
        return Snapshot(alerts=found.alerts + others.alerts, more=found.more | others.more)


async def read_alerts(admin: AdminClient, codec: ValueCodec | None = None) -> AlertList:
    """Return the stored alerts from the engine's tables, also while the service of `Alerts` is down.

    Args:
        admin: The engine.
        codec: Decrypts the values; None if the journal is not encrypted.

    Raises:
        UnreadableValue: The journal is encrypted with another key.
        EngineError: The engine does not answer, or refuses the query.
    """
    state = {row["key"]: decode_state_value(row, codec) for row in await admin.query(_STATE_SQL)}
    scanned_at, scan_interval = state.get(_SCANNED_KEY), state.get(_INTERVAL_KEY)
    return _StoredAlerts(state).listed(
        more=int(state.get(_MORE_KEY, b"0")),
        scanned_at=None if scanned_at is None else TypeAdapter(datetime).validate_json(scanned_at),
        scan_interval=SCAN_INTERVAL if scan_interval is None else TypeAdapter(timedelta).validate_json(scan_interval),
    )


async def send_notification(ctx: restate.Context, notification: AlertNotification) -> None:
    """Send a notification to the webhook, durably; equal notifications are sent once."""
    await ServiceClient(ctx, post_target).send(notification, idempotency_key=notification_key(notification))


def notification_key(notification: AlertNotification) -> str:
    """Return the idempotency key of a notification."""
    alert = notification.alert
    since = "" if alert.since is None else alert.since.isoformat()
    return digest_key(notification.event, alert.id, str(alert.count), since)


class _StoredAlerts:
    """State of `Alerts`. Entries that cannot be read are skipped: they must not block notifications."""

    def __init__(self, entries: Mapping[str, bytes]) -> None:
        self.alerts: dict[str, Alert] = {}
        self.groups: dict[str, Alert] = {}
        self.unreadable: list[str] = []
        for name in sorted(entries):
            if name.startswith(_ALERT_PREFIX):
                alerts = self.alerts
            elif name.startswith(_GROUP_PREFIX):
                alerts = self.groups
            else:
                continue
            try:
                alert = Alert.model_validate_json(entries[name])
            except ValidationError:
                self.unreadable.append(name)
            else:
                alerts[alert.id] = alert

    @classmethod
    async def read(cls, ctx: StateContext) -> _StoredAlerts:
        """Read the state in a handler."""
        return cls({name: await ctx.get(name, serde=BytesSerde()) or b"" for name in sorted(await ctx.state_keys())})

    def listed(self, *, more: int, scanned_at: datetime | None, scan_interval: timedelta) -> AlertList:
        """Return the alerts, newest first; unreadable ones are counted."""
        oldest = datetime.min.replace(tzinfo=UTC)
        newest = sorted(self.alerts.values(), key=lambda each: (each.since or oldest, each.id), reverse=True)
        return AlertList(
            open=[alert for alert in newest if alert.resolved_at is None],
            resolved=[alert for alert in newest if alert.resolved_at is not None],
            more=more + sum(name.startswith(_ALERT_PREFIX) for name in self.unreadable),
            scanned_at=scanned_at,
            scan_interval=scan_interval,
        )
