"""Recording steps: one state entry per step, written before the step's action starts."""

from __future__ import annotations

from typing import Any

import restate
from pydantic import JsonValue, TypeAdapter

from perdure._runtime.serdes import compact_json, serde_for
from perdure.errors import SagaError, TerminalError
from perdure.observability.events import SagaStarted, SagaStepAdded, SagaStepEnded, publish
from perdure.observability.lifecycle import first_time, happens, invocation_of
from perdure.saga.compensations import CompensationFunction, Compensations
from perdure.saga.policy import step_id
from perdure.saga.schema import CompensationHandler, StepRecord, step_key

_json: TypeAdapter[JsonValue] = TypeAdapter(JsonValue)
_record_serde = serde_for(StepRecord)


class Saga:
    """The steps of one running saga.

    Args:
        ctx: The workflow's (or exclusive object handler's) context, whose state holds the record.
        compensations: What can undo the steps.
        saga_id: The saga's id, for hooks; the key of the workflow or object by default.
        parent: The id of the saga that started this one as its child; empty when none did.
    """

    def __init__(
        self,
        ctx: restate.ObjectContext,
        compensations: Compensations,
        saga_id: str | None = None,
        parent: str = "",
    ) -> None:
        self._ctx = ctx
        self.saga_id = saga_id or ctx.key()
        self._compensations = compensations
        self._parent = parent
        self._by_id: dict[str, StepRecord] = {}
        self.steps: list[StepRecord] = []
        self.completed: dict[int, bool] = {}
        self._lost: set[int] = set()

    def add(
        self,
        step: str,
        compensation: str | CompensationFunction | CompensationHandler | None = None,
        payload: Any = None,
        *,
        dedupe: bool = False,
        group: int | None = None,
        pivot: bool = False,
        after_others: bool = False,
    ) -> StepRecord:
        """Record a step, before its action.

        Args:
            step: The step's name.
            compensation: What undoes it; None for a step that needs nothing.
            payload: What the compensation is given.
            dedupe: An equal step with an equal payload is recorded once.
            group: The position of the first step of its parallel group.
            pivot: Marks the point after which nothing is undone any more.
            after_others: Undone only once no other step is a dead letter.

        Returns:
            The record, new or the equal one that is there already.

        Raises:
            SagaError: The compensation is not registered, or the payload does not fit it; terminal, nothing was done.
        """
        handler, content = None, b"null"
        if compensation is not None:
            found = self._compensations.find(compensation)
            handler = found.handler
            try:
                content = found.serde.serialize(payload) or b"null"
                found.serde.deserialize(content)
            except (TerminalError, ValueError) as error:  # pydantic's own errors are ValueErrors
                raise SagaError(
                    f"step '{step}': the payload does not fit the compensation '{found.name}': {error}",
                    metadata={"step": step},
                ) from error
        identity = step_id(step, content)
        if dedupe and identity in self._by_id:
            return self._by_id[identity]
        record = StepRecord(
            position=len(self.steps) + 1,
            step=step,
            step_id=identity,
            compensation=handler,
            payload=_json.validate_json(compact_json(content)),
            group=group,
            pivot=pivot,
            after_others=after_others,
            parent="" if self.steps else self._parent,
        )
        self._by_id[identity] = record
        self.steps.append(record)
        self._tell(record)
        self._ctx.set(step_key(record.position), record, serde=_record_serde)
        return record

    def _tell(self, record: StepRecord) -> None:
        """Tell hooks of a step, once: its entry comes next, and a replay has it already."""
        saga = self.saga_id
        if record.position == 1 and happens(self._ctx, SagaStarted):
            publish(SagaStarted(invocation_of(self._ctx), saga))
        if happens(self._ctx, SagaStepAdded):
            undo = None if record.compensation is None else str(record.compensation)
            publish(SagaStepAdded(invocation_of(self._ctx), saga, record.step, undo))

    def start(self, record: StepRecord) -> None:
        """Remember that a step's action starts. Costs no journal entry: a replay comes to the same point."""
        if record.position not in self._lost:
            self.completed[record.position] = False

    def lose_track(self, record: StepRecord, timed_out: str | None = None) -> None:
        """Remember that a step's action may complete yet, or not: no strategy may take it for not completed.

        That is for good: how another attempt ends says nothing of this one. Only one that completed does.

        Args:
            record: The step.
            timed_out: The invocation of the attempt, when it is left to itself; the rollback awaits its end.
        """
        self._lost.add(record.position)
        self.completed.pop(record.position, None)
        # What is not undone need not be awaited; past the pivot there may be attempts without end.
        if timed_out is not None and record.compensation is not None:
            # Only here, not in the state: the journal of a saga that is under way has no place for one more entry.
            known = self.steps[record.position - 1]
            self.steps[record.position - 1] = known.model_copy(update={"timed_out": [*known.timed_out, timed_out]})

    def complete(self, record: StepRecord) -> None:
        """Remember that a step's action completed. Costs no journal entry, either."""
        self.completed[record.position] = True
        self._tell_end(record, None)

    def fail(self, record: StepRecord, error: TerminalError) -> None:
        """Tell that a step's action failed, and is not tried again."""
        self._tell_end(record, error)

    def _tell_end(self, record: StepRecord, error: TerminalError | None) -> None:
        """Tell of a step's end. It has no entry of its own in the journal, so that of a sibling may repeat it."""
        if not happens(self._ctx, SagaStepEnded):
            return
        invocation = invocation_of(self._ctx)
        if first_time(f"{invocation.id}/{record.position}"):
            publish(SagaStepEnded(invocation, self.saga_id, record.step, error))
