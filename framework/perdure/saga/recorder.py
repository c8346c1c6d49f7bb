"""Record of a saga: one state entry per step, written before the step's action starts."""

from __future__ import annotations

import restate
from pydantic import JsonValue, TypeAdapter

from perdure._runtime import sdk
from perdure._runtime.engine_texts import check_name
from perdure._runtime.plain_text import MAX_DISPLAY_NAME_LENGTH
from perdure._runtime.serdes import compact_json, serde_for
from perdure.errors import SagaError, TerminalError
from perdure.observability.events import SagaStarted, SagaStepAdded, SagaStepEnded, publish
from perdure.observability.lifecycle import first_observation, invocation_of, should_publish
from perdure.saga.compensations import BoundCompensation, Compensations
from perdure.saga.policy import step_id
from perdure.saga.schema import StepRecord, step_key

_json: TypeAdapter[JsonValue] = TypeAdapter(JsonValue)
_record_serde = serde_for(StepRecord)


class Saga:
    """The steps of one saga execution.

    Args:
        ctx: The context of the workflow or exclusive object handler whose state holds the record.
        compensations: The registered compensations.
        saga_id: The saga's ID; the key of the workflow or object by default.
        parent: The ID of the saga that started this one as its child, if any.
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
        self.compensations = compensations
        self._parent = parent
        self._by_id: dict[str, StepRecord] = {}
        self.steps: list[StepRecord] = []
        self.completed: dict[int, bool] = {}
        """Whether a step's action completed, by position; no entry if the outcome is unknown."""
        self._unknown: set[int] = set()

    def add(
        self,
        step: str,
        compensation: BoundCompensation | None = None,
        *,
        dedupe: bool = False,
        group: int | None = None,
        pivot: bool = False,
        after_others: bool = False,
    ) -> StepRecord:
        """Record a step before its action starts.

        Args:
            step: The step's name.
            compensation: The compensation with its payload; None if the step needs none.
            dedupe: Return the existing record of a step with the same name and payload.
            group: The position of the first step of its parallel group.
            pivot: Whether the record marks the pivot.
            after_others: Run the compensation only when no other step is a dead letter.

        Returns:
            The new or existing record.

        Raises:
            SagaError: The compensation is not bound, or its payload does not fit; terminal, the step was not started.
            TooLarge: The saga would exceed a limit of the engine; terminal, the step was not started.
        """
        check_name("step", step, MAX_DISPLAY_NAME_LENGTH, required=True)
        content = b"null" if compensation is None else _serialize(step, compensation)
        identity = step_id(step, content)
        if dedupe and identity in self._by_id:
            return self._by_id[identity]
        record = StepRecord(
            position=len(self.steps) + 1,
            step=step,
            step_id=identity,
            compensation=None if compensation is None else compensation.handler,
            payload=_json.validate_json(compact_json(content)),
            group=group,
            pivot=pivot,
            after_others=after_others,
            parent="" if self.steps else self._parent,
            invocation="" if self.steps else self._ctx.request().id,
            retry=None if compensation is None else compensation.retry,
        )
        self._publish_added(record)
        with sdk.step_budget(self._ctx, step):  # a rollback contains only steps that were stored
            self._ctx.set(step_key(record.position), record, serde=_record_serde)
        self._by_id[identity] = record
        self.steps.append(record)
        return record

    def _publish_added(self, record: StepRecord) -> None:
        """Publish the step once: its state entry follows, and a replay finds that in the journal."""
        if record.position == 1 and should_publish(self._ctx, SagaStarted):
            publish(SagaStarted(invocation_of(self._ctx), self.saga_id))
        if should_publish(self._ctx, SagaStepAdded):
            compensation = None if record.compensation is None else str(record.compensation)
            publish(SagaStepAdded(invocation_of(self._ctx), self.saga_id, record.step, compensation))

    def start(self, record: StepRecord) -> None:
        """Note that a step's action has not completed.

        This and the methods below cost no journal entry: a replay repeats them.

        Args:
            record: The step.
        """
        if record.position not in self._unknown:
            self.completed[record.position] = False

    def mark_unknown(self, record: StepRecord, timed_out: str | None = None) -> None:
        """Note that the outcome of an attempt is unknown, so that no strategy treats the step as not completed.

        Only a later attempt that completes changes that; a failed one says nothing about this attempt.

        Args:
            record: The step.
            timed_out: The invocation of an attempt that exceeded its time limit; the rollback awaits its end.
        """
        self._unknown.add(record.position)
        self.completed.pop(record.position, None)
        # A step without compensation needs no wait, and past the pivot there may be any number of attempts.
        if timed_out is not None and record.compensation is not None:
            # Not in the state: that would add a journal entry to each timeout.
            known = self.steps[record.position - 1]
            self.steps[record.position - 1] = known.model_copy(update={"timed_out": [*known.timed_out, timed_out]})

    def complete(self, record: StepRecord) -> None:
        """Note that a step's action completed.

        Args:
            record: The step.
        """
        self.completed[record.position] = True
        self._publish_ended(record, None)

    def fail(self, record: StepRecord, error: TerminalError) -> None:
        """Publish that a step's action failed and is not retried.

        Args:
            record: The step.
            error: The error of the action.
        """
        self._publish_ended(record, error)

    def _publish_ended(self, record: StepRecord, error: TerminalError | None) -> None:
        """Publish the end of a step once per process, because it has no journal entry."""
        if not should_publish(self._ctx, SagaStepEnded):
            return
        invocation = invocation_of(self._ctx)
        if first_observation(self._ctx, str(record.position)):
            publish(SagaStepEnded(invocation, self.saga_id, record.step, error))


def _serialize(step: str, compensation: BoundCompensation) -> bytes:
    if not isinstance(compensation, BoundCompensation):  # an untyped caller; any other error would be retried forever
        raise SagaError(f"step '{step}': bind the compensation to its payload: compensation(cancel, payload)")
    try:
        return compensation.serde.serialize(compensation.payload) or b"null"
    except TerminalError as error:
        raise SagaError(
            f"step '{step}': the payload does not fit the compensation '{compensation.name}': {error.message}",
            metadata={"step": step},
        ) from error
