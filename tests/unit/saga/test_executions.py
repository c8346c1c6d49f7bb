"""Executions of one saga in one rollback: each is compensated and reported independently of the others."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure import CompensationStrategy, SagaConfig
from perdure.saga.executions import append_execution, execution_number_at, executions_of, is_over, number_of, report_of
from perdure.saga.messages import ExecutionStatus, RollbackStatus, StepStatus
from perdure.saga.policy import (
    after_failure,
    after_success,
    initial_progress,
    next_steps,
    offset_steps,
    rollback_state,
    time_until_due,
)
from perdure.saga.schema import (
    CompensationHandler,
    RollbackProgress,
    RollbackRequest,
    StepProgress,
    StepRecord,
    StoredSaga,
    Waiter,
)
from perdure.saga.status import CompensationState, RollbackState
from perdure.saga.timeline import rollback_of_execution

UNDO = CompensationHandler(service="TripsCompensations", handler="undo")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@st.composite
def a_run(draw: st.DrawFn, *, least: int = 0) -> list[StepRecord]:
    """Steps of one execution, with groups, a pivot, and steps with and without a compensation."""
    size = draw(st.integers(least, 5))
    pivot = draw(st.integers(0, size * 3))
    steps: list[StepRecord] = []
    for position in range(1, size + 1):
        goes_on = bool(steps) and steps[-1].group is not None and draw(st.booleans())
        starts = not goes_on and draw(st.booleans())
        steps.append(
            StepRecord(
                position=position,
                step=f"step {position}",
                step_id=f"{position:032x}",
                compensation=UNDO if draw(st.integers(0, 3)) else None,
                group=steps[-1].group if goes_on else position if starts else None,
                pivot=position == pivot,
                after_others=not draw(st.integers(0, 3)),
            )
        )
    return steps


CONFIGS = st.builds(SagaConfig, strategy=st.sampled_from(CompensationStrategy), max_attempts=st.integers(1, 3))
PROGRESS = st.builds(
    StepProgress,
    state=st.sampled_from(CompensationState),
    redrives=st.integers(0, 1),
    error=st.none() | st.just("stuck"),
)
FAILURES = st.lists(st.integers(0, 4), min_size=5, max_size=5)
KNOWN = st.dictionaries(st.integers(1, 5), st.booleans())


def any_progress(draw: st.DrawFn, steps: list[StepRecord]) -> dict[int, StepProgress]:
    return {step.position: draw(PROGRESS) for step in steps}


@st.composite
def two_runs(draw: st.DrawFn) -> tuple[list[StepRecord], list[StepRecord], dict[int, StepProgress]]:
    """Steps of two executions in one rollback, with any progress."""
    first, second = draw(a_run()), draw(a_run())
    behind = offset_steps(second, len(first))
    return first, behind, any_progress(draw, [*first, *behind])


@settings(deadline=None)
@given(two_runs(), CONFIGS)
def test_other_executions_do_not_affect_next_steps(runs, config):
    first, second, progress = runs
    for steps in (first, second):
        alone = {step.position: progress[step.position] for step in steps}
        assert next_steps(steps, progress, config) == next_steps(steps, alone, config)
        assert rollback_state(steps, progress, config) is rollback_state(steps, alone, config)


def walked(
    steps: list[StepRecord], progress: dict[int, StepProgress], config: SagaConfig, failures: list[int]
) -> list[list[int]]:
    """Run the rollback of one execution to its end; return the positions of each round, relative to the execution."""
    offset = steps[0].position - 1 if steps else 0
    passes: list[list[int]] = []
    while positions := next_steps(steps, progress, config):
        passes.append([position - offset for position in positions])
        for position in positions:
            if progress[position].attempts < failures[position - offset - 1]:
                progress[position] = after_failure(progress[position], "stuck", config)
            else:
                progress[position] = after_success(progress[position])
    return passes


@settings(deadline=None)
@given(st.data(), a_run(), a_run(), CONFIGS, FAILURES)
def test_position_does_not_affect_rollback(data, first, second, config, failures):
    known = data.draw(KNOWN)
    alone = initial_progress(second, config, completed=known, running={}, reason="no room")
    offset = len(first)
    behind = offset_steps(second, offset)
    shared = {step.position: data.draw(PROGRESS) for step in first}
    before = dict(shared)
    shifted = {position + offset: each for position, each in known.items()}
    shared |= initial_progress(behind, config, completed=shifted, running={}, reason="no room")
    assert walked(behind, shared, config, failures) == walked(second, alone, config, failures)
    assert {position: each for position, each in shared.items() if position <= offset} == before
    assert [shared[step.position] for step in behind] == [alone[step.position] for step in second]
    assert rollback_state(behind, shared, config) is rollback_state(second, alone, config)


# --- several executions ----------------------------------------------------------------------------------------------


@st.composite
def requests(draw: st.DrawFn) -> list[RollbackRequest]:
    """Requests of consecutive executions of a saga."""
    return [
        RollbackRequest(
            saga_id="s",
            service=draw(st.sampled_from(["S", "T"])),
            config=draw(CONFIGS),
            steps=draw(a_run(least=1)),
            reason=f"reason {number}",
            completed={1: True},
            waiter=Waiter(invocation=f"inv {number}", awakeable=f"awakeable {number}"),
            execution_ids=[f"run {number}"],
            trace=f"trace {number}",
        )
        for number in range(1, draw(st.integers(1, 4)) + 1)
    ]


def stored(submitted: list[RollbackRequest]) -> StoredSaga:
    saga = StoredSaga.of(submitted[0])
    for each in submitted[1:]:
        saga = append_execution(saga, each)[0]
    return saga


@settings(deadline=None)
@given(requests())
def test_stored_saga_preserves_each_execution(submitted):
    saga = StoredSaga.model_validate_json(stored(submitted).model_dump_json())
    runs = executions_of(saga)
    assert [step for run in runs for step in run.steps] == saga.steps
    assert [step.position for step in saga.steps] == list(range(1, len(saga.steps) + 1))
    assert saga.execution_ids == [run for each in submitted for run in each.execution_ids]
    assert len(runs) == len(submitted)
    for number, (run, original) in enumerate(zip(runs, submitted, strict=True), start=1):
        offset = run.steps[0].position - 1
        assert run.steps == offset_steps(original.steps, offset)
        for field in ("service", "config", "reason", "execution_ids", "saga_id"):
            assert getattr(run, field) == getattr(original, field)
        assert number_of(saga, original.execution_ids) == number
        assert {execution_number_at(saga, step.position) for step in run.steps} == {number}
    assert number_of(saga, []) is None
    assert number_of(saga, ["another"]) is None


@settings(deadline=None)
@given(st.data(), requests())
def test_combined_report_has_worst_state(data, submitted):
    saga = stored(submitted)
    progress = {step.position: data.draw(PROGRESS) for step in saga.steps}
    runs = executions_of(saga)
    each = [report_of([run], progress) for run in runs]
    for run, report in zip(runs, each, strict=True):
        assert report.outcome is rollback_state(run.steps, progress, run.config)
        assert is_over(run, progress) is (report.outcome is not RollbackState.RUNNING)
    together = report_of(runs, progress)
    order = [
        RollbackState.RUNNING,
        RollbackState.NEEDS_ATTENTION,
        RollbackState.FINISHED_FORWARD,
        RollbackState.ROLLED_BACK,
    ]
    assert together.outcome is min((report.outcome for report in each), key=order.index)
    assert together.undone == [name for report in reversed(each) for name in report.undone]
    assert together.dead_letters == [name for report in reversed(each) for name in report.dead_letters]


@pytest.mark.parametrize("steps", [[], [StepRecord(position=1, step="a", step_id="x")]])
def test_execution_without_steps(steps):
    none = StoredSaga(saga_id="s", service="S", steps=[], reason="r", execution_ids=["1"])
    both, _ = append_execution(none, none.model_copy(update={"execution_ids": ["2"], "steps": steps}))
    assert [run.steps for run in executions_of(both)] == [[], steps]
    assert report_of(executions_of(both)[:1], {}).outcome is RollbackState.ROLLED_BACK


# --- waiters -----------------------------------------------------------------------------------------------------


def test_invocation_waits_for_one_execution():
    mine, other = Waiter(invocation="mine", awakeable="a1"), Waiter(invocation="other", awakeable="a2")
    head = RollbackProgress(started_at=NOW, updated_at=NOW).with_waiter(mine, 1).with_waiter(other, None)
    assert (head.waiters, head.waits_for) == ({"mine": "a1", "other": "a2"}, {"mine": 1})
    again = head.with_waiter(Waiter(invocation="mine", awakeable="a3"), 2)
    assert (again.waiters, again.waits_for) == ({"other": "a2", "mine": "a3"}, {"mine": 2})
    assert head.with_waiter(mine, 1) == head
    assert head.with_waiter(None, 2) is head
    left = again.without_waiters({"mine", "stranger"})
    assert (left.waiters, left.waits_for) == ({"other": "a2"}, {})


# --- timeline --------------------------------------------------------------------------------------------------------


def shown(*positions: int) -> list[StepStatus]:
    return [
        StepStatus(
            position=position,
            step=f"{position}",
            compensation=None,
            payload=None,
            state=CompensationState.UNDONE,
            completed=None,
            attempts=0,
            redriven=0,
            error=None,
            invocation_id=None,
        )
        for position in positions
    ]


def rollback_of(earlier: list[list[str]], runs: list[str], steps: list[StepStatus]) -> RollbackStatus:
    """Return a rollback whose earlier executions have two steps each."""
    facts = {"service": "S", "status": RollbackState.ROLLED_BACK, "strategy": "compensate-all", "reason": "r"}
    known = [
        ExecutionStatus(**facts, steps=shown(2 * number + 1, 2 * number + 2), execution_ids=ids)
        for number, ids in enumerate(earlier)
    ]
    every = [*(each for ids in earlier for each in ids), *runs]
    times = {"started_at": NOW, "updated_at": NOW}
    return RollbackStatus(**facts, **times, saga_id="s", earlier=known, execution_ids=every, steps=steps)


@pytest.mark.parametrize(
    ("earlier", "ids", "steps", "wanted", "found"),
    [
        ([["1"]], ["2"], shown(3, 4), ["2"], ["3", "4"]),
        ([["1"]], ["2"], shown(3, 4), ["1"], ["1", "2"]),
        ([["1"]], ["2"], shown(3, 4), [], ["3", "4"]),
        ([["1"]], ["2"], shown(3, 4), ["3"], None),
        ([], ["1"], shown(1, 2), ["2"], None),
        ([], ["1", "2"], shown(1, 2, 3, 4), ["2"], ["3", "4"]),
    ],
    ids=[
        "last", "earlier", "unknown id", "not begun", "first not begun", "two in one",
    ],
)  # fmt: skip
def test_timeline_shows_rollback_of_its_execution(earlier, ids, steps, wanted, found):
    records = [StepRecord(position=position, step="x", step_id="x") for position in (1, 2)]
    own = rollback_of_execution(records, rollback_of(earlier, ids, steps), wanted)
    if found is None:
        assert own is None
        return
    assert own is not None
    assert [(step.position, step.step) for step in own.steps] == list(enumerate(found, start=1))


# --- waiting ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.none() | st.integers(-5, 5), min_size=1, max_size=4))
def test_group_waits_for_latest_due_step(dues):
    progress = {
        position: StepProgress(due=None if due is None else NOW + timedelta(seconds=due))
        for position, due in enumerate(dues, start=1)
    }
    longest = max((due for due in dues if due is not None), default=0)
    assert time_until_due(list(progress), progress, NOW) == timedelta(seconds=max(0, longest))
