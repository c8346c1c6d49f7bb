"""Hooks, events and invocation trackers, without an engine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure import ObservabilityHooks
from perdure._runtime.sdk import HandlerInfo
from perdure.errors import ConfigurationError, TerminalError
from perdure.observability import events, hooks, lifecycle
from perdure.observability.events import Failed, Invocation, InvocationStarted, StateRead, WorkflowStarted
from perdure.observability.hooks import add_hooks, default_hooks, remove_hooks
from perdure.observability.lifecycle import InvocationTracker, RecentMap

ORDER = Invocation("inv_1", HandlerInfo("Orders", "run", "workflow"), "o1")


@contextmanager
def added(*sets: ObservabilityHooks) -> Iterator[None]:
    for each in sets:
        add_hooks(each)
    try:
        yield
    finally:
        for each in sets:
            remove_hooks(each)


def test_twelve_hooks_of_the_original():
    names = {each.name for each in fields(ObservabilityHooks)}
    assert names == {
        "on_invocation_start",
        "on_invocation_end",
        "on_state_get",
        "on_state_set",
        "on_state_clear",
        "on_saga_start",
        "on_saga_step_added",
        "on_compensation_start",
        "on_compensation_end",
        "on_workflow_start",
        "on_workflow_end",
        "on_error",
    }
    assert set(hooks._EVENT_OF) == names
    assert len(set(hooks._EVENT_OF.values())) == len(names)


def test_hook_sets_run_in_order_and_are_removable():
    called: list[str] = []
    one = ObservabilityHooks(on_state_get=lambda event: called.append(f"one {event.key}"))
    two = ObservabilityHooks(on_state_get=lambda event: called.append(f"two {event.key}"))
    with added(one, two):
        events.publish(StateRead(ORDER, "n"))
        remove_hooks(one)
        events.publish(StateRead(ORDER, "m"))
    events.publish(StateRead(ORDER, "x"))
    assert called == ["one n", "two n", "two m"]
    assert not events.has_listeners(StateRead)


def test_listeners_receive_exact_event_class():
    called: list[Any] = []
    with added(ObservabilityHooks(on_invocation_start=called.append)):
        events.publish(WorkflowStarted(ORDER))  # a subclass, which only on_workflow_start receives
        events.publish(InvocationStarted(ORDER))
    assert [type(event) for event in called] == [InvocationStarted]


def test_hook_error_is_logged_and_next_hook_runs(caplog):
    called: list[Any] = []

    def broken(event: object) -> None:
        raise TerminalError("out of order")

    with added(ObservabilityHooks(on_error=broken), ObservabilityHooks(on_error=called.append)):
        events.publish(Failed(ORDER, OSError("gone"), terminal=False, run=None))
    assert len(called) == 1
    assert "hook failed; the invocation continues" in caplog.text
    assert "broken" in caplog.text
    assert "out of order" in caplog.text


def test_reject_coroutine_hook():
    async def hook(event: object) -> None: ...

    with pytest.raises(ConfigurationError, match="on_error: a hook must be a plain function"):
        ObservabilityHooks(on_error=hook)


def test_remove_unknown_hooks():
    remove_hooks(ObservabilityHooks(on_error=print))


def test_no_listeners_skip_context(monkeypatch):
    monkeypatch.setattr(events._Listeners, "by_event", {})  # serving processes also count metrics

    async def work() -> str:
        return "done"

    no_context: Any = object()  # any access would fail
    assert not events.subscribed_events()
    assert asyncio.run(lifecycle.observe_attempt(no_context, work(), lifecycle.HandlerRole.HANDLER)) == "done"
    assert not lifecycle.should_publish(no_context, StateRead)
    with lifecycle.observe_run(no_context, "work"):
        pass


def test_tracker_reports_start_and_end_once():
    tracker = InvocationTracker()
    assert tracker.record_attempt(1.0, replays=False)
    assert not tracker.record_attempt(1.5, replays=False), "the first attempt failed before its first journal entry"
    assert not tracker.record_attempt(2.0, replays=True)
    assert tracker.attempts == 3
    assert tracker.record_end(3.0) == (True, timedelta(seconds=2))
    assert tracker.record_end(3.0) == (False, None)
    assert not tracker.record_attempt(4.0, replays=False), "the result did not reach the journal"
    assert tracker.record_end(5.0) == (False, None)


def test_end_without_start_has_no_duration():
    tracker = InvocationTracker()
    assert not tracker.record_attempt(1.0, replays=True)
    assert tracker.record_end(2.0) == (True, None)
    assert tracker.record_end(2.0) == (False, None)


def test_one_tracker_per_invocation(monkeypatch):
    monkeypatch.setattr(lifecycle, "_trackers", RecentMap())
    assert lifecycle.tracker_of("a") is lifecycle.tracker_of("a")
    assert lifecycle.tracker_of("a") is not lifecycle.tracker_of("b")


@given(st.integers(1, 5), st.lists(st.sampled_from("abcdefghijkl"), max_size=60))
def test_recent_map_keeps_last_keys(size, keys):
    recent: RecentMap[int] = RecentMap(size)
    for number, key in enumerate(keys):
        recent.put(key, number)
    last = {key: number for number, key in enumerate(keys)}
    for key in list(dict.fromkeys(reversed(keys)))[:size]:
        assert recent.get(key) == last[key]
    assert all(recent.get(key) in (None, last[key]) for key in last), "no outdated value is returned"
    assert sum(recent.get(key) is not None for key in last) <= 2 * size


def test_default_hooks_log_events_of_the_original(caplog):
    defaults = default_hooks()
    defined = {each.name for each in fields(defaults) if getattr(defaults, each.name) is not None}
    assert defined == {"on_invocation_start", "on_invocation_end", "on_state_set", "on_error"}
    with caplog.at_level("DEBUG"), added(defaults):
        events.publish(InvocationStarted(ORDER))
        events.publish(events.InvocationEnded(ORDER, TerminalError("no seats left"), timedelta(seconds=2)))
        events.publish(events.StateWritten(ORDER, "n", 5))
        events.publish(Failed(ORDER, OSError("gone"), terminal=False, run="charge"))
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "invocation started target='Orders/run'"),
        ("INFO", "invocation ended target='Orders/run' seconds=2.0 error='no seats left'"),
        ("DEBUG", "state written state='n' bytes=5"),
        ("WARNING", "attempt failed terminal=False run='charge' error=\"OSError('gone')\""),
    ]
