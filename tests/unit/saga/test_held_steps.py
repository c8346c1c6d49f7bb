"""Names of held steps, and the alerts that follow from them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from perdure.alerts.conditions import MAX_LISTED, compare
from perdure.saga.held_step_messages import HeldStep, HeldStepFilter
from perdure.saga.held_step_monitoring import snapshot_of_held_steps
from perdure.saga.held_step_names import HeldStepName

BEGIN = datetime(2026, 12, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def held(number: int = 1, **changes: object) -> HeldStep:
    fields = {
        "id": f"Trips:trip-{number}/2",
        "saga_id": f"Trips:trip-{number}",
        "service": "Trips",
        "invocation": f"inv_{number}",
        "step": "hotel",
        "position": 2,
        "action": "Hotels/reserve",
        "error": "no room",
        "signature": "no room",
        "status_code": 503,
        "attempts": 1,
        "held": 1,
        "since": BEGIN,
        "until": BEGIN + 4 * HOUR,
    }
    return HeldStep.model_validate({**fields, **changes})


def name(number: int = 1, **changes: object) -> HeldStepName:
    return HeldStepName.of(held(number, **changes))


times = st.integers(0, 2**40).map(lambda number: BEGIN + timedelta(milliseconds=number))
steps = st.builds(
    lambda saga, since, limit, remind: held(
        saga_id=saga, id=f"{saga}/2", since=since, until=since + limit, remind_every=remind
    ),
    saga=st.text(st.characters(categories=("L", "N", "P"), include_characters="/:@"), min_size=1, max_size=40),
    since=times,
    limit=st.integers(1, 2**32).map(lambda number: timedelta(milliseconds=number)),
    remind=st.none() | st.integers(1, 2**32).map(lambda number: timedelta(milliseconds=number)),
)


@given(steps)
def test_name_is_read_back(step):
    named = HeldStepName.of(step)
    assert HeldStepName.parse(str(named)) == named
    assert named.matches(HeldStepFilter(saga_id=step.saga_id, service="Trips", step="hotel", signature="no room"))
    for other in ({"saga_id": step.saga_id + "x"}, {"service": "Trip"}, {"step": "Hotel"}, {"signature": "no"}):
        assert not named.matches(HeldStepFilter(**other))


@given(steps, steps)
def test_names_sort_by_age(one, other):
    names = sorted([str(HeldStepName.of(one)), str(HeldStepName.of(other))])
    assert [HeldStepName.parse(text).since for text in names] == sorted([one.since, other.since])


def test_other_state_keys_have_no_name():
    assert HeldStepName.parse("held/x/2/0/a/b/Trips/inv/1") is None
    assert HeldStepName.parse("held/1") is None
    assert HeldStepName.parse(str(name()).removeprefix("held/")) is None


@given(st.integers(0, 300), st.integers(1, 90))
def test_reminders_repeat_alert_once_per_interval(minutes, interval):
    hold = name(remind_every=timedelta(minutes=interval))
    known, raised = {}, 0
    for minute in range(minutes + 1):
        now = BEGIN + timedelta(minutes=minute)
        changes = compare(known, {}, snapshot_of_held_steps([hold], now), now)
        raised += sum(
            each.event == "alert.raised" and each.alert.condition == "held_step" for each in changes.notifications
        )
        known.update({alert.id: alert for alert in changes.alerts})
    assert raised == 1 + minutes // interval


def test_alert_beyond_half_of_time():
    snapshot = snapshot_of_held_steps([name()], BEGIN + 2 * HOUR)
    assert [alert.id for alert in snapshot.alerts] == ["held_step/Trips:trip-1/2"]
    snapshot = snapshot_of_held_steps([name()], BEGIN + 3 * HOUR)
    (alert, due) = snapshot.alerts
    assert due.id == "held_step_due/Trips:trip-1/2"
    assert (alert.key, alert.service) == ("trip-1", "Trips")
    assert alert.action == "Retry or complete the step, or roll back: perdure held-steps list --service Trips"


def test_many_held_steps_are_counted():
    snapshot = snapshot_of_held_steps([name(number) for number in range(MAX_LISTED + 7)], BEGIN)
    assert (len(snapshot.alerts), snapshot.more) == (MAX_LISTED, {"held_step/many/Trips": 7})
