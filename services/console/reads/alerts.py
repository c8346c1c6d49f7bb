"""Alerts: which invocations are in trouble, which were, and whether anybody looks."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from pydantic import BaseModel

from perdure.alerts.conditions import Alert, Condition
from perdure.alerts.service import AlertList
from perdure.engine.admin import failure_message, sql_text
from services.console.engine import Engine
from services.console.problems import ConsoleError
from services.console.reads import invocations

MOST: Final = 100
_SHOWN: Final = {"id", "invocation", "service", "handler", "key", "since"}
_RUNBOOKS: Final = {
    Condition.PAUSED: "invocations-paused",
    Condition.BACKING_OFF: "invocations-backing-off",
    Condition.KILLED: "saga-stuck",
    Condition.RECONCILED: "saga-stuck",
}


class AlertView(BaseModel):
    """An alert, with what the engine knows of its invocation.

    Args:
        id: The alert.
        trouble: What is wrong.
        invocation: The invocation.
        service: Its service.
        handler: Its handler.
        key: Its key; empty for a plain service.
        reason: Why it failed last.
        since: Since when.
        over: When it was seen no more; None as long as it lasts.
        tried: How often it was tried.
        next_try_at: When it is tried again.
        is_saga: Whether it is an orchestration, which has a page of its own among the sagas.
        runbook: The page of docs/how-to/runbooks that says what to do.
    """

    id: str
    trouble: Condition
    invocation: str
    service: str
    handler: str = ""
    key: str = ""
    reason: str = ""
    since: datetime | None = None
    over: datetime | None = None
    tried: int | None = None
    next_try_at: datetime | None = None
    is_saga: bool = False
    runbook: str

    @property
    def target(self) -> str:
        """What is in trouble: service, key and handler."""
        return "/".join(part for part in (self.service, self.key, self.handler) if part)


class SameTrouble(BaseModel):
    """How many alerts of one kind and one handler are open.

    Args:
        trouble: What is wrong.
        service: The service.
        handler: The handler.
        count: How many.
    """

    trouble: Condition
    service: str
    handler: str
    count: int


class AlertsView(BaseModel):
    """What is wrong, and what was.

    Args:
        open: What is wrong now, the newest first, at most 100; None when nobody knows.
        total: How many invocations are in trouble.
        same: How many of which kind, the most frequent first, as far as they are known one by one.
        over: What is over, of the last day; the newest first, at most 100.
        looked: When the reconciler last said that it looks; it does so once a minute at least.
        is_watched: Whether it looks as often as it should. If not, nobody is told of trouble, and `open` is the
            engine's own word. None when that could not be read: then it may look, and `open` is the engine's word too.
        unread: Why what the reconciler found could not be read; None when it could.
        problems: What could not be found out, and why.
    """

    open: list[AlertView] | None
    total: int | None
    same: list[SameTrouble]
    over: list[AlertView]
    looked: datetime | None
    is_watched: bool | None
    unread: str | None = None
    problems: list[str] = []


async def read(engine: Engine, now: datetime) -> AlertsView:
    """Return what is wrong, and what was; what does not answer is left out and said.

    Args:
        engine: The engine.
        now: The time.
    """
    problems: list[str] = []
    told, unread = AlertList(open=[], resolved=[]), None
    try:
        told = await engine.alerts()
    except ConsoleError as error:
        unread = error.message
        problems.append(unread)
    # What can't be read is no sign that nobody looks.
    is_watched = told.is_current(now) if unread is None else None
    wrong: Sequence[Alert] | None = told.open
    more = told.more
    if not is_watched:  # nobody looks, or nobody knows, so the console does
        try:
            found = await engine.survey()
            wrong = sorted(found.alerts, key=lambda one: one.since or now, reverse=True)
            more = sum(found.more.values())
        except ConsoleError as error:
            wrong = None
            if error.message not in problems:
                problems.append(error.message)
    shown: list[AlertView] | None = None
    if wrong is not None:
        try:
            shown = await _with_details(engine, wrong[:MOST])
        except ConsoleError as error:
            shown = [_view(alert) for alert in wrong[:MOST]]
            problems.append(error.message)
    return AlertsView(
        open=shown,
        total=None if wrong is None else len(wrong) + more,
        same=[] if wrong is None else _same(wrong),
        over=[
            _view(alert) for alert in sorted(told.resolved, key=lambda one: one.resolved_at or now, reverse=True)[:MOST]
        ],
        looked=told.scanned_at,
        is_watched=is_watched,
        unread=unread,
        problems=problems,
    )


def _same(alerts: Sequence[Alert]) -> list[SameTrouble]:
    counts = Counter((alert.condition, alert.service, alert.handler) for alert in alerts)
    return [
        SameTrouble(trouble=trouble, service=service, handler=handler, count=count)
        for (trouble, service, handler), count in counts.most_common()
    ]


async def _with_details(engine: Engine, alerts: Sequence[Alert]) -> list[AlertView]:
    """Add what changes from try to try, for which nobody is told anew."""
    if not alerts:
        return []
    ids = [alert.invocation for alert in alerts]
    paused = [alert.invocation for alert in alerts if alert.condition is Condition.PAUSED]
    rows, why = await asyncio.gather(
        engine.query(
            "select id, target_service_ty as type, retry_count, next_retry_at, last_failure "
            f"from sys_invocation where id in ({', '.join(map(sql_text, ids))})"
        ),
        invocations.why_paused(engine, paused),
    )
    known = {row["id"]: row for row in rows}
    return [_view(alert, known.get(alert.invocation), why.get(alert.invocation)) for alert in alerts]


def _view(alert: Alert, row: dict[str, Any] | None = None, why: str | None = None) -> AlertView:
    details: dict[str, Any] = {}
    if row is not None:
        details = {
            "tried": row.get("retry_count"),
            "next_try_at": row.get("next_retry_at"),
            "is_saga": row.get("type") == "workflow" and alert.handler == "run",
        }
    reason = (
        why or failure_message(None if row is None else row.get("last_failure")) or failure_message(alert.reason) or ""
    )
    return AlertView(
        **alert.model_dump(include=_SHOWN),
        **details,
        trouble=alert.condition,
        over=alert.resolved_at,
        reason=reason,
        runbook=f"{_RUNBOOKS[alert.condition]}.md",
    )
