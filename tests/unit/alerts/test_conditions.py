"""Changes of conditions: each is notified once, and so is its end, with a limit per service."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from perdure.alerts.conditions import (
    MAX_LISTED,
    MAX_SINGLE_ALERTS,
    Alert,
    AlertNotification,
    Condition,
    Snapshot,
    compare,
    group_id,
)

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def alert(condition: Condition, service: str, number: int, minute: int = 0) -> Alert:
    invocation = f"inv_{service}{number:04}"
    since = BEGIN + timedelta(minutes=minute)
    return Alert(
        id=f"{condition}/{invocation}", condition=condition, invocation=invocation, service=service, since=since
    )


def paused(*numbers: int, more: int = 0) -> Snapshot:
    alerts = [alert(Condition.PAUSED, "Trips", number) for number in numbers]
    return Snapshot(alerts=alerts, more={group_id(alerts[0]): more} if more else {})


class Observer:
    """Stores alerts as `Alerts` does, and tracks what a receiver of the notifications knows."""

    def __init__(self) -> None:
        self.now = BEGIN
        self.known: dict[str, Alert] = {}
        self.groups: dict[str, Alert] = {}
        self.received: dict[str, Alert] = {}

    def scan(self, snapshot: Snapshot) -> list[AlertNotification]:
        self.now += timedelta(minutes=1)
        changes = compare(self.known, self.groups, snapshot, self.now)
        self.known |= {each.id: each for each in changes.alerts}
        for name, each in changes.groups.items():
            if each is None:
                del self.groups[name]
            else:
                self.groups[name] = each
        for notification in changes.notifications:
            if notification.event == "alert.resolved":
                assert notification.alert.resolved_at == self.now
                del self.received[notification.alert.id]
            else:
                assert notification.alert.resolved_at is None
                before = self.received.get(notification.alert.id)
                # No alert is raised twice, except for another kill under a reused workflow key.
                killed_again = (
                    before is not None and before.since is not None and notification.alert.since != before.since
                )
                assert before is None or notification.alert.count >= 10 * before.count or killed_again
                self.received[notification.alert.id] = notification.alert
        return changes.notifications

    def open(self) -> set[str]:
        return {name for name, each in self.known.items() if each.resolved_at is None}


alerts = st.builds(
    alert,
    st.sampled_from([Condition.PAUSED, Condition.KILLED, Condition.HELD_STEP]),
    st.sampled_from(["Trips", "Hotels"]),
    st.integers(0, 12),
    st.integers(0, 3),
)
snapshots = st.builds(
    lambda alerts, more: Snapshot(alerts=alerts, more={group_id(alerts[0]): more} if alerts and more else {}),
    st.lists(alerts, unique_by=lambda each: each.id, max_size=30),
    st.sampled_from([0, 0, 0, 1, 100]),
)


@given(st.lists(snapshots, max_size=8))
def test_each_condition_is_notified_once(found):
    observer = Observer()
    for snapshot in found:
        notifications = observer.scan(snapshot)
        groups = {group_id(each) for each in snapshot.alerts}
        for group in groups:
            raised = [each for each in notifications if each.event == "alert.raised" and group_id(each.alert) == group]
            assert len(raised) <= MAX_SINGLE_ALERTS
        # Each condition is stored, and notified by itself or in a group.
        assert observer.open() == {each.id for each in snapshot.alerts}
        assert all(each.id in observer.received or group_id(each) in observer.received for each in snapshot.alerts)
        assert set(observer.groups) <= groups
        # The receiver knows no resolved condition.
        assert set(observer.received) <= {each.id for each in snapshot.alerts} | groups
        assert observer.scan(snapshot) == []
    observer.scan(Snapshot())
    assert not observer.received
    assert not observer.groups
    assert not observer.open()


def test_group_alert_beyond_single_alerts():
    observer = Observer()
    assert [notification.alert.count for notification in observer.scan(paused(*range(MAX_SINGLE_ALERTS)))] == [
        1
    ] * MAX_SINGLE_ALERTS
    (notification,) = observer.scan(paused(*range(300)))
    assert notification.event == "alert.raised"
    assert (notification.alert.id, notification.alert.count) == ("paused/many/Trips", 300 - MAX_SINGLE_ALERTS)
    assert notification.alert.examples == [
        f"inv_Trips{number:04}" for number in range(MAX_SINGLE_ALERTS, 2 * MAX_SINGLE_ALERTS)
    ]
    assert observer.scan(paused(*range(200))) == []
    assert observer.scan(paused(*range(400))) == []
    assert [(each.event, each.alert.id) for each in observer.scan(paused(1, 7))] == [
        ("alert.resolved", f"paused/inv_Trips{number:04}") for number in (0, 2, 3, 4)
    ]
    assert [(each.event, each.alert.id) for each in observer.scan(paused(1))] == [
        ("alert.resolved", "paused/many/Trips")
    ]
    assert [(each.event, each.alert.id) for each in observer.scan(paused(1, 7))] == [
        ("alert.raised", "paused/inv_Trips0007")
    ]


def test_repeat_group_alert_after_tenfold_growth():
    observer = Observer()
    first = observer.scan(paused(*range(MAX_SINGLE_ALERTS + 1)))
    assert [notification.alert.count for notification in first] == [MAX_SINGLE_ALERTS + 1]
    assert observer.scan(paused(*range(50))) == []
    (again,) = observer.scan(paused(*range(MAX_LISTED), more=100))
    assert (again.alert.id, again.alert.count) == (first[0].alert.id, MAX_LISTED + 100)
    assert again.alert.since == first[0].alert.since


def test_raise_alert_again_after_resolution():
    observer = Observer()
    (first,) = observer.scan(paused(1))
    assert first.alert.since == BEGIN
    observer.scan(paused(2))
    (again,) = (notification for notification in observer.scan(paused(1, 2)) if notification.event == "alert.raised")
    assert again.alert.since == observer.now


def test_raise_alert_for_repeated_kill():
    killed = alert(Condition.KILLED, "Trips", 1)
    again = killed.model_copy(update={"since": BEGIN + timedelta(minutes=5)})
    known = {killed.id: killed}
    assert compare(known, {}, Snapshot(alerts=[killed]), BEGIN).notifications == []
    (notification,) = compare(known, {}, Snapshot(alerts=[again]), BEGIN).notifications
    assert (notification.event, notification.alert.since) == ("alert.raised", again.since)


def test_resolve_single_alert_that_joins_group():
    observer = Observer()
    observer.scan(Snapshot(alerts=[alert(Condition.KILLED, "Trips", 0)]))
    notifications = observer.scan(
        Snapshot(alerts=[alert(Condition.KILLED, "Trips", number, minute=1) for number in range(MAX_SINGLE_ALERTS + 1)])
    )
    assert [(each.event, each.alert.id, each.alert.count) for each in notifications] == [
        ("alert.resolved", "killed/inv_Trips0000", 1),
        ("alert.raised", "killed/many/Trips", MAX_SINGLE_ALERTS + 1),
    ]
    assert [each.alert.id for each in observer.scan(Snapshot())] == ["killed/many/Trips"]
