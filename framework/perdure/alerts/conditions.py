"""Conditions of invocations that need attention, and the notifications that a change of them causes. Pure.

People can read a few notifications about one service, not hundreds. If more than `MAX_SINGLE_ALERTS` invocations of a
service have the same condition, one group alert reports the rest, and again when their number has grown tenfold.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from pydantic import AwareDatetime, BaseModel, ConfigDict, computed_field

from perdure.alerts.causes import Cause, action_for, cause_of
from perdure.engine.admin import failure_message, sql_interval, sql_text
from perdure.engine.attempts import WAITING_SQL

MAX_SINGLE_ALERTS: Final = 5
"""Number of invocations per service and condition that have single alerts."""
MAX_LISTED: Final = 500
"""Number of invocations per service and condition that a snapshot lists; the rest is counted."""
MAX_POINT_READS: Final = 500
"""Number of rows that a query names, so that the engine reads them alone."""
FAILED: Final = "failed"
"""Condition of rows that are no alerts, see `stored_conditions_sql`."""
STUCK_RETRIES: Final = 2
"""Failed attempts after which lists and gauges show an invocation as stuck; notifications are sent later."""

HANGING_LIMIT: Final = timedelta(minutes=5)
"""Default time that an attempt may run without progress. Must exceed the engine's inactivity timeout (1 minute), after
which waiting handlers are suspended, and should not exceed its abort timeout (10 minutes later)."""

OVERDUE_KEY: Final = "overdue"
"""State entry of a workflow that continues past its deadline."""

_GROWTH: Final = 10
_MAX_REASON: Final = 500


class Condition(StrEnum):
    """Condition of an invocation that needs attention."""

    PAUSED = "paused"
    BACKING_OFF = "backing_off"
    HANGING = "hanging"
    """Its attempt has run for long without a failure or progress of the journal."""
    KILLED = "killed"
    RECONCILED = "reconciled"
    """Its saga or rollback was orphaned and the reconciler repaired it."""
    HELD_STEP = "held_step"
    """A step of it failed and waits for an operator."""
    HELD_STEP_DUE = "held_step_due"
    """More than half of the time until the deadline of its held step has passed."""
    OVERDUE = "overdue"
    """Its saga has passed its deadline and its pivot, and continues."""


class Alert(BaseModel):
    """Alert about one invocation, or a group alert about many.

    Args:
        id: ``{condition}/{invocation}``, or ``{condition}/many/{service}`` for a group.
        condition: The condition.
        invocation: The invocation; empty for a group.
        service: Its service.
        handler: Its handler.
        key: Its key; empty for a plain service.
        reason: The engine's failure message; for a group, that of the first invocation.
        error_code: The engine's code of the failure, for example ``RT0016``; may be empty.
        since: When the invocation last made progress; for a group and for `Condition.RECONCILED`, when it was detected;
            for a held step, the time of the last reminder.
        resolved_at: When the condition was gone; None while it lasts.
        count: Number of invocations.
        examples: IDs of some invocations of a group.
        is_single: Whether the invocation was notified individually, not as part of a group.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    condition: Condition
    invocation: str = ""
    service: str
    handler: str = ""
    key: str = ""
    reason: str = ""
    error_code: str = ""
    since: AwareDatetime | None = None
    resolved_at: AwareDatetime | None = None
    count: int = 1
    examples: list[str] = []
    is_single: bool = True

    @computed_field  # type: ignore[prop-decorator] # of pydantic
    @property
    def cause(self) -> Cause:
        """The cause as far as it is known."""
        return cause_of(is_hanging=self.condition is Condition.HANGING, error_code=self.error_code, reason=self.reason)

    @computed_field  # type: ignore[prop-decorator] # of pydantic
    @property
    def action(self) -> str:
        """What the operator has to do."""
        action = action_for(self.cause)
        is_removed = self.cause is Cause.DEPLOYMENT_REMOVED
        resumes = f"{action}." if is_removed else f"{action}. The invocation resumes automatically."
        decide = f"Retry or complete the step, or roll back: perdure held-steps list --service {self.service}"
        return {
            Condition.KILLED: "Check the rollback of its saga, if it has one.",
            Condition.RECONCILED: "Check the rollback of its saga, if it has one.",
            Condition.HELD_STEP: decide,
            Condition.HELD_STEP_DUE: decide,
            Condition.OVERDUE: f"Find out what the saga waits for: perdure sagas show {self.key or 'ID'}",
            Condition.HANGING: f"{action}. The engine then retries the invocation.",
            Condition.PAUSED: f"{action}, then run: perdure invocations resume {self.invocation or 'ID'}",
        }.get(self.condition, resumes)

    @classmethod
    def for_group(cls, alerts: Iterable[Alert], count: int, since: datetime) -> Alert:
        """Return the group alert of some alerts, at least one, of the same service and condition."""
        few = list(alerts)[:MAX_SINGLE_ALERTS]
        return Alert(
            id=group_id(few[0]),
            condition=few[0].condition,
            service=few[0].service,
            reason=few[0].reason,
            error_code=few[0].error_code,
            since=since,
            count=count,
            examples=[each.invocation for each in few],
        )


class AlertNotification(BaseModel):
    """Body of a webhook request.

    Args:
        event: ``alert.raised``, ``alert.resolved``, or ``reconciler.acted`` for a repair by the reconciler.
        alert: The alert.
    """

    event: str
    alert: Alert


class Snapshot(BaseModel):
    """Current conditions.

    Args:
        alerts: The oldest `MAX_LISTED` of each service and condition.
        more: Number of those beyond, by group ID.
    """

    alerts: list[Alert] = []
    more: dict[str, int] = {}

    def fingerprint(self) -> frozenset[str]:
        """Return a value that differs whenever the snapshot does."""
        return frozenset(each.id for each in self.alerts) | {f"{name}={count}" for name, count in self.more.items()}


def group_id(alert: Alert) -> str:
    """Return the ID of the group alert for the service and condition of an alert."""
    return f"{alert.condition}/many/{alert.service}"


def failing_sql(retries: int) -> str:
    """Return the condition that a row of ``sys_invocation`` fails repeatedly, that is, at least this often.

    An invocation is running during each attempt; it is not resolved until its last failure is cleared by progress. A
    paused one keeps its failure, and is a condition of its own.
    """
    return f"(status not in ('completed', 'paused') and retry_count >= {retries} and last_failure is not null)"


def hanging_sql(limit: timedelta) -> str:
    """Return the condition that the attempt of a row of ``sys_invocation`` neither fails nor progresses for this time.

    The engine suspends a handler that waits, so a running one executes code or hangs.
    """
    return (
        f"(status = 'running' and last_start_at < now() - {sql_interval(limit)} "
        f"and modified_at < now() - {sql_interval(limit)})"
    )


# Each row of a condition carries the number of rows and the age of the oldest invocation of its service and condition.
_RANKED: Final = f"""
  select * from (select *, count(*) over (partition by service, condition) as number,
    min(created_at) over (partition by service, condition) as oldest,
    row_number() over (partition by service, condition order by since, id) as place from found)
  where place <= {MAX_LISTED}"""

_COLUMNS: Final = """id, target_service_name as service, target_service_ty as type, target_handler_name as handler,
    target_service_key as key, invoked_by_service_name as caller, created_at, modified_at as since"""


def stored_conditions_sql(
    recent_kill: timedelta, recent_failure: timedelta | None = None, failing_services: Collection[str] = ()
) -> str:
    """Return the query for invocations that are paused or were killed. It reads the whole history, but one table of it.

    Args:
        recent_kill: How long a kill is a condition.
        recent_failure: Also return main handlers of workflows that failed within this time, as `FAILED`.
        failing_services: Services whose recent failures are returned, too.
    """
    killed = f"completion_failure = '[409] killed' and modified_at > now() - {sql_interval(recent_kill)}"
    failed = "false"
    if recent_failure is not None:
        named = ", ".join(map(sql_text, failing_services)) or "null"
        failed = (
            f"((target_service_ty = 'workflow' and target_handler_name = 'run') or target_service_name in ({named})) "
            f"and modified_at > now() - {sql_interval(recent_failure)}"
        )
    return f"""
  with found as (
    select {_COLUMNS}, substr(coalesce(completion_failure, ''), 1, {_MAX_REASON}) as reason, '' as error_code,
      case when status = 'paused' then 'paused' when {killed} then 'killed' else '{FAILED}' end as condition
    from sys_invocation_status where status = 'paused'
      or (status = 'completed' and completion_result = 'failure' and (({killed}) or ({failed}))))
  {_RANKED}"""


def attempts_sql(retries: int, hanging_limit: timedelta) -> str:
    """Return the query for IDs of invocations that may fail or hang. It reads what the engine has in memory.

    Args:
        retries: Number of failed attempts that is a condition.
        hanging_limit: How long an attempt may run without progress.
    """
    return (
        f"select id from (select id from sys_invocation_state where (retry_count >= {retries} "
        f"and last_failure is not null) or (in_flight and last_start_at < now() - {sql_interval(hanging_limit)}) "
        f"union all select id from ({WAITING_SQL}) where num_errors >= {retries}) limit {MAX_POINT_READS + 1}"
    )


def attempt_conditions_sql(retries: int, hanging_limit: timedelta, ids: Collection[str]) -> str:
    """Return the query for invocations that fail repeatedly or hang.

    Args:
        retries: Number of failed attempts that is a condition.
        hanging_limit: How long an attempt may run without progress.
        ids: The result of `attempts_sql`. The engine reads only these rows, or the whole history if they are too many.
    """
    these = f"id in ({', '.join(map(sql_text, ids))})" if len(ids) <= MAX_POINT_READS else "true"
    return f"""
  with waiting as ({WAITING_SQL}), found as (
    select {_COLUMNS}, substr(coalesce(last_failure, ''), 1, {_MAX_REASON}) as reason,
      coalesce(last_failure_error_code, '') as error_code,
      case when status = 'running' and not {failing_sql(retries)} then 'hanging' else 'backing_off' end as condition
    from sys_invocation where {these} and ({failing_sql(retries)} or {hanging_sql(hanging_limit)}
      or (status = 'ready' and id in (select id from waiting where num_errors >= {retries}))))
  {_RANKED}"""


def overdue_sql() -> str:
    """Return the query for workflows that are past their deadline. It reads only entries of open workflows."""
    return (
        f"select service_name as service, service_key as key from state where key = '{OVERDUE_KEY}' limit {MAX_LISTED}"
    )


def open_workflows_sql(keys: Iterable[str]) -> str:
    """Return the query for the main handlers with these keys that have not ended."""
    return (
        "select id, target_service_name as service, target_service_key as key from sys_invocation_status "
        "where target_service_ty = 'workflow' and target_handler_name = 'run' and status != 'completed' "
        f"and target_service_key in ({', '.join(map(sql_text, keys))})"
    )


def overdue_alert(row: Mapping[str, Any]) -> Alert:
    """Return the alert about a row of `open_workflows_sql`."""
    return Alert(
        id=f"{Condition.OVERDUE}/{row['id']}",
        condition=Condition.OVERDUE,
        invocation=row["id"],
        service=row["service"],
        handler="run",
        key=row["key"],
        reason="its deadline passed after its pivot",
    )


def snapshot_of(rows: Iterable[Mapping[str, Any]], *, excluded_service: str = "") -> Snapshot:
    """Return the snapshot that the rows of the queries for conditions describe.

    Args:
        rows: The rows.
        excluded_service: A service to ignore.
    """
    snapshot = Snapshot()
    for row in rows:
        if row["service"] == excluded_service or row["condition"] == FAILED:
            continue
        alert = Alert(
            id=f"{row['condition']}/{row['id']}",
            condition=Condition(row["condition"]),
            invocation=row["id"],
            service=row["service"],
            handler=row.get("handler") or "",
            key=row.get("key") or "",  # the engine omits null columns
            reason=_first_line(row.get("reason")),
            error_code=row.get("error_code") or "",
            since=row.get("since"),
        )
        snapshot.alerts.append(alert)
        if row["number"] > MAX_LISTED:
            snapshot.more[group_id(alert)] = row["number"] - MAX_LISTED
    return snapshot


@dataclass(frozen=True)
class PauseFailure:
    """The failure that paused an invocation; empty for a manual pause.

    Args:
        reason: The failure message.
        error_code: The engine's code of the failure.
    """

    reason: str = ""
    error_code: str = ""


def pause_failure(event: str) -> PauseFailure:
    """Return the failure in a ``Paused`` journal event (JSON)."""
    content = json.loads(event)
    failure = content.get("Paused", content).get("last_failure") or {}
    command = failure.get("related_command_name")
    reason = _first_line(failure_message(failure.get("error_message")))
    reason = f"{reason} (in {command})" if reason and command else reason
    return PauseFailure(reason, failure.get("restate_doc_error_code") or "")


def _first_line(text: object) -> str:
    return str(text or "").partition("\n")[0][:_MAX_REASON]


@dataclass(frozen=True)
class AlertChanges:
    """Changes between the stored alerts and a snapshot.

    Args:
        notifications: What to send, in this order.
        alerts: Alerts about single invocations to store.
        groups: Group alerts to store, by ID; None to delete one.
    """

    notifications: list[AlertNotification] = field(default_factory=list)
    alerts: list[Alert] = field(default_factory=list)
    groups: dict[str, Alert | None] = field(default_factory=dict)

    def raise_alert(self, alert: Alert) -> None:
        """Notify of a new alert."""
        self.notifications.append(AlertNotification(event="alert.raised", alert=alert))

    def resolve(self, alert: Alert, now: datetime) -> None:
        """Notify of the end of an alert."""
        resolved = alert.model_copy(update={"resolved_at": now})
        self.notifications.append(AlertNotification(event="alert.resolved", alert=resolved))


def compare(known: Mapping[str, Alert], groups: Mapping[str, Alert], snapshot: Snapshot, now: datetime) -> AlertChanges:
    """Return the changes between the stored alerts and a snapshot.

    Args:
        known: Stored alerts about single invocations by ID, including resolved ones.
        groups: Open group alerts by ID.
        snapshot: The current conditions.
        now: The time.
    """
    changes = AlertChanges()
    current: defaultdict[str, list[Alert]] = defaultdict(list)
    for each in sorted(snapshot.alerts, key=lambda alert: alert.id):
        current[group_id(each)].append(each)
    for group, alerts in current.items():
        _compare_group(changes, known, groups.get(group), alerts, more=snapshot.more.get(group, 0), now=now)
    for group, alert in groups.items():
        if group not in current:
            _resolve_group(changes, alert, now)
    current_ids = {each.id for each in snapshot.alerts}
    for alert in known.values():
        if alert.resolved_at is None and alert.id not in current_ids:
            changes.alerts.append(alert.model_copy(update={"resolved_at": now}))
            if alert.is_single:
                changes.resolve(alert, now)
    return changes


def _compare_group(
    changes: AlertChanges,
    known: Mapping[str, Alert],
    group: Alert | None,
    alerts: list[Alert],
    *,
    more: int,
    now: datetime,
) -> None:
    """Compare the alerts of one service and condition."""
    before = {each.id: known[each.id] for each in alerts if each.id in known and _continues(each, known[each.id])}
    singles = sum(each.is_single for each in before.values())
    count = len(alerts) + more
    is_few = group is None and count <= MAX_SINGLE_ALERTS
    for each in alerts:
        if each.id not in before:
            _add(changes, each, known.get(each.id), is_single=is_few, now=now)
    grouped = count - singles
    if not is_few and grouped > 0 and (group is None or grouped >= group.count * _GROWTH):
        rest = [each for each in alerts if each.id not in before or not before[each.id].is_single]
        since = now if group is None or group.since is None else group.since
        alert = Alert.for_group(rest or alerts, grouped, since)
        changes.groups[alert.id] = alert
        changes.raise_alert(alert)
    if group is not None and grouped == 0:
        _resolve_group(changes, group, now)


def _add(changes: AlertChanges, new: Alert, before: Alert | None, *, is_single: bool, now: datetime) -> None:
    alert = new.model_copy(update={"is_single": is_single, "since": _since(new, before, now)})
    changes.alerts.append(alert)
    if is_single:
        changes.raise_alert(alert)
    elif before is not None and before.resolved_at is None and before.is_single:
        changes.resolve(before, now)  # killed again, and now part of a group


def _continues(alert: Alert, before: Alert) -> bool:
    """Return whether a condition lasts and needs no other alert.

    A reused workflow key can be killed again under the same ID, and a held step may have a reminder.
    """
    is_repeated = alert.condition in (Condition.KILLED, Condition.HELD_STEP)
    is_later = alert.since is not None and before.since is not None and alert.since > before.since
    return before.resolved_at is None and not (is_repeated and is_later)


def _since(alert: Alert, before: Alert | None, now: datetime) -> datetime:
    """Return the start of a condition; one that was resolved has started anew, even without progress in between."""
    ended = None if before is None else before.resolved_at
    return now if alert.since is None or (ended is not None and alert.since <= ended) else alert.since


def _resolve_group(changes: AlertChanges, alert: Alert, now: datetime) -> None:
    changes.groups[alert.id] = None
    changes.resolve(alert, now)
