"""Timeline of a saga: when and where each step ran, how it ended, and the state of its compensation.

The times come from the engine's journal, so that recording them costs an orchestration nothing. They are available as
long as the journal is retained.
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, TypeAdapter

from perdure._runtime.places import ValueCodec
from perdure._wake_ups import WAIT_RUN_PREFIX
from perdure.engine.admin import AdminClient, sql_text
from perdure.engine.ingress import IngressClient
from perdure.errors import EngineError, IngressError, NotFound
from perdure.observability.gauge_collector import decode_state_value
from perdure.saga.messages import ExecutionStatus, StepStatus, execution_status, rollback_status
from perdure.saga.retried import RetriedInvocation, retried_invocations
from perdure.saga.schema import (
    EXECUTION_PREFIX,
    HELD_MARK_PREFIX,
    HELD_WAIT,
    SAGA_HELD_STEPS,
    SAGA_PREFIX,
    StepRecord,
    execution_sql,
    of_key_sql,
    recorded_steps_sql,
    step_key,
)
from perdure.targets import KeyedTarget

O = TypeVar("O")  # noqa: E741 - the output, as the SDK names it

_datetime = TypeAdapter(datetime)


class TimelineStep(BaseModel):
    """One step.

    Args:
        position: 1 for the first step.
        step: Its name.
        plane: ``data`` for a called service, ``control`` otherwise.
        action: The called handler, or ``run``, or ``wait``.
        invocation: The invocation of the last call; None without a call.
        started_at: When it was recorded, just before its action; None without a journal.
        ended_at: When its result arrived; None while it runs.
        attempts: Number of attempts; None if the journal cannot tell them from those of the parallel group.
        result: Result of the action; None while it runs.
        compensation: The compensation; None if the step needs none.
        undo: State of the compensation; None without a rollback.
        compensation_attempts: Failed attempts of the compensation.
        error: Last error of the compensation.
        next_attempt_at: When the failed compensation is tried again; None if it is not.
    """

    position: int
    step: str
    plane: Literal["control", "data"] = "control"
    action: str = "wait"
    invocation: str | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    attempts: int | None = None
    result: Literal["success", "failure"] | None = None
    compensation: str | None = None
    undo: str | None = None
    compensation_attempts: int = 0
    error: str | None = None
    next_attempt_at: datetime | None = None

    @property
    def took(self) -> timedelta | None:
        """Duration of the action; None while it runs, or without a journal."""
        if self.started_at is None or self.ended_at is None:
            return None
        return self.ended_at - self.started_at


class Timeline(BaseModel):
    """A saga with its steps.

    Args:
        saga_id: The saga.
        service: The orchestrator's service.
        key: Its key.
        invocation: The invocation of the orchestration.
        status: The engine's status of the orchestration: running, suspended, paused, completed.
        result: Result of the orchestration, success or failure; None while it runs.
        failure: Its error.
        started_at: When the orchestration was started.
        ended_at: When it ended.
        steps: Its steps.
        rollback: Its rollback, if there is one.
        retried: Its invocations that fail and are retried, such as a step whose dependency is down.
    """

    saga_id: str
    service: str
    key: str
    invocation: str = ""
    status: str
    result: str | None = None
    failure: str | None = None
    started_at: datetime
    ended_at: datetime | None = None
    steps: list[TimelineStep]
    rollback: ExecutionStatus | None = None
    retried: list[RetriedInvocation] = []


class JournalEntry(BaseModel):
    """An entry of the orchestration's journal.

    Args:
        kind: A step was recorded, an action was started, or a result arrived.
        at: When.
        state: The state key of a recorded step.
        action: ``call`` or ``run``, and the called handler or the run's name.
        invocation: The called invocation.
        completion: ID that an action and its result have in common.
        ok: Whether the result is a success.
    """

    kind: Literal["recorded", "started", "ended"]
    at: datetime
    state: str = ""
    action: tuple[str, str] = ("", "")
    invocation: str | None = None
    completion: int = 0
    ok: bool = True


async def read_timeline(
    admin: AdminClient,
    ingress: IngressClient,
    saga_id: str,
    *,
    service: str | None = None,
    codec: ValueCodec | None = None,
) -> Timeline:
    """Return a saga's timeline.

    Args:
        admin: The engine's admin API, for the orchestration.
        ingress: The ingress, for the rollback.
        saga_id: The orchestration's key, or ``{service}:{key}``.
        service: The orchestrator's service, if several have a saga with this key.
        codec: Encryption of the journal; None if it is not encrypted.

    Raises:
        UnreadableValue: The journal is encrypted with another key.
        EngineError: The saga does not exist or its retention is over; several services have a saga with this key and
            none was given; or the admin API does not answer.
        IngressError: The ingress does not answer.
    """
    found = await _orchestration(admin, ingress, saga_id, service)
    state = await admin.query(recorded_steps_sql(found["service"], found["key"]))
    records = [StepRecord.model_validate_json(decode_state_value(row, codec)) for row in state]
    journal = await admin.query(
        "select entry_type, name, appended_at, entry_lite_json from sys_journal "
        f"where id = {sql_text(found['id'])} order by index"
    )
    submitted = await admin.query(execution_sql(found["service"], found["key"]))
    rollback = None
    if submitted:
        execution = submitted[0]["key"].removeprefix(EXECUTION_PREFIX)
        rollback = await _status(ingress, execution_status, execution)
    entries = [entry for row in journal if (entry := journal_entry(row)) is not None]
    return Timeline(
        saga_id=saga_id if rollback is None else rollback.saga_id,
        service=found["service"],
        key=found["key"],
        invocation=found["id"],
        status=found["status"],
        result=found.get("result"),
        failure=found.get("failure"),
        started_at=found["started_at"],
        ended_at=found.get("ended_at"),
        steps=build_steps(records, entries, rollback),
        rollback=rollback,
        retried=await retried_invocations(
            admin,
            found["service"],
            found["key"],
            [step.compensation_invocation_id for step in rollback.steps] if rollback else (),
        ),
    )


async def _status(ingress: IngressClient, target: KeyedTarget[None, O], key: str) -> O | None:
    try:
        return await ingress.call(target, key=key)
    except IngressError as error:
        if error.code != NotFound.code:
            raise
        return None


async def _orchestration(
    admin: AdminClient, ingress: IngressClient, saga_id: str, service: str | None
) -> dict[str, Any]:
    prefix, _, key = saga_id.partition(":")
    named = f"target_service_name = {sql_text(prefix)} and target_service_key = {sql_text(key)}"
    plain = f"target_service_key = {sql_text(saga_id)}"
    of_service = f"and target_service_name = {sql_text(service)}" if service else ""
    rows = await admin.query(
        "select id, target_service_name as service, target_service_key as key, status, completion_result as result, "
        "completion_failure as failure, created_at as started_at, completed_at as ended_at from sys_invocation_status "
        f"where {of_key_sql(saga_id, key, column='target_service_key')} and target_service_ty = 'workflow' "
        f"and target_handler_name = 'run' and (({named}) or {plain}) {of_service}"
    )
    if not rows:
        raise EngineError(
            f"no saga '{saga_id}': it never started, or the retention of its workflow is over", status_code=404
        )
    if len(rows) == 1:
        return rows[0]
    rollback = await _status(ingress, rollback_status, saga_id)
    for row in rows:
        if rollback is not None and row["service"] == rollback.service:
            return row
    several = ", ".join(sorted(row["service"] for row in rows))
    raise EngineError(f"several services have a saga '{saga_id}': give one of {several}", status_code=409)


def journal_entry(row: dict[str, Any]) -> JournalEntry | None:
    """Return the entry of a row of ``sys_journal``; None if the timeline does not need it."""
    at = _datetime.validate_python(row["appended_at"])
    content = json.loads(row["entry_lite_json"])
    command, notification = content.get("Command") or {}, content.get("Notification") or {}
    if _is_of_hold(command, row):
        return None
    if "SetState" in command:
        key = command["SetState"]["key"]
        return JournalEntry(kind="recorded", at=at, state=key) if key.startswith(SAGA_PREFIX) else None
    if "Call" in command:
        call = command["Call"]
        (target,) = call["invocation_target"].values()
        action = ("call", f"{target['name']}/{target['handler']}")
        return JournalEntry(
            kind="started",
            at=at,
            action=action,
            invocation=call["invocation_id"],
            completion=call["result_completion_id"],
        )
    if "Run" in command:
        completion = command["Run"].get("completion_id", 0)
        return JournalEntry(kind="started", at=at, action=("run", row["name"] or ""), completion=completion)
    kind = notification.get("ty")  # a completion is a dict with its command; a signal is a string
    if isinstance(kind, dict) and kind.get("Completion") in ("Call", "Run"):
        ok = notification.get("result") != "Failure"
        return JournalEntry(kind="ended", at=at, completion=notification["id"]["CompletionId"], ok=ok)
    return None


def _is_of_hold(command: dict[str, Any], row: dict[str, Any]) -> bool:
    """Return whether a command belongs to the hold of a step, so that a later action is another attempt of the step."""
    if "Call" in command:
        return any(target["name"] == SAGA_HELD_STEPS for target in command["Call"]["invocation_target"].values())
    if "SetState" in command:
        return str(command["SetState"]["key"]).startswith(HELD_MARK_PREFIX)
    return "Run" in command and row["name"] == WAIT_RUN_PREFIX + HELD_WAIT


def build_steps(
    records: list[StepRecord], journal: list[JournalEntry], rollback: ExecutionStatus | None
) -> list[TimelineStep]:
    """Combine the recorded steps, the orchestration's journal, in order, and the rollback."""
    ends = {entry.completion: entry for entry in journal if entry.kind == "ended"}
    statuses = {step.position: step for step in rollback.steps} if rollback else {}
    records = sorted(records, key=lambda record: record.position)
    actions = _actions_by_step(records, journal)
    return [
        _step(record, actions.get(record.position, []), journal, ends, statuses.get(record.position))
        for record in records
    ]


def _actions_by_step(records: list[StepRecord], journal: list[JournalEntry]) -> dict[int, list[JournalEntry]]:
    """Return the actions of each step: those between its record and the next one.

    The steps of a parallel group are recorded together and then started in order. Any later action is another attempt
    of one of them and is attributed to the last. A waiting step has no actions: its calls query the result.
    """
    by_state = {step_key(record.position): record for record in records}
    found: dict[int, list[JournalEntry]] = {record.position: [] for record in records}
    recorded: list[StepRecord] = []
    waiting: list[StepRecord] = []
    waits = False
    for entry in journal:
        if entry.kind == "recorded":
            waits = False
            record = by_state.get(entry.state)
            if record is None:  # a failure or the end of the saga: later entries belong to no step
                recorded, waiting = [], []
            elif recorded and record.group is not None and record.group == recorded[-1].group:
                recorded.append(record)
                waiting.append(record)
            else:
                recorded, waiting = [record], [record]
        elif entry.kind == "started" and entry.action[1].startswith(WAIT_RUN_PREFIX):
            waits = True
        elif entry.kind == "started" and recorded and not waits:
            owner = waiting.pop(0) if waiting else recorded[-1]
            found[owner.position].append(entry)
    return found


def _step(
    record: StepRecord,
    actions: list[JournalEntry],
    journal: list[JournalEntry],
    ends: dict[int, JournalEntry],
    status: StepStatus | None,
) -> TimelineStep:
    started_at = next((entry.at for entry in journal if entry.state == step_key(record.position)), None)
    step = TimelineStep(
        position=record.position,
        step=record.step,
        started_at=started_at,
        compensation=None if record.compensation is None else str(record.compensation),
    )
    if actions:
        kind, name = actions[-1].action
        end = ends.get(actions[-1].completion)
        step.action = name if kind == "call" else "run"
        step.invocation = actions[-1].invocation
        step.plane = "data" if kind == "call" else "control"
        step.attempts = None if record.group is not None and len(actions) > 1 else len(actions)
        step.ended_at = None if end is None else end.at
        step.result = None if end is None else ("success" if end.ok else "failure")
    if status is not None:
        step.undo, step.compensation_attempts, step.error = status.state.value, status.attempts, status.error
        step.next_attempt_at = status.next_attempt_at if status.is_retried else None
    return step
