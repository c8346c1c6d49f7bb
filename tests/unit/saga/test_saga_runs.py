"""Runs of one saga in one rollback: whatever became of the others, each is undone and judged as if it were alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure import CompensationStrategy, SagaConfig
from perdure.saga.executions import (
    EarlierExecution,
    StoredSaga,
    append_execution,
    execution_number_at,
    executions_of,
    is_over,
    number_of,
    report_of,
)
from perdure.saga.messages import RollbackReport, RollbackRequest, RollbackStatus, RunStatus, StepStatus, Waiter
from perdure.saga.policy import (
    CompensationHandler,
    Outcome,
    StepProgress,
    StepRecord,
    StepState,
    after_failure,
    after_success,
    initial_progress,
    moved,
    next_steps,
    outcome,
    wait_for,
)
from perdure.saga.rollback_state import Head
from perdure.saga.timeline import of_run

UNDO = CompensationHandler(service="TripsCompensations", handler="undo")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@st.composite
def a_run(draw: st.DrawFn, *, least: int = 0) -> list[StepRecord]:
    """A run's steps, with positions from 1: groups, a pivot, what comes after the others, what needs no undoing."""
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
    state=st.sampled_from(StepState),
    drive=st.integers(0, 1),
    error=st.none() | st.just("stuck"),
)
FAILURES = st.lists(st.integers(0, 4), min_size=5, max_size=5)
KNOWN = st.dictionaries(st.integers(1, 5), st.booleans())


def any_progress(draw: st.DrawFn, steps: list[StepRecord]) -> dict[int, StepProgress]:
    return {step.position: draw(PROGRESS) for step in steps}


@st.composite
def two_runs(draw: st.DrawFn) -> tuple[list[StepRecord], list[StepRecord], dict[int, StepProgress]]:
    """A run, another one behind it, and whatever became of the steps of both."""
    first, second = draw(a_run()), draw(a_run())
    behind = moved(second, len(first))
    return first, behind, any_progress(draw, [*first, *behind])


@settings(deadline=None)
@given(two_runs(), CONFIGS)
def test_what_became_of_another_runs_steps_changes_neither_the_next_steps_nor_the_outcome(runs, config):
    first, second, progress = runs
    for steps in (first, second):
        alone = {step.position: progress[step.position] for step in steps}
        assert next_steps(steps, progress, config) == next_steps(steps, alone, config)
        assert outcome(steps, progress, config) is outcome(steps, alone, config)


def walked(
    steps: list[StepRecord], progress: dict[int, StepProgress], config: SagaConfig, failures: list[int]
) -> list[list[int]]:
    """Walk the rollback of one run to its end, in what may hold others; return what was tried, by its own positions."""
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
def test_a_run_is_undone_behind_others_as_it_is_alone(data, first, second, config, failures):
    known = data.draw(KNOWN)
    alone = initial_progress(second, config, completed=known, running={}, reason="no room")
    offset = len(first)
    behind = moved(second, offset)
    shared = {step.position: data.draw(PROGRESS) for step in first}
    before = dict(shared)
    shifted = {position + offset: each for position, each in known.items()}
    shared |= initial_progress(behind, config, completed=shifted, running={}, reason="no room")
    assert walked(behind, shared, config, failures) == walked(second, alone, config, failures)
    assert {position: each for position, each in shared.items() if position <= offset} == before
    assert [shared[step.position] for step in behind] == [alone[step.position] for step in second]
    assert outcome(behind, shared, config) is outcome(second, alone, config)


# --- keeping runs apart ----------------------------------------------------------------------------------------------


@st.composite
def requests(draw: st.DrawFn) -> list[RollbackRequest]:
    """What is handed over of each run of a saga, one after the other."""
    return [
        RollbackRequest(
            saga_id="s",
            service=draw(st.sampled_from(["S", "T"])),
            config=draw(CONFIGS),
            steps=draw(a_run(least=1)),
            reason=f"reason {number}",
            completed={1: True},
            waiter=Waiter(invocation=f"inv {number}", awakeable=f"awakeable {number}"),
            runs=[f"run {number}"],
            trace=f"trace {number}",
        )
        for number in range(1, draw(st.integers(1, 4)) + 1)
    ]


def put_together(handed_over: list[RollbackRequest]) -> StoredSaga:
    saga = StoredSaga.of(handed_over[0])
    for each in handed_over[1:]:
        saga = append_execution(saga, each)[0]
    return saga


@settings(deadline=None)
@given(requests())
def test_each_run_is_got_back_as_it_was_handed_over_behind_the_others(handed_over):
    saga = StoredSaga.model_validate_json(put_together(handed_over).model_dump_json())
    runs = executions_of(saga)
    assert [step for run in runs for step in run.steps] == saga.steps
    assert [step.position for step in saga.steps] == list(range(1, len(saga.steps) + 1))
    assert saga.runs == [run for each in handed_over for run in each.runs]
    assert len(runs) == len(handed_over)
    for number, (run, original) in enumerate(zip(runs, handed_over, strict=True), start=1):
        offset = run.steps[0].position - 1
        assert run.steps == moved(original.steps, offset)
        for field in ("service", "config", "reason", "runs", "saga_id"):
            assert getattr(run, field) == getattr(original, field)
        assert number_of(saga, original.runs) == number
        assert {execution_number_at(saga, step.position) for step in run.steps} == {number}
    assert number_of(saga, []) is None
    assert number_of(saga, ["another"]) is None


@settings(deadline=None)
@given(st.data(), requests())
def test_the_report_of_several_runs_is_no_better_than_the_worst_of_them(data, handed_over):
    saga = put_together(handed_over)
    progress = {step.position: data.draw(PROGRESS) for step in saga.steps}
    runs = executions_of(saga)
    each = [report_of([run], progress) for run in runs]
    for run, report in zip(runs, each, strict=True):
        assert report.outcome is outcome(run.steps, progress, run.config)
        assert is_over(run, progress) is (report.outcome is not Outcome.RUNNING)
    together = report_of(runs, progress)
    order = [Outcome.RUNNING, Outcome.NEEDS_ATTENTION, Outcome.FINISHED_FORWARD, Outcome.ROLLED_BACK]
    assert together.outcome is min((report.outcome for report in each), key=order.index)
    assert together.undone == [name for report in reversed(each) for name in report.undone]
    assert together.dead_letters == [name for report in reversed(each) for name in report.dead_letters]


def test_what_an_earlier_version_wrote_is_one_run_and_so_it_stays():
    steps = [StepRecord(position=position, step=f"{position}", step_id="x", compensation=UNDO) for position in (1, 2)]
    stored = RollbackRequest(saga_id="s", service="S", steps=steps, reason="r", runs=["1", "2"])
    saga = StoredSaga.model_validate_json(stored.model_dump_json())
    assert executions_of(saga) == [saga]
    progress = {
        1: StepProgress(state=StepState.DEAD_LETTER),
        2: StepProgress(state=StepState.UNDONE),
    }
    assert report_of(executions_of(saga), progress) == RollbackReport(
        outcome=Outcome.NEEDS_ATTENTION, undone=["2"], dead_letters=["1"]
    )
    both, added = append_execution(saga, stored.model_copy(update={"runs": ["3"], "steps": steps[:1]}))
    assert [step.position for step in added.steps] == [3]
    assert both.earlier == [EarlierExecution(last=2, service="S", reason="r", runs=["1", "2"])]
    assert [run.runs for run in executions_of(both)] == [["1", "2"], ["3"]]
    head = Head.model_validate_json('{"started_at":"2026-01-01T00:00:00Z","updated_at":"2026-01-01T00:00:00Z"}')
    assert (head.ended, head.waits_for) == ([], {})


@pytest.mark.parametrize("steps", [[], [StepRecord(position=1, step="a", step_id="x")]])
def test_a_run_without_steps_is_a_run(steps):
    none = StoredSaga(saga_id="s", service="S", steps=[], reason="r", runs=["1"])
    both, _ = append_execution(none, none.model_copy(update={"runs": ["2"], "steps": steps}))
    assert [run.steps for run in executions_of(both)] == [[], steps]
    assert report_of(executions_of(both)[:1], {}).outcome is Outcome.ROLLED_BACK


# --- who waits for which run -----------------------------------------------------------------------------------------


def test_invocation_waits_for_one_execution():
    mine, other = Waiter(invocation="mine", awakeable="a1"), Waiter(invocation="other", awakeable="a2")
    head = Head(started_at=NOW, updated_at=NOW).with_waiter(mine, 1).with_waiter(other, None)
    assert (head.waiters, head.waits_for) == ({"mine": "a1", "other": "a2"}, {"mine": 1})
    again = head.with_waiter(Waiter(invocation="mine", awakeable="a3"), 2)
    assert (again.waiters, again.waits_for) == ({"other": "a2", "mine": "a3"}, {"mine": 2})
    assert head.with_waiter(mine, 1) == head
    assert head.with_waiter(None, 2) is head
    left = again.without_waiters({"mine", "stranger"})
    assert (left.waiters, left.waits_for) == ({"other": "a2"}, {})


# --- what is shown ---------------------------------------------------------------------------------------------------


def shown(*positions: int) -> list[StepStatus]:
    return [
        StepStatus(
            position=position,
            step=f"{position}",
            compensation=None,
            payload=None,
            state=StepState.UNDONE,
            completed=None,
            attempts=0,
            redriven=0,
            error=None,
            invocation_id=None,
        )
        for position in positions
    ]


def rollback_of(earlier: list[list[str]], runs: list[str], steps: list[StepStatus]) -> RollbackStatus:
    """Return a rollback whose earlier runs have two steps each."""
    facts = {"service": "S", "status": Outcome.ROLLED_BACK, "strategy": "compensate-all", "reason": "r"}
    known = [
        RunStatus(**facts, steps=shown(2 * number + 1, 2 * number + 2), runs=ids) for number, ids in enumerate(earlier)
    ]
    every = [*(each for ids in earlier for each in ids), *runs]
    times = {"started_at": NOW, "updated_at": NOW}
    return RollbackStatus(**facts, **times, saga_id="s", earlier=known, runs=every, steps=steps)


@pytest.mark.parametrize(
    ("earlier", "ids", "steps", "wanted", "found"),
    [
        ([["1"]], ["2"], shown(3, 4), ["2"], ["3", "4"]),
        ([["1"]], ["2"], shown(3, 4), ["1"], ["1", "2"]),
        ([["1"]], ["2"], shown(3, 4), [], ["3", "4"]),
        ([["1"]], ["2"], shown(3, 4), ["3"], None),
        ([], ["1"], shown(1, 2), ["2"], None),
        ([], ["1", "2"], shown(1, 2, 3, 4), ["2"], ["3", "4"]),
        ([], [], shown(1, 2, 3, 4), ["2"], ["3", "4"]),
    ],
    ids=[
        "the last", "an earlier one", "of unknown id", "not begun", "not begun, and the first is there",
        "put together by an earlier version", "put together, without ids",
    ],
)  # fmt: skip
def test_of_a_rollback_a_timeline_shows_the_run_that_it_is_about(earlier, ids, steps, wanted, found):
    records = [StepRecord(position=position, step="x", step_id="x") for position in (1, 2)]
    own = of_run(records, rollback_of(earlier, ids, steps), wanted)
    if found is None:
        assert own is None
        return
    assert own is not None
    assert [(step.position, step.step) for step in own.steps] == list(enumerate(found, start=1))


# --- waiting ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.none() | st.integers(-5, 5), min_size=1, max_size=4))
def test_steps_that_are_tried_together_wait_for_the_one_that_has_to_wait_longest(dues):
    progress = {
        position: StepProgress(due=None if due is None else NOW + timedelta(seconds=due))
        for position, due in enumerate(dues, start=1)
    }
    longest = max((due for due in dues if due is not None), default=0)
    assert wait_for(list(progress), progress, NOW) == timedelta(seconds=max(0, longest))


def test_a_status_of_an_earlier_saga_service_has_no_earlier_runs_and_its_audit_log_no_positions():
    status = RollbackStatus.model_validate_json(
        '{"saga_id":"s","service":"S","status":"running","strategy":"compensate-all","reason":"r",'
        '"started_at":"2026-01-01T00:00:00Z","updated_at":"2026-01-01T00:00:00Z","steps":[],'
        '"audit_log":[{"number":1,"at":"2026-01-01T00:00:00Z","actor":"o","act":"skip","step":"a",'
        '"before":"dead_letter","after":"skipped"}]}'
    )
    assert status.earlier == []
    assert [entry.number for entry in status.audit_log_of("a", 7)] == [1]
    assert status.audit_log_of("b", 7) == []
