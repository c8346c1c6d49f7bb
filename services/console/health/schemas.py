"""Messages of the overview and alerts API."""

from __future__ import annotations

from datetime import datetime, timedelta

from pydantic import BaseModel

from perdure.alerts.conditions import Condition
from perdure.approvals.messages import InboxItem
from perdure.saga.messages import DeadLetter


class AlertView(BaseModel):
    """An alert, with the engine's data on its invocation.

    Args:
        id: The alert.
        condition: The condition.
        invocation: The ID of the invocation.
        service: Its service.
        handler: Its handler.
        key: Its key; empty for a plain service.
        reason: The last error.
        since: The start of the condition.
        ended_at: The end of the condition; None while it lasts.
        attempts: The number of attempts.
        next_retry_at: When it is retried.
        is_saga: Whether it is an orchestrator, which has a page among the sagas.
        runbook: The page of docs/how-to/runbooks.
    """

    id: str
    condition: Condition
    invocation: str
    service: str
    handler: str = ""
    key: str = ""
    reason: str = ""
    since: datetime | None = None
    ended_at: datetime | None = None
    attempts: int | None = None
    next_retry_at: datetime | None = None
    is_saga: bool = False
    runbook: str

    @property
    def target(self) -> str:
        """Service, key and handler."""
        return "/".join(part for part in (self.service, self.key, self.handler) if part)


class AlertGroup(BaseModel):
    """The number of open alerts with the same condition and handler."""

    condition: Condition
    service: str
    handler: str
    count: int


class AlertsView(BaseModel):
    """Open and recent alerts.

    Args:
        open: Open alerts, newest first, at most 100; None when they are unknown.
        total: The number of affected invocations.
        groups: The open alerts by condition and handler, most frequent first.
        recent: Alerts that ended within the last day, newest first, at most 100.
        last_scan: The reconciler's last recorded scan.
        is_current: Whether the reconciler scans as often as it should; None when its data cannot be read. Unless true,
            no notifications may be sent, and `open` comes from the console's own scan.
        read_error: Why the reconciler's data cannot be read.
        problems: What else could not be read.
    """

    open: list[AlertView] | None
    total: int | None
    groups: list[AlertGroup]
    recent: list[AlertView]
    last_scan: datetime | None
    is_current: bool | None
    read_error: str | None = None
    problems: list[str] = []


class Overview(BaseModel):
    """The state of the platform. A value that could not be read is None, with the cause in `problems`.

    Args:
        open_approvals: The number of open approvals.
        my_approvals: The number of open approvals for the user.
        dead_letters: The number of dead letters.
        oldest_dead_letter: The start of the oldest dead letter.
        inbox: The most urgent approvals for the user.
        letters: The oldest dead letters.
        sagas: The number of open sagas by phase.
        paused: The number of paused invocations.
        backing_off: The number of repeatedly failing invocations.
        oldest_stuck: The age of the oldest of both.
        deployments: The number of deployments.
        healthy: The number of deployments that respond.
        problems: What could not be read, and why.
    """

    open_approvals: int | None = None
    my_approvals: int | None = None
    dead_letters: int | None = None
    oldest_dead_letter: datetime | None = None
    inbox: list[InboxItem] = []
    letters: list[DeadLetter] = []
    sagas: dict[str, int] | None = None
    paused: int | None = None
    backing_off: int | None = None
    oldest_stuck: timedelta | None = None
    deployments: int | None = None
    healthy: int | None = None
    problems: list[str] = []
