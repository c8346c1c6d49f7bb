"""Queries for the overview and alerts. A failed query is reported in the result, not raised."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

from perdure.alerts.conditions import Alert, Condition
from perdure.alerts.service import AlertList
from perdure.engine.admin import failure_message, sql_text
from perdure.saga.messages import DeadLetterListRequest
from services.console.approvals import service as approvals
from services.console.auth.sessions import Session
from services.console.dead_letters import service as dead_letters
from services.console.engine import EngineClient
from services.console.health.schemas import AlertGroup, AlertsView, AlertView, Overview
from services.console.invocations import service as invocations
from services.console.problems import ConsoleError
from services.console.sagas import service as sagas
from services.console.services import service as services

T = TypeVar("T")

MAX_ALERTS: Final = 100
_OVERVIEW_ITEMS: Final = 5
_RUNBOOKS: Final = {
    Condition.PAUSED: "invocations-paused",
    Condition.BACKING_OFF: "invocations-backing-off",
    Condition.HANGING: "invocations-hanging",
    Condition.KILLED: "saga-stuck",
    Condition.RECONCILED: "saga-stuck",
    Condition.HELD_STEP: "held-steps",
    Condition.HELD_STEP_DUE: "held-steps",
    Condition.OVERDUE: "saga-overdue",
}


async def read_alerts(engine: EngineClient, now: datetime) -> AlertsView:
    """Return open and recent alerts."""
    problems: list[str] = []
    reported, read_error = AlertList(open=[], resolved=[]), None
    try:
        reported = await engine.alerts()
    except ConsoleError as error:
        read_error = error.message
        problems.append(read_error)
    # Unreadable data does not mean that the reconciler is down.
    is_current = reported.is_current(now) if read_error is None else None
    alerts: Sequence[Alert] | None = reported.open
    unlisted = reported.more
    if not is_current:
        try:
            snapshot = await engine.scan_alerts()
            alerts = sorted(snapshot.alerts, key=lambda alert: alert.since or now, reverse=True)
            unlisted = sum(snapshot.more.values())
        except ConsoleError as error:
            alerts = None
            if error.message not in problems:
                problems.append(error.message)
    views: list[AlertView] | None = None
    if alerts is not None:
        try:
            views = await _with_details(engine, alerts[:MAX_ALERTS])
        except ConsoleError as error:
            views = [_view(alert) for alert in alerts[:MAX_ALERTS]]
            problems.append(error.message)
    recent = sorted(reported.resolved, key=lambda alert: alert.resolved_at or now, reverse=True)
    return AlertsView(
        open=views,
        total=None if alerts is None else len(alerts) + unlisted,
        groups=[] if alerts is None else _groups(alerts),
        recent=[_view(alert) for alert in recent[:MAX_ALERTS]],
        last_scan=reported.scanned_at,
        is_current=is_current,
        read_error=read_error,
        problems=problems,
    )


def _groups(alerts: Sequence[Alert]) -> list[AlertGroup]:
    counts = Counter((alert.condition, alert.service, alert.handler) for alert in alerts)
    return [
        AlertGroup(condition=condition, service=service, handler=handler, count=count)
        for (condition, service, handler), count in counts.most_common()
    ]


async def _with_details(engine: EngineClient, alerts: Sequence[Alert]) -> list[AlertView]:
    """Add the data that changes with each attempt, which the stored alerts do not contain."""
    if not alerts:
        return []
    ids = [alert.invocation for alert in alerts]
    paused = [alert.invocation for alert in alerts if alert.condition is Condition.PAUSED]
    rows, reasons = await asyncio.gather(
        engine.query(
            "select id, target_service_ty as type, retry_count, next_retry_at, last_failure "
            f"from sys_invocation where id in ({', '.join(map(sql_text, ids))})"
        ),
        invocations.pause_reasons(engine, paused),
    )
    by_id = {row["id"]: row for row in rows}
    return [_view(alert, by_id.get(alert.invocation), reasons.get(alert.invocation)) for alert in alerts]


def _view(alert: Alert, row: dict[str, Any] | None = None, pause_reason: str | None = None) -> AlertView:
    row = row or {}
    reason = pause_reason or failure_message(row.get("last_failure")) or failure_message(alert.reason) or ""
    known = alert.model_dump(include={"id", "condition", "invocation", "service", "handler", "key", "since"})
    return AlertView(
        **known,
        reason=reason,
        ended_at=alert.resolved_at,
        attempts=row.get("retry_count"),
        next_retry_at=row.get("next_retry_at"),
        is_saga=row.get("type") == "workflow" and alert.handler == "run",
        runbook=f"{_RUNBOOKS[alert.condition]}.md",
    )


async def read_overview(engine: EngineClient, session: Session, now: datetime) -> Overview:
    """Return the state of the platform."""
    overview = Overview()
    open_approvals, inbox, letters, phases, stuck, deployments = await asyncio.gather(
        _attempt(approvals.count_open(engine), overview),
        _attempt(approvals.inbox(engine, session), overview),
        _attempt(dead_letters.list_page(engine, DeadLetterListRequest(page_size=_OVERVIEW_ITEMS)), overview),
        _attempt(sagas.count_open(engine), overview),
        _attempt(invocations.list_stuck(engine), overview),
        _attempt(services.list_deployments(engine), overview),
    )
    overview.open_approvals = open_approvals
    if inbox is not None:
        overview.my_approvals, overview.inbox = inbox.total, inbox.items[:_OVERVIEW_ITEMS]
    if letters is not None:
        overview.dead_letters, overview.letters = letters.total, letters.items
        overview.oldest_dead_letter = letters.items[0].since if letters.items else None
    overview.sagas = phases
    if stuck is not None:
        overview.paused = sum(one.status == "paused" for one in stuck)
        overview.backing_off = len(stuck) - overview.paused
        ages = [int((now - one.created_at).total_seconds()) for one in stuck]
        # Whole seconds, since durations in OpenAPI (RFC 3339) have no fractions.
        overview.oldest_stuck = timedelta(seconds=max(ages)) if ages else None
    if deployments is not None:
        overview.deployments = len(deployments)
        overview.healthy = sum(one.healthy for one in deployments)
    return overview


async def _attempt(query: Awaitable[T], overview: Overview) -> T | None:
    try:
        return await query
    except ConsoleError as error:
        if error.message not in overview.problems:
            overview.problems.append(error.message)
        return None
