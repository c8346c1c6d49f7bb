"""Alerts and gauges of held steps. They follow from names in the index, so they read no payload and need no key."""

from __future__ import annotations

from collections import Counter, defaultdict
from datetime import UTC, datetime

from perdure.alerts.conditions import MAX_LISTED, Alert, Condition, Snapshot, group_id
from perdure.engine.admin import AdminClient
from perdure.observability.gauge_collector import Sample
from perdure.observability.metrics import HELD_STEPS, HELD_STEPS_DUE
from perdure.saga.held_step_names import HeldStepName
from perdure.saga.schema import HELD_STEPS_SQL


async def read_held_step_names(admin: AdminClient) -> list[HeldStepName]:
    """Return the names of all held steps, oldest first.

    Raises:
        EngineError: The engine does not answer, or refuses the query.
    """
    rows = await admin.query(HELD_STEPS_SQL)
    return [name for row in sorted(row["key"] for row in rows) if (name := HeldStepName.parse(row)) is not None]


async def held_step_alerts(admin: AdminClient) -> Snapshot:
    """Return the alerts of held steps; one that is due has a second alert.

    Raises:
        EngineError: The engine does not answer, or refuses the query.
    """
    return snapshot_of_held_steps(await read_held_step_names(admin), datetime.now(UTC))


def snapshot_of_held_steps(names: list[HeldStepName], now: datetime) -> Snapshot:
    """Return the alerts of held steps, see `held_step_alerts`."""
    alerts: defaultdict[str, list[Alert]] = defaultdict(list)
    for name in names:
        for condition in (Condition.HELD_STEP, Condition.HELD_STEP_DUE)[: 1 + name.is_due(now)]:
            alert = _alert(name, condition, now)
            alerts[group_id(alert)].append(alert)
    return Snapshot(
        alerts=[alert for group in alerts.values() for alert in group[:MAX_LISTED]],
        more={group: len(found) - MAX_LISTED for group, found in alerts.items() if len(found) > MAX_LISTED},
    )


def _alert(name: HeldStepName, condition: Condition, now: datetime) -> Alert:
    is_due = condition is Condition.HELD_STEP_DUE
    saga_id, _, position = name.id.rpartition("/")
    return Alert(
        id=f"{condition}/{name.id}",
        condition=condition,
        invocation=name.invocation,
        service=name.service,
        handler="run",
        key=saga_id.removeprefix(f"{name.service}:"),
        reason=f"step {position} is held until {name.until:%Y-%m-%d %H:%M:%S} UTC",
        since=name.since + (name.until - name.since) / 2 if is_due else name.last_reminder(now),
    )


async def sample_held_steps(admin: AdminClient, now: datetime) -> list[Sample]:
    """Return samples of the gauges.

    Raises:
        EngineError: The engine does not answer, or refuses the query.
    """
    names = await read_held_step_names(admin)
    open_ = Counter(name.service for name in names)
    due = Counter(name.service for name in names if name.is_due(now))
    return [
        sample
        for service, number in open_.items()
        for sample in (
            (HELD_STEPS, number, {"service": service}),
            (HELD_STEPS_DUE, due[service], {"service": service}),
        )
    ]
