"""Rules of a rollback, for every prefix of steps, failure and strategy."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import JsonValue

from perdure import CompensationStrategy, SagaConfig
from perdure._runtime.serdes import compact_json
from perdure._runtime.time_scale import scaling
from perdure.errors import ConfigurationError, Conflict
from perdure.retry import RetryPolicy
from perdure.saga.policy import (
    after_failure,
    after_success,
    after_transient_failure,
    after_unknown_outcome,
    apply_action,
    delay_after,
    delay_while_running,
    initial_progress,
    next_steps,
    rollback_state,
    step_id,
)
from perdure.saga.schema import CompensationHandler, OperatorAction, StepProgress, StepRecord
from perdure.saga.status import CompensationState, RollbackState

Strategy = CompensationStrategy
UNDO = CompensationHandler(service="TripsCompensations", handler="undo")
SECOND = timedelta(seconds=1)
ENDLESS = 1_000_000  # more failures than attempts


def record(position: int, *, compensated: bool = True, group: int | None = None, pivot: bool = False) -> StepRecord:
    return StepRecord(
        position=position,
        step=f"step {position}",
        step_id=f"{position:032x}",
        compensation=UNDO if compensated else None,
        group=group,
        pivot=pivot,
    )


def records(count: int) -> list[StepRecord]:
    return [record(position) for position in range(1, count + 1)]


def rolled_back(
    steps: list[StepRecord], failures: list[int], config: SagaConfig, *, completed: set[int] | None = None
) -> tuple[dict[int, StepProgress], list[list[int]]]:
    """Run a rollback to its end.

    Args:
        steps: The recorded steps.
        failures: How often the compensation of each step fails before it succeeds.
        config: The rollback settings.
        completed: Positions whose action completed; None if unknown.

    Returns:
        The final progress, and the positions of each round.
    """
    known = {} if completed is None else {step.position: step.position in completed for step in steps}
    progress = initial_progress(steps, config, completed=known, running={}, reason="no room")
    passes: list[list[int]] = []
    bound = sum(min(count, 100) + 1 for count in failures)
    while positions := next_steps(steps, progress, config):
        assert rollback_state(steps, progress, config) is RollbackState.RUNNING
        assert len(passes) < bound, "the rollback does not end"
        passes.append(positions)
        for position in positions:
            if progress[position].attempts < failures[position - 1]:
                progress[position] = after_failure(progress[position], f"failure {len(passes)}", config)
            else:
                progress[position] = after_success(progress[position])
    assert rollback_state(steps, progress, config) is not RollbackState.RUNNING
    return progress, passes


def states(progress: dict[int, StepProgress]) -> list[str]:
    return [progress[position].state.value for position in sorted(progress)]


# Every prefix of three steps, each of which succeeds at once, at the second attempt, or never.
PATTERNS = [list(pattern) for length in range(4) for pattern in itertools.product([0, 1, ENDLESS], repeat=length)]


@pytest.mark.parametrize("strategy", [item for item in Strategy if item is not Strategy.FOREVER])
@pytest.mark.parametrize("failures", PATTERNS, ids=str)
def test_rollback_ends_as_strategy_defines(strategy, failures):
    config = SagaConfig(strategy=strategy, max_attempts=3)
    progress, passes = rolled_back(records(len(failures)), failures, config)
    undone = {position for position, item in progress.items() if item.state is CompensationState.UNDONE}
    curable = {position for position, count in enumerate(failures, start=1) if count < config.max_attempts}
    backwards = list(range(len(failures), 0, -1))
    if strategy in (Strategy.ALL, Strategy.COMPLETED, Strategy.BEST_EFFORT):
        assert undone == curable
    elif strategy is Strategy.STOP:
        assert undone == set(itertools.takewhile(curable.__contains__, backwards))
    else:
        assert undone == set(list(filter(curable.__contains__, backwards))[:1])
    order = [position for (position,), _ in itertools.groupby(passes)]
    assert order == backwards[: len(order)], "one step at a time, in reverse order"
    for position, item in progress.items():
        assert passes.count([position]) <= config.max_attempts
        assert item.attempts <= config.max_attempts


@pytest.mark.parametrize("failures", PATTERNS, ids=str)
def test_dead_letters_by_strategy(failures):
    for strategy in Strategy:
        if strategy is Strategy.FOREVER:
            continue
        steps, config = records(len(failures)), SagaConfig(strategy=strategy, max_attempts=2)
        progress, _ = rolled_back(steps, failures, config)
        dead = states(progress).count("dead_letter")
        expected = RollbackState.NEEDS_ATTENTION if dead else RollbackState.ROLLED_BACK
        assert rollback_state(steps, progress, config) is expected
        if strategy is Strategy.BEST_EFFORT:
            assert dead == 0
        if strategy is Strategy.STOP:
            assert dead <= 1
        if strategy is Strategy.ALL:
            assert dead == failures.count(ENDLESS)


@pytest.mark.parametrize("failures", [[40], [0, 40, 0], [7, 7, 7]], ids=str)
def test_forever_retries_without_limit(failures):
    config = SagaConfig(strategy=Strategy.FOREVER, max_attempts=1)
    progress, passes = rolled_back(records(len(failures)), failures, config)
    assert states(progress) == ["undone"] * len(failures)
    assert len(passes) == sum(failures) + len(failures)


def test_continue_after_dead_letter():
    # The Go original stops here.
    progress, passes = rolled_back(records(3), [0, ENDLESS, 0], SagaConfig(max_attempts=2))
    assert states(progress) == ["undone", "dead_letter", "undone"]
    assert passes == [[3], [2], [2], [1]]


def test_completed_strategy_skips_incomplete_steps():
    # The Go original treats both strategies alike.
    only_completed = SagaConfig(strategy=Strategy.COMPLETED)
    progress, _ = rolled_back(records(3), [0, 0, 0], only_completed, completed={1, 2})
    assert states(progress) == ["undone", "undone", "skipped"]
    progress, _ = rolled_back(records(3), [0, 0, 0], SagaConfig(strategy=Strategy.ALL), completed={1, 2})
    assert states(progress) == ["undone", "undone", "undone"]


def test_unknown_completion_counts_as_completed():
    # As after a kill.
    progress, _ = rolled_back(records(2), [0, 0], SagaConfig(strategy=Strategy.COMPLETED), completed=None)
    assert states(progress) == ["undone", "undone"]


@pytest.mark.parametrize("strategy", list(Strategy))
def test_skip_step_without_compensation(strategy):
    steps = [record(1), record(2, compensated=False), record(3, compensated=False)]
    progress, passes = rolled_back(steps, [0, 0, 0], SagaConfig(strategy=strategy))
    assert states(progress) == ["undone", "skipped", "skipped"]
    assert passes == [[1]]


def test_until_success_continues_after_dead_letter():
    steps, config = records(3), SagaConfig(strategy=Strategy.UNTIL_SUCCESS, max_attempts=1)
    progress, _ = rolled_back(steps, [0, 0, ENDLESS], config)
    assert states(progress) == ["pending", "undone", "dead_letter"]
    assert rollback_state(steps, progress, config) is RollbackState.NEEDS_ATTENTION


# --- groups and pivots -----------------------------------------------------------------------------------------------


def grouped() -> list[StepRecord]:
    return [record(1), record(2, group=2), record(3, group=2), record(4, group=2), record(5)]


def test_compensate_parallel_group_together():
    progress, passes = rolled_back(grouped(), [0, 0, 0, 0, 0], SagaConfig())
    assert passes == [[5], [4, 3, 2], [1]]
    assert states(progress) == ["undone"] * 5


def test_retry_failed_steps_of_group_only():
    progress, passes = rolled_back(grouped(), [0, 1, 0, ENDLESS, 0], SagaConfig(max_attempts=3))
    assert passes == [[5], [4, 3, 2], [4, 2], [4], [1]]
    assert states(progress) == ["undone", "undone", "undone", "dead_letter", "undone"]


def test_until_success_compensates_one_group_step():
    progress, passes = rolled_back(grouped(), [0, 0, 0, 0, ENDLESS], SagaConfig(strategy=Strategy.UNTIL_SUCCESS))
    assert passes[-1] == [4]
    assert states(progress).count("undone") == 1


@pytest.mark.parametrize("strategy", list(Strategy))
def test_pivot_becomes_dead_letter(strategy):
    steps = [record(1), record(2, compensated=False, pivot=True), record(3)]
    config = SagaConfig(strategy=strategy)
    progress, passes = rolled_back(steps, [0, 0, 0], config)
    assert passes == []
    assert states(progress) == ["skipped", "dead_letter", "skipped"]
    assert progress[2].error == "failed past its pivot, so no step is compensated: no room"
    assert rollback_state(steps, progress, config) is RollbackState.NEEDS_ATTENTION


def test_initial_progress_has_running_invocation():
    known = {1: True, 2: False}
    progress = initial_progress(records(2), SagaConfig(), completed=known, running={2: "inv_1"}, reason="")
    assert (progress[1].completed, progress[1].invocation_id) == (True, None)
    assert (progress[2].completed, progress[2].invocation_id) == (False, "inv_1")


# --- one step --------------------------------------------------------------------------------------------------------


def test_success_clears_last_error():
    config = SagaConfig(max_attempts=2)
    failed = after_failure(StepProgress(), "the press is jammed", config)
    assert (failed.state, failed.attempts, failed.error) == (CompensationState.PENDING, 1, "the press is jammed")
    dead = after_failure(failed, "still jammed", config)
    assert (dead.state, dead.attempts, dead.error) == (CompensationState.DEAD_LETTER, 2, "still jammed")
    assert after_success(failed).error is None
    assert after_success(failed).attempts == 1


def test_saga_without_steps_is_rolled_back():
    assert rollback_state([], {}, SagaConfig()) is RollbackState.ROLLED_BACK


# --- delays ----------------------------------------------------------------------------------------------------------

DELAYS = st.timedeltas(min_value=timedelta(milliseconds=1), max_value=timedelta(hours=12))


@settings(deadline=None)
@given(initial=DELAYS, longest=DELAYS)
def test_delays_grow_up_to_limit(initial, longest):
    config = SagaConfig(initial_delay=initial, max_delay=longest)
    delays = [config.retry.delay_after(attempts) for attempts in range(1, 80)]
    assert delays == sorted(delays)
    assert delays[0] == min(initial, longest)
    assert delays[-1] == longest
    assert all(timedelta(0) < delay <= longest for delay in delays)


def test_default_delays_double_up_to_limit():
    config = SagaConfig()
    assert [config.retry.delay_after(attempts).total_seconds() for attempts in range(1, 12)] == [
        1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300,
    ]  # fmt: skip


def test_default_config_matches_contract():
    config = SagaConfig()
    assert (config.strategy, config.max_attempts) == (Strategy.ALL, 5)
    assert (config.initial_delay, config.max_delay) == (timedelta(seconds=1), timedelta(minutes=5))


@pytest.mark.parametrize("wrong", [{"max_attempts": 0}, {"max_attempts": -1}, {"dlq_key": "x"}, {"strategy": "lax"}])
def test_reject_invalid_config(wrong):
    with pytest.raises(ConfigurationError, match=r"SagaConfig\.\w+:? "):
        SagaConfig(**wrong)


# --- identity --------------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=10,
)


def turned(value: JsonValue) -> JsonValue:
    """Return the same value with the keys of each object in the opposite order."""
    if isinstance(value, dict):
        return {key: turned(item) for key, item in reversed(value.items())}
    return [turned(item) for item in value] if isinstance(value, list) else value


def written(value: JsonValue) -> bytes:
    return json.dumps(value, ensure_ascii=True, indent=1).encode()


@settings(deadline=None)
@given(JSON)
def test_step_id_ignores_json_formatting(value):
    plain = json.dumps(turned(value), ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    assert step_id("cancel", written(value)) == step_id("cancel", plain)
    assert json.loads(compact_json(written(value))) == value


@settings(deadline=None)
@given(JSON, JSON)
def test_step_id_depends_on_payload(one, other):
    same = compact_json(written(one)) == compact_json(written(other))
    assert (step_id("cancel", written(one)) == step_id("cancel", written(other))) is same
    if json.dumps(one, sort_keys=True) != json.dumps(other, sort_keys=True):
        assert not same


def test_step_id_depends_on_name():
    identity = step_id("cancel", b"{}")
    assert len(identity) == 32
    assert int(identity, 16) >= 0
    assert identity != step_id("refund", b"{}")
    assert step_id("cancel", b"") == step_id("cancel", b"null")


# --- transient failures and unknown outcomes -------------------------------------------------------------------------

START = datetime(2026, 1, 1, tzinfo=UTC)
EVENTS = st.lists(st.sampled_from(["unknown", "transient", "failure"]), max_size=60)
RETRIED = st.builds(
    SagaConfig,
    strategy=st.sampled_from([CompensationStrategy.ALL, CompensationStrategy.FOREVER]),
    max_attempts=st.integers(1, 4),
)


@given(EVENTS, RETRIED)
def test_repeat_attempt_until_outcome_is_known(happened, config):
    retry, progress = config.transient_retry, StepProgress()
    for event in happened:
        requested = progress.attempt
        if event == "unknown":
            progress = after_unknown_outcome(progress, "the dispatcher was killed", retry, config, START)
            assert progress.attempt == requested
        elif event == "transient":
            progress = after_transient_failure(progress, "the press is down", retry, config, START)
            assert progress.attempt != requested
        else:
            progress = after_failure(progress, "stuck", config)
            assert progress.attempt != requested
        assert progress.error is not None
        if progress.state is CompensationState.DEAD_LETTER:
            unresolved = progress.attempt
            progress = apply_action(progress, OperatorAction.REDRIVE, "a")
            assert (progress.attempt == requested) == (event == "unknown" and unresolved == requested)
    assert after_success(progress).lost_starts == 0


def outage(
    config: SagaConfig, events: Iterator[str], policy: RetryPolicy | None = None
) -> tuple[StepProgress, timedelta]:
    """Let a compensation fail with these events until it is exhausted; return its progress and the time."""
    retry, progress, now = config.transient_retry_of(policy), StepProgress(), START
    while progress.state is CompensationState.PENDING and now < START + timedelta(days=40):
        progress = progress.with_(trying_since=progress.trying_since or now)
        if next(events) == "unknown":
            progress = after_unknown_outcome(progress, "lost", retry, config, now)
        else:
            progress = after_transient_failure(progress, "down", retry, config, now)
        now += delay_after(progress, retry, config)
    return progress, now - START


@settings(deadline=None, max_examples=20)
@given(
    st.lists(st.sampled_from(["unknown", "transient"]), min_size=1, max_size=5),
    st.timedeltas(SECOND, timedelta(days=3)),
)
def test_compensation_rides_out_outage(kinds, duration):
    policy = RetryPolicy(SECOND, 2.0, timedelta(minutes=1), None, duration)
    progress, elapsed = outage(SagaConfig(max_attempts=1), itertools.cycle(kinds), policy)
    assert progress.state is CompensationState.DEAD_LETTER
    assert duration <= elapsed <= duration + 2 * timedelta(minutes=1)
    assert progress.refusals == 0


def test_default_compensation_retries_last_one_day():
    progress, elapsed = outage(SagaConfig(), itertools.repeat("transient"))
    assert (progress.state, progress.error) == (CompensationState.DEAD_LETTER, "down")
    assert timedelta(days=1) <= elapsed <= timedelta(days=1, minutes=2)


def test_strategy_decides_after_outage():
    short = RetryPolicy(max_attempts=3)
    best_effort, _ = outage(SagaConfig(strategy=Strategy.BEST_EFFORT), itertools.repeat("transient"), short)
    forever, _ = outage(SagaConfig(strategy=Strategy.FOREVER), itertools.repeat("transient"), short)
    assert (best_effort.state, best_effort.attempts) == (CompensationState.FAILED, 3)
    assert forever.state is CompensationState.PENDING


def test_transient_failures_spare_terminal_attempts():
    config = SagaConfig(max_attempts=2)
    progress = StepProgress(trying_since=START)
    for _ in range(50):
        progress = after_transient_failure(progress, "down", config.transient_retry, config, START)
    refused = after_failure(progress, "no", config)
    assert (refused.state, refused.attempts, refused.refusals) == (CompensationState.PENDING, 51, 1)
    assert delay_after(refused, config.transient_retry, config) == SECOND
    assert after_failure(refused, "no", config).state is CompensationState.DEAD_LETTER


def test_redrive_starts_new_outage_limit():
    config = SagaConfig()
    late = StepProgress(trying_since=START, state=CompensationState.DEAD_LETTER, attempts=9, refusals=4)
    redriven = apply_action(late, OperatorAction.REDRIVE, "a")
    assert (redriven.trying_since, redriven.attempts, redriven.refusals) == (None, 0, 0)
    later = redriven.with_(trying_since=START + timedelta(days=9))
    failed = after_transient_failure(later, "down", config.transient_retry, config, START + timedelta(days=9))
    assert failed.state is CompensationState.PENDING


@given(st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=2)))
def test_slow_attempts_are_checked_less_often(elapsed):
    delay = delay_while_running(StepProgress(trying_since=START), START + elapsed)
    assert SECOND <= delay <= timedelta(minutes=1)
    assert delay <= delay_while_running(StepProgress(trying_since=START), START + elapsed * 2)


def test_time_scale_shortens_outage():
    config = SagaConfig()
    failing = StepProgress(trying_since=START)
    with scaling(3600):  # a day takes 24 seconds
        for seconds, state in ((23, CompensationState.PENDING), (25, CompensationState.DEAD_LETTER)):
            now = START + timedelta(seconds=seconds)
            assert after_transient_failure(failing, "down", config.transient_retry, config, now).state is state


# --- operator actions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", [action for action in OperatorAction if action is not OperatorAction.ANNOTATE])
def test_accept_action_on_waiting_compensation(action):
    failed = StepProgress(trying_since=START, next_attempt_at=START, attempts=3, error="down")
    after = apply_action(failed, action, "hotel")
    assert (after.attempt != failed.attempt) == (action is OperatorAction.REDRIVE)
    assert after.next_attempt_at is None or after.state is not CompensationState.PENDING
    for busy in (StepProgress(), failed.with_(compensation_invocation_id="inv_1")):
        with pytest.raises(Conflict, match=f"cannot {action} step 'hotel': it is pending"):
            apply_action(busy, action, "hotel")


def test_reject_action_on_other_than_dead_letter():
    with pytest.raises(Conflict) as refused:
        apply_action(StepProgress(state=CompensationState.UNDONE), OperatorAction.REDRIVE, "hotel")
    assert refused.value.message == (
        "cannot redrive step 'hotel': it is undone, not a dead letter; perdure sagas show SAGA shows its history"
    )
