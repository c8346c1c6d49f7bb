"""A saga as a timeline: each step, where and when it ran, how long, how it ended, and what became of its undoing.

When a step began and ended is in the engine's journal already, to the millisecond, so the happy path records no times
of its
own: a value that is written to state must be the same on replay, and a clock reading costs a journal entry. The journal
is kept as long as the workflow's retention.
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any, Literal

from pydantic import BaseModel, TypeAdapter

from perdure._runtime.places import ValueCodec
from perdure._wake_ups import WAIT_RUN_PREFIX
from perdure.engine.admin import AdminClient, sql_text
from perdure.engine.ingress import IngressClient
from perdure.errors import EngineError, IngressError, NotFound
from perdure.observability.gauge_collector import decode_state_value
from perdure.saga.messages import RollbackStatus, StepStatus, rollback_status
from perdure.saga.policy import RUN_PREFIX, StepRecord, state_key

_moment = TypeAdapter(datetime)
_STATE_PREFIX = "saga/"


class TimelineStep(BaseModel):
    """One step.

    Args:
        position: 1 for the first.
        step: Its name.
        plane: Where it ran: ``data`` for a called service, ``control`` for anything else.
        action: What ran: the called handler, or ``run``, or ``wait``.
        started_at: When it was recorded, just before its action; None when the journal is gone.
        ended_at: When its result was in; None while it runs.
        attempts: How often its action was started; None when that can't be told apart from its group's.
        result: How the action ended; None while it runs.
        compensation: The handler that undoes it; None when nothing has to.
        undo: How its undoing stands; None when the saga is not rolled back.
        compensation_attempts: How often undoing it failed.
        error: Why undoing it failed last.
    """

    position: int
    step: str
    plane: Literal["control", "data"] = "control"
    action: str = "wait"
    started_at: datetime | None = None
    ended_at: datetime | None = None
    attempts: int | None = None
    result: Literal["success", "failure"] | None = None
    compensation: str | None = None
    undo: str | None = None
    compensation_attempts: int = 0
    error: str | None = None

    @property
    def took(self) -> timedelta | None:
        """How long the action took; None while it runs, or when the journal is gone."""
        if self.started_at is None or self.ended_at is None:
            return None
        return self.ended_at - self.started_at


class Timeline(BaseModel):
    """A saga, step by step.

    Args:
        saga_id: The saga.
        service: The orchestration's service.
        key: Its key.
        status: What the engine says of the orchestration: running, suspended, paused, completed.
        result: How the orchestration ended: success or failure; None while it runs.
        failure: Why it failed.
        started_at: When the orchestration was started.
        ended_at: When it ended.
        steps: Its steps.
        rollback: Its rollback; None when it is not rolled back.
    """

    saga_id: str
    service: str
    key: str
    status: str
    result: str | None = None
    failure: str | None = None
    started_at: datetime
    ended_at: datetime | None = None
    steps: list[TimelineStep]
    rollback: RollbackStatus | None = None


class JournalEntry(BaseModel):
    """What the timeline needs of an entry of the orchestration's journal.

    Args:
        kind: A step was recorded, an action was started, or a result came in.
        at: When.
        state: The state entry, of a recorded step.
        action: What was started: ``call`` or ``run``, and the called handler or the run's name.
        completion: Pairs an action with its result.
        ok: Whether the result is a success.
    """

    kind: Literal["recorded", "started", "ended"]
    at: datetime
    state: str = ""
    action: tuple[str, str] = ("", "")
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
    """Ask the engine for a saga's timeline.

    Args:
        admin: The engine's admin API: the orchestration, its journal and its record.
        ingress: The ingress: the rollback.
        saga_id: The saga: its orchestration's key, or ``{service}:{key}``.
        service: The orchestration's service, when several have a saga with this key.
        codec: What the journal is encrypted with; None when it is in clear.

    Raises:
        UnreadableValue: The journal is encrypted with another key.
        EngineError: There is no orchestration of this saga, or its retention is over; several services have one with
            this key, and none was named; or the admin API does not answer.
        IngressError: The ingress does not answer.
    """
    found = await _orchestration(admin, ingress, saga_id, service)
    where = f"service_name = {sql_text(found['service'])} and service_key = {sql_text(found['key'])}"
    state = await admin.query(
        f"select service_name, service_key, key, value from state where {where} and key like 'saga/0%' order by key"
    )
    records = [StepRecord.model_validate_json(decode_state_value(row, codec)) for row in state]
    journal = await admin.query(
        "select entry_type, name, appended_at, entry_lite_json from sys_journal "
        f"where id = {sql_text(found['id'])} order by index"
    )
    # The rollback of a key that was used before may be an earlier run's. What a run leaves behind goes with the run.
    handed_over = await admin.query(
        f"select key from state where {where} and key like '{RUN_PREFIX}%' "
        f"union all select key from sys_promise where {where} and key = 'saga/undo'"
    )
    rollback = await _rollback(ingress, saga_id, found["service"], found["key"]) if handed_over else None
    runs = [row["key"].removeprefix(RUN_PREFIX) for row in handed_over if row["key"].startswith(RUN_PREFIX)]
    own = None if rollback is None else of_run(records, rollback, runs)
    entries = [entry for row in journal if (entry := read_entry(row)) is not None]
    return Timeline(
        saga_id=saga_id if rollback is None else rollback.saga_id,
        service=found["service"],
        key=found["key"],
        status=found["status"],
        result=found.get("result"),
        failure=found.get("failure"),
        started_at=found["started_at"],
        ended_at=found.get("ended_at"),
        steps=build_steps(records, entries, own),
        rollback=None if own is None else rollback,
    )


async def _rollback(ingress: IngressClient, saga_id: str, service: str, key: str) -> RollbackStatus | None:
    """Return a saga's rollback, whether it was asked for by its id or by its key: a service decides how they differ."""
    for each in dict.fromkeys((saga_id, f"{service}:{key}", key)):
        found = await _status(ingress, each)
        if found is not None and found.service == service:  # and not of another service's saga with this key
            return found
    return None


async def _status(ingress: IngressClient, saga_id: str) -> RollbackStatus | None:
    try:
        return await ingress.call(rollback_status, key=saga_id)
    except IngressError as error:
        if error.status_code != NotFound.default_status:
            raise
        return None


def of_run(records: list[StepRecord], rollback: RollbackStatus, runs: list[str]) -> RollbackStatus | None:
    """Return a rollback as that of one run, at its own positions; None when it has not begun for that run.

    Args:
        records: The recorded steps of the run.
        rollback: The saga's rollback; a key that was used before has those of the earlier runs in it, too.
        runs: The run's id; empty when that is not known, and then it is the last run.
    """
    before = {each for run in rollback.earlier for each in run.runs}
    last = rollback.model_copy(update={"runs": [each for each in rollback.runs if each not in before]})
    known = [last, *rollback.earlier] if runs else [last]
    # A saga service of an earlier version may know no ids, and puts runs together, of which this is the last.
    found = next((run for run in known if not run.runs or not runs or set(runs) <= set(run.runs)), None)
    if found is None:
        return None
    own = found.steps[max(0, len(found.steps) - len(records)) :]
    offset = own[0].position - 1 if own else 0
    steps = [step.model_copy(update={"position": step.position - offset}) for step in own]
    return rollback.model_copy(update={"steps": steps, "runs": found.runs})


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
        f"where target_service_ty = 'workflow' and target_handler_name = 'run' and (({named}) or {plain}) {of_service}"
    )
    if not rows:
        raise EngineError(
            f"there is no saga '{saga_id}': it never began, or the retention of its workflow is over", status_code=404
        )
    if len(rows) == 1:
        return rows[0]
    rollback = await _status(ingress, saga_id)  # several services have this key; an id, as of a rollback, is one saga's
    for row in rows:
        if rollback is not None and row["service"] == rollback.service:
            return row
    several = ", ".join(sorted(row["service"] for row in rows))
    raise EngineError(f"several services have a saga '{saga_id}': say which one, of {several}", status_code=409)


def read_entry(row: dict[str, Any]) -> JournalEntry | None:
    """Return what the timeline needs of a row of ``sys_journal``; None for a row that it has no use for.

    Args:
        row: ``entry_type``, ``name``, ``appended_at`` and ``entry_lite_json``.
    """
    at = _moment.validate_python(row["appended_at"])
    content = json.loads(row["entry_lite_json"])
    command, notification = content.get("Command") or {}, content.get("Notification") or {}
    if "SetState" in command:
        key = command["SetState"]["key"]
        return JournalEntry(kind="recorded", at=at, state=key) if key.startswith(_STATE_PREFIX) else None
    if "Call" in command:
        call = command["Call"]
        (target,) = call["invocation_target"].values()
        action = ("call", f"{target['name']}/{target['handler']}")
        return JournalEntry(kind="started", at=at, action=action, completion=call["result_completion_id"])
    if "Run" in command:
        completion = command["Run"].get("completion_id", 0)
        return JournalEntry(kind="started", at=at, action=("run", row["name"] or ""), completion=completion)
    kind = notification.get("ty")  # a completion names its command; a signal is but a word
    if isinstance(kind, dict) and kind.get("Completion") in ("Call", "Run"):
        ok = notification.get("result") != "Failure"
        return JournalEntry(kind="ended", at=at, completion=notification["id"]["CompletionId"], ok=ok)
    return None


def build_steps(
    records: list[StepRecord], journal: list[JournalEntry], rollback: RollbackStatus | None
) -> list[TimelineStep]:
    """Put together what the record, the journal and the rollback know of each step.

    Args:
        records: The recorded steps.
        journal: The orchestration's journal, in order.
        rollback: The rollback, if there is one.
    """
    ends = {entry.completion: entry for entry in journal if entry.kind == "ended"}
    undoing = {step.position: step for step in rollback.steps} if rollback else {}
    actions = _actions_by_step(sorted(records, key=lambda record: record.position), journal)
    return [
        _step(record, actions.get(record.position, []), journal, ends, undoing.get(record.position))
        for record in sorted(records, key=lambda record: record.position)
    ]


def _actions_by_step(records: list[StepRecord], journal: list[JournalEntry]) -> dict[int, list[JournalEntry]]:
    """Return the actions that each step started: those between its record and the next one's.

    The steps of a parallel group are recorded together and then started in their order, so what comes first is theirs
    one by one; what is started after that is another attempt of one of them, and goes to the group's last step. A step
    that waits has no action: its calls only ask for what it waits for.
    """
    by_state = {state_key(record.position): record for record in records}
    found: dict[int, list[JournalEntry]] = {record.position: [] for record in records}
    recorded: list[StepRecord] = []
    waiting: list[StepRecord] = []
    waits = False
    for entry in journal:
        if entry.kind == "recorded":
            waits = False
            record = by_state.get(entry.state)
            if record is None:  # the mark of a failure, or of the end: what follows belongs to no step
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
    undoing: StepStatus | None,
) -> TimelineStep:
    started_at = next((entry.at for entry in journal if entry.state == state_key(record.position)), None)
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
        step.plane = "data" if kind == "call" else "control"
        step.attempts = None if record.group is not None and len(actions) > 1 else len(actions)
        step.ended_at = None if end is None else end.at
        step.result = None if end is None else ("success" if end.ok else "failure")
    if undoing is not None:
        step.undo, step.compensation_attempts, step.error = undoing.state.value, undoing.attempts, undoing.error
    return step
