"""A rollback's plan: every prefix of steps, every failure, every strategy ends as the strategy promises."""

from __future__ import annotations

import itertools
import json
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import JsonValue

from perdure import CompensationStrategy, SagaConfig
from perdure._runtime.serdes import compact_json
from perdure.errors import ConfigurationError
from perdure.saga.policy import (
    CompensationHandler,
    Outcome,
    StepProgress,
    StepRecord,
    StepState,
    after_failure,
    after_success,
    initial_progress,
    next_steps,
    outcome,
    state_key,
    step_id,
)

Strategy = CompensationStrategy
UNDO = CompensationHandler(service="TripsCompensations", handler="undo")
ENDLESS = 1_000_000  # fails more often than anyone tries


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
    """Walk a rollback to its end.

    Args:
        steps: The recorded steps.
        failures: How often the compensation of each step fails before it succeeds.
        config: The saga's settings.
        completed: Positions whose action completed; None when that is not known.

    Returns:
        The progress at the end, and the positions that were tried, pass by pass.
    """
    known = {} if completed is None else {step.position: step.position in completed for step in steps}
    progress = initial_progress(steps, config, completed=known, running={}, reason="no room")
    passes: list[list[int]] = []
    bound = sum(min(count, 100) + 1 for count in failures)
    while positions := next_steps(steps, progress, config):
        assert outcome(steps, progress, config) is Outcome.RUNNING
        assert len(passes) < bound, "it does not end"
        passes.append(positions)
        for position in positions:
            if progress[position].attempts < failures[position - 1]:
                progress[position] = after_failure(progress[position], f"failure {len(passes)}", config)
            else:
                progress[position] = after_success(progress[position])
    assert outcome(steps, progress, config) is not Outcome.RUNNING
    return progress, passes


def states(progress: dict[int, StepProgress]) -> list[str]:
    return [progress[position].state.value for position in sorted(progress)]


# Every prefix of three steps, each of which succeeds at once, at the second attempt, or never.
PATTERNS = [list(pattern) for length in range(4) for pattern in itertools.product([0, 1, ENDLESS], repeat=length)]


@pytest.mark.parametrize("strategy", [item for item in Strategy if item is not Strategy.FOREVER])
@pytest.mark.parametrize("failures", PATTERNS, ids=str)
def test_every_rollback_ends_and_undoes_what_its_strategy_promises(strategy, failures):
    config = SagaConfig(strategy=strategy, max_attempts=3)
    progress, passes = rolled_back(records(len(failures)), failures, config)
    undone = {position for position, item in progress.items() if item.state is StepState.UNDONE}
    curable = {position for position, count in enumerate(failures, start=1) if count < config.max_attempts}
    backwards = list(range(len(failures), 0, -1))
    if strategy in (Strategy.ALL, Strategy.COMPLETED, Strategy.BEST_EFFORT):
        assert undone == curable
    elif strategy is Strategy.STOP:
        assert undone == set(itertools.takewhile(curable.__contains__, backwards))
    else:
        assert undone == set(list(filter(curable.__contains__, backwards))[:1])
    order = [position for (position,), _ in itertools.groupby(passes)]
    assert order == backwards[: len(order)], "the last step first, one after the other"
    for position, item in progress.items():
        assert passes.count([position]) <= config.max_attempts
        assert item.attempts <= config.max_attempts


@pytest.mark.parametrize("failures", PATTERNS, ids=str)
def test_only_the_strategies_with_dead_letters_have_them(failures):
    for strategy in Strategy:
        if strategy is Strategy.FOREVER:
            continue
        steps, config = records(len(failures)), SagaConfig(strategy=strategy, max_attempts=2)
        progress, _ = rolled_back(steps, failures, config)
        dead = states(progress).count("dead_letter")
        expected = Outcome.NEEDS_ATTENTION if dead else Outcome.ROLLED_BACK
        assert outcome(steps, progress, config) is expected
        if strategy is Strategy.BEST_EFFORT:
            assert dead == 0
        if strategy is Strategy.STOP:
            assert dead <= 1
        if strategy is Strategy.ALL:
            assert dead == failures.count(ENDLESS)


@pytest.mark.parametrize("failures", [[40], [0, 40, 0], [7, 7, 7]], ids=str)
def test_forever_never_gives_up(failures):
    config = SagaConfig(strategy=Strategy.FOREVER, max_attempts=1)
    progress, passes = rolled_back(records(len(failures)), failures, config)
    assert states(progress) == ["undone"] * len(failures)
    assert len(passes) == sum(failures) + len(failures)


def test_a_dead_letter_does_not_stop_the_rest():
    # The Go original left the earlier steps as they were.
    progress, passes = rolled_back(records(3), [0, ENDLESS, 0], SagaConfig(max_attempts=2))
    assert states(progress) == ["undone", "dead_letter", "undone"]
    assert passes == [[3], [2], [2], [1]]


def test_completed_and_all_are_not_the_same():
    # They were in the Go original.
    only_completed = SagaConfig(strategy=Strategy.COMPLETED)
    progress, _ = rolled_back(records(3), [0, 0, 0], only_completed, completed={1, 2})
    assert states(progress) == ["undone", "undone", "skipped"]
    progress, _ = rolled_back(records(3), [0, 0, 0], SagaConfig(strategy=Strategy.ALL), completed={1, 2})
    assert states(progress) == ["undone", "undone", "undone"]


def test_what_is_not_known_to_be_incomplete_counts_as_done():
    # After a kill nobody can tell.
    progress, _ = rolled_back(records(2), [0, 0], SagaConfig(strategy=Strategy.COMPLETED), completed=None)
    assert states(progress) == ["undone", "undone"]


@pytest.mark.parametrize("strategy", list(Strategy))
def test_a_step_without_a_compensation_is_skipped(strategy):
    steps = [record(1), record(2, compensated=False), record(3, compensated=False)]
    progress, passes = rolled_back(steps, [0, 0, 0], SagaConfig(strategy=strategy))
    assert states(progress) == ["undone", "skipped", "skipped"]
    assert passes == [[1]]


def test_until_success_goes_on_past_dead_letters_and_they_still_need_attention():
    steps, config = records(3), SagaConfig(strategy=Strategy.UNTIL_SUCCESS, max_attempts=1)
    progress, _ = rolled_back(steps, [0, 0, ENDLESS], config)
    assert states(progress) == ["pending", "undone", "dead_letter"]
    assert outcome(steps, progress, config) is Outcome.NEEDS_ATTENTION


# --- groups and pivots -----------------------------------------------------------------------------------------------


def grouped() -> list[StepRecord]:
    return [record(1), record(2, group=2), record(3, group=2), record(4, group=2), record(5)]


def test_a_parallel_group_is_undone_together():
    progress, passes = rolled_back(grouped(), [0, 0, 0, 0, 0], SagaConfig())
    assert passes == [[5], [4, 3, 2], [1]]
    assert states(progress) == ["undone"] * 5


def test_what_failed_in_a_group_is_tried_again_without_what_succeeded_and_before_earlier_steps():
    progress, passes = rolled_back(grouped(), [0, 1, 0, ENDLESS, 0], SagaConfig(max_attempts=3))
    assert passes == [[5], [4, 3, 2], [4, 2], [4], [1]]
    assert states(progress) == ["undone", "undone", "undone", "dead_letter", "undone"]


def test_until_success_undoes_no_more_than_one_step_of_a_group():
    progress, passes = rolled_back(grouped(), [0, 0, 0, 0, ENDLESS], SagaConfig(strategy=Strategy.UNTIL_SUCCESS))
    assert passes[-1] == [4]
    assert states(progress).count("undone") == 1


@pytest.mark.parametrize("strategy", list(Strategy))
def test_past_its_pivot_nothing_is_undone_and_somebody_is_told_why(strategy):
    steps = [record(1), record(2, compensated=False, pivot=True), record(3)]
    config = SagaConfig(strategy=strategy)
    progress, passes = rolled_back(steps, [0, 0, 0], config)
    assert passes == []
    assert states(progress) == ["skipped", "dead_letter", "skipped"]
    assert progress[2].error == "failed past its pivot, so nothing is undone: no room"
    assert outcome(steps, progress, config) is Outcome.NEEDS_ATTENTION


def test_the_rollback_of_a_step_that_was_running_knows_its_invocation():
    known = {1: True, 2: False}
    progress = initial_progress(records(2), SagaConfig(), completed=known, running={2: "inv_1"}, reason="")
    assert (progress[1].completed, progress[1].invocation_id) == (True, None)
    assert (progress[2].completed, progress[2].invocation_id) == (False, "inv_1")


# --- one step --------------------------------------------------------------------------------------------------------


def test_a_failure_is_kept_and_a_success_forgets_it():
    config = SagaConfig(max_attempts=2)
    failed = after_failure(StepProgress(), "the press is jammed", config)
    assert (failed.state, failed.attempts, failed.error) == (StepState.PENDING, 1, "the press is jammed")
    dead = after_failure(failed, "still jammed", config)
    assert (dead.state, dead.attempts, dead.error) == (StepState.DEAD_LETTER, 2, "still jammed")
    assert after_success(failed).error is None
    assert after_success(failed).attempts == 1


def test_nothing_to_undo_is_rolled_back():
    assert outcome([], {}, SagaConfig()) is Outcome.ROLLED_BACK


# --- delays ----------------------------------------------------------------------------------------------------------

DELAYS = st.timedeltas(min_value=timedelta(milliseconds=1), max_value=timedelta(hours=12))


@settings(deadline=None)
@given(initial=DELAYS, longest=DELAYS)
def test_delays_never_shrink_and_never_pass_the_cap(initial, longest):
    config = SagaConfig(initial_delay=initial, max_delay=longest)
    delays = [config.retry.delay_after(attempts) for attempts in range(1, 80)]
    assert delays == sorted(delays)
    assert delays[0] == min(initial, longest)
    assert delays[-1] == longest
    assert all(timedelta(0) < delay <= longest for delay in delays)


def test_delays_double():
    config = SagaConfig()
    assert [config.retry.delay_after(attempts).total_seconds() for attempts in range(1, 12)] == [
        1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300,
    ]  # fmt: skip


def test_the_defaults_are_the_contracts():
    config = SagaConfig()
    assert (config.strategy, config.max_attempts) == (Strategy.ALL, 5)
    assert (config.initial_delay, config.max_delay) == (timedelta(seconds=1), timedelta(minutes=5))


@pytest.mark.parametrize("wrong", [{"max_attempts": 0}, {"max_attempts": -1}, {"dlq_key": "x"}, {"strategy": "lax"}])
def test_settings_that_can_not_work_are_refused(wrong):
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
def test_neither_key_order_nor_spelling_changes_a_step_id(value):
    plain = json.dumps(turned(value), ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    assert step_id("cancel", written(value)) == step_id("cancel", plain)
    assert json.loads(compact_json(written(value))) == value


@settings(deadline=None)
@given(JSON, JSON)
def test_different_payloads_have_different_step_ids(one, other):
    same = compact_json(written(one)) == compact_json(written(other))
    assert (step_id("cancel", written(one)) == step_id("cancel", written(other))) is same
    if json.dumps(one, sort_keys=True) != json.dumps(other, sort_keys=True):
        assert not same


def test_a_step_id_is_32_hex_digits_and_the_names_own():
    identity = step_id("cancel", b"{}")
    assert len(identity) == 32
    assert int(identity, 16) >= 0
    assert identity != step_id("refund", b"{}")
    assert step_id("cancel", b"") == step_id("cancel", b"null")


@given(st.integers(1, 999_998))
def test_state_keys_sort_as_the_steps_do(position):
    assert state_key(position) < state_key(position + 1)
