"""Hooks and the events behind them, without an engine. When they fire is for the integration tests."""

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

from perdure import ObservabilityHooks, add_hooks, default_hooks, remove_hooks
from perdure._runtime.sdk import HandlerInfo
from perdure.errors import ConfigurationError, TerminalError
from perdure.observability import events, hooks, lifecycle
from perdure.observability.events import Failed, Invocation, InvocationStarted, StateRead, WorkflowStarted
from perdure.observability.recent import Recent

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


def test_there_are_the_twelve_of_the_original_and_each_has_its_event():
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


def test_several_sets_are_called_in_order_and_removed_one_by_one():
    told: list[str] = []
    one = ObservabilityHooks(on_state_get=lambda event: told.append(f"one {event.key}"))
    two = ObservabilityHooks(on_state_get=lambda event: told.append(f"two {event.key}"))
    with added(one, two):
        events.publish(StateRead(ORDER, "n"))
        remove_hooks(one)
        events.publish(StateRead(ORDER, "m"))
    events.publish(StateRead(ORDER, "x"))
    assert told == ["one n", "two n", "two m"]
    assert not events.wanted(StateRead)


def test_an_event_reaches_who_asked_for_its_very_class():
    told: list[Any] = []
    with added(ObservabilityHooks(on_invocation_start=told.append)):
        events.publish(WorkflowStarted(ORDER))  # a kind of start, but told to on_workflow_start
        events.publish(InvocationStarted(ORDER))
    assert [type(event) for event in told] == [InvocationStarted]


def test_what_a_hook_raises_is_logged_and_the_next_one_is_called(caplog):
    told: list[Any] = []

    def broken(event: object) -> None:
        raise TerminalError("out of order")

    with added(ObservabilityHooks(on_error=broken), ObservabilityHooks(on_error=told.append)):
        events.publish(Failed(ORDER, OSError("gone"), terminal=False, run=None))
    assert len(told) == 1
    assert "a hook failed; the invocation goes on" in caplog.text
    assert "broken" in caplog.text
    assert "out of order" in caplog.text


def test_a_hook_that_would_have_to_be_awaited_is_refused():
    async def hook(event: object) -> None: ...

    with pytest.raises(ConfigurationError, match="on_error: a hook is a plain function"):
        ObservabilityHooks(on_error=hook)


def test_removing_what_was_not_added_does_nothing():
    remove_hooks(ObservabilityHooks(on_error=print))


def test_without_hooks_nothing_is_looked_at(monkeypatch):
    monkeypatch.setattr(events._Listeners, "by_event", {})  # a process that serves counts, too

    async def work() -> str:
        return "done"

    no_context: Any = object()  # a look at it would fail
    assert not events.all_wanted()
    assert asyncio.run(lifecycle.watched(no_context, work(), lifecycle.HandlerRole.HANDLER)) == "done"
    assert not lifecycle.happens(no_context, StateRead)
    with lifecycle.watched_run(no_context, "work"):
        pass


def test_a_beginning_and_an_end_are_remembered_once():
    life = lifecycle.Life()
    assert life.attempt(1.0, replays=False)
    assert not life.attempt(1.5, replays=False), "the first attempt failed before its first entry"
    assert not life.attempt(2.0, replays=True)
    assert life.attempts == 3
    assert life.end(3.0) == (True, timedelta(seconds=2))
    assert life.end(3.0) == (False, None)
    assert life.attempt(4.0, replays=False), "another run of a workflow's key has the same id"
    assert life.attempts == 1
    assert life.end(5.0) == (True, timedelta(seconds=1))


def test_an_end_whose_beginning_was_elsewhere_has_no_duration():
    life = lifecycle.Life()
    assert not life.attempt(1.0, replays=True)
    assert life.end(2.0) == (True, None)
    assert life.end(2.0) == (False, None)


def test_the_life_of_an_invocation_is_one(monkeypatch):
    monkeypatch.setattr(lifecycle, "_lives", Recent())
    assert lifecycle.life_of("a") is lifecycle.life_of("a")
    assert lifecycle.life_of("a") is not lifecycle.life_of("b")


@given(st.integers(1, 5), st.lists(st.sampled_from("abcdefghijkl"), max_size=60))
def test_the_last_keys_are_known_and_memory_is_bounded(size, keys):
    recent: Recent[int] = Recent(size)
    for number, key in enumerate(keys):
        recent.put(key, number)
    last = {key: number for number, key in enumerate(keys)}
    for key in list(dict.fromkeys(reversed(keys)))[:size]:
        assert recent.get(key) == last[key]
    assert all(recent.get(key) in (None, last[key]) for key in last), "nothing older comes back"
    assert sum(recent.get(key) is not None for key in last) <= 2 * size


def test_the_default_hooks_are_those_of_the_original_and_say_what_they_know(caplog):
    ours = default_hooks()
    given = {each.name for each in fields(ours) if getattr(ours, each.name) is not None}
    assert given == {"on_invocation_start", "on_invocation_end", "on_state_set", "on_error"}
    with caplog.at_level("DEBUG"), added(ours):
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
