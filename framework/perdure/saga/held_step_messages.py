"""Messages and targets of held steps."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue

from perdure._runtime.plain_text import Reason
from perdure._runtime.records import StoredRecord
from perdure.saga.schema import HELD_STEPS, SAGA_HELD_STEPS
from perdure.security.signed_actions import SignedAction
from perdure.security.user_names import UserName
from perdure.targets import KeyedTarget, Target

MAX_PAGE: Final = 100
"""Limit of the payloads in one answer, and of the actions in one batch."""


class HeldStepAction(StrEnum):
    """An operator action on a held step.

    ``RETRY`` repeats the step with all its attempts and, optionally, another payload; ``COMPLETE`` continues the saga
    with a result for the step, which then counts as completed; ``ROLL_BACK`` fails the step, as without a hold.
    """

    RETRY = "retry"
    COMPLETE = "complete"
    ROLL_BACK = "roll_back"


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class _Input(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FailedStep(StoredRecord):
    """A step that failed permanently.

    Args:
        saga_id: The saga.
        service: The saga's service.
        invocation: The waiting orchestration.
        step: The step's name.
        position: The step's position.
        action: The called handler, or ``run`` for a local action.
        payload: The request of the step.
        error: Its last error.
        signature: The error without values that vary; held steps are grouped by it.
        status_code: The HTTP status of the error.
        attempts: Failed attempts since the last retry by an operator.
        held: How often the step has been held, this time included.
        past_pivot: Whether the saga is past its pivot, so that it cannot be rolled back.
        remind_every: Interval of repeated alerts; None for none.
    """

    saga_id: str
    service: str
    invocation: str
    step: str
    position: int
    action: str
    payload: JsonValue = None
    error: str
    signature: str
    status_code: int
    attempts: int
    held: int
    past_pivot: bool = False
    remind_every: timedelta | None = None


class HoldRequest(_Message):
    """Request of an orchestration to hold a step.

    Args:
        failed: The step.
        time_limit: Time until the step fails, unless an operator acts.
        wait: The orchestration's random ID; an answer with another one is forged.
        awakeable: Wakes the orchestration and carries no data, since any caller may complete an awakeable.
        request_schema: JSON schema of the step's request; None or True for any value.
        result_schema: JSON schema of its result.
    """

    failed: FailedStep
    time_limit: timedelta
    wait: str
    awakeable: str
    request_schema: JsonValue = None
    result_schema: JsonValue = None


class HoldOutcome(_Message):
    """Outcome of a hold.

    Args:
        action: The operator's action; ``expired`` at the deadline; ``released`` when the orchestration has ended.
        actor: The operator.
        reason: The operator's reason.
        payload: The new request of a retry; None keeps the current one.
        result: The result of a completed step.
    """

    action: HeldStepAction | Literal["expired", "released"]
    actor: str = ""
    reason: str = ""
    payload: JsonValue = None
    result: JsonValue = None


class HoldAnswer(_Message):
    """Answer to a waiting orchestration.

    Args:
        wait: The orchestration's random ID.
        until: The deadline.
        outcome: The outcome; None while the step is held.
    """

    wait: str
    until: datetime | None = None
    outcome: HoldOutcome | None = None


class OutcomeRequest(_Message):
    """Request of a woken orchestration for the outcome.

    Args:
        position: The step.
        wait: The orchestration's random ID.
        awakeable: Wakes the orchestration if there is no outcome yet.
        expired: Whether the time limit has passed; the hold then ends now.
    """

    position: int
    wait: str
    awakeable: str
    expired: bool = False


class Release(_Message):
    """Removes held steps whose orchestration has ended.

    Args:
        service: The saga's service; two services may share a saga ID.
        waits: The random IDs of the holds; None for all of the saga.
    """

    service: str
    waits: list[str] | None = None


class HoldCheck(_Message):
    """Check of a hold after its deadline, sent by the object to itself."""

    position: int
    wait: str


class HeldStep(FailedStep):
    """A failed step that waits for an operator action.

    Args:
        kind: Distinguishes it from a dead letter.
        id: ``{saga}/{position}``.
        since: When it failed.
        until: The deadline: without an action, the step then fails and the saga is rolled back.
    """

    kind: Literal["held_step"] = "held_step"
    id: str
    since: datetime
    until: datetime


class HeldStepAuditEntry(StoredRecord):
    """Audit entry of one operator action. Entries are never changed.

    Args:
        number: 1 for the first entry of the saga.
        at: When.
        actor: The operator.
        action: The action.
        step: The step's name.
        position: The step's position.
        reason: The operator's reason.
        error: The error that the step was held for.
        payload: The new request, if a retry set one.
        result: The result of a completed step.
        signed_action: The operator's signed action; None if unsigned, and then the actor is unverified.
    """

    number: int
    at: datetime
    actor: str
    action: HeldStepAction
    step: str
    position: int
    reason: str = ""
    error: str
    payload: JsonValue = None
    result: JsonValue = None
    signed_action: SignedAction | None = None


class HeldStepDetail(BaseModel):
    """A held step with its audit log.

    Args:
        step: The step.
        outcome: How the hold ended; None while the step is held.
        request_schema: JSON schema of the step's request; None or True for any value.
        result_schema: JSON schema of its result.
        audit_log: The operator actions on the step.
    """

    step: HeldStep
    outcome: HoldOutcome | None = None
    request_schema: JsonValue = None
    result_schema: JsonValue = None
    audit_log: list[HeldStepAuditEntry] = []


class HeldStepFilter(_Input):
    """Filter of held steps; all given fields must match.

    Args:
        saga_id: The saga.
        service: The saga's service.
        step: The step's name.
        signature: The error signature.
        before: When it failed at the latest, such as the time of the list that the operator looked at.
    """

    saga_id: str | None = None
    service: str | None = None
    step: str | None = None
    signature: str | None = None
    before: AwareDatetime | None = None


class HeldStepListRequest(HeldStepFilter):
    """Request for one page of held steps.

    Args:
        after: The ``next`` of the page before; None for the first page.
        limit: Items per page.
    """

    after: str | None = Field(default=None, max_length=2000)
    limit: int = Field(default=50, ge=1, le=MAX_PAGE)


class HeldStepGroup(BaseModel):
    """Number of held steps with the same error signature."""

    signature: str
    count: int


class HeldStepPage(BaseModel):
    """One page of held steps, oldest first.

    Args:
        items: The held steps of this page.
        next: Cursor of the next page; None on the last one.
        total: Number of matches.
        groups: All matches by error signature, largest group first, at most 50 groups.
    """

    items: list[HeldStep]
    next: str | None = None
    total: int
    groups: list[HeldStepGroup] = []


class HeldStepActionRequest(_Input):
    """Operator action on one held step.

    Args:
        id: The held step.
        actor: The operator.
        reason: Why.
        payload: The new request of a retry; None keeps the current one.
        result: The result of a completed step.
        signed_action: The operator's signed action, where actions must be signed; see `sign_held_step_action`.
    """

    id: str
    actor: UserName
    reason: Reason = ""
    payload: JsonValue = None
    result: JsonValue = None
    signed_action: SignedAction | None = None


class StepHoldAction(HeldStepActionRequest):
    """Operator action, as `SagaHeldSteps` receives it.

    Args:
        position: The step.
        action: The action.
    """

    position: int
    action: HeldStepAction


class HeldStepReceipt(BaseModel):
    """Result of an operator action.

    Args:
        id: The held step.
        action: The action.
        number: The number of the audit entry.
    """

    id: str
    action: HeldStepAction
    number: int


class HeldStepBulkRequest(_Input):
    """Operator action on the held steps that match a filter, one batch of them.

    Args:
        action: The action.
        actor: The operator.
        reason: Why.
        filter: The held steps; at least one field is required.
        result: The result of all steps, if the action completes them.
        signed_actions: The operator's signed actions by ID. Where actions must be signed, held steps without one are
            refused: they appeared after the operator looked.
        after: The ``next`` of the batch before; None for the first batch.
        limit: Held steps per batch.
        dry_run: Only return the IDs.
    """

    action: HeldStepAction
    actor: UserName
    reason: Reason = ""
    filter: HeldStepFilter
    result: JsonValue = None
    signed_actions: dict[str, SignedAction] = Field(default={}, max_length=MAX_PAGE)
    after: str | None = Field(default=None, max_length=2000)
    limit: int = Field(default=MAX_PAGE, ge=1, le=MAX_PAGE)
    dry_run: bool = False


class HeldStepBulkReceipt(BaseModel):
    """Result of one batch.

    Args:
        done: IDs of the held steps that the action was applied to; with ``dry_run``, of all that match.
        refused: Errors by ID of the others.
        next: Cursor of the next batch; None after the last one.
    """

    done: list[str] = []
    refused: dict[str, str] = {}
    next: str | None = None


hold_step: KeyedTarget[HoldRequest, HoldAnswer] = KeyedTarget(SAGA_HELD_STEPS, "hold", HoldRequest, HoldAnswer)
read_outcome: KeyedTarget[OutcomeRequest, HoldAnswer] = KeyedTarget(
    SAGA_HELD_STEPS, "outcome", OutcomeRequest, HoldAnswer
)
release_steps: KeyedTarget[Release, None] = KeyedTarget(SAGA_HELD_STEPS, "release", Release, None)
list_held_steps: Target[HeldStepListRequest, HeldStepPage] = Target(
    HELD_STEPS, "list", HeldStepListRequest, HeldStepPage
)
show_held_step: Target[str, HeldStepDetail] = Target(HELD_STEPS, "show", str, HeldStepDetail)
act_on_held_steps: Target[HeldStepBulkRequest, HeldStepBulkReceipt] = Target(
    HELD_STEPS, "act_on_many", HeldStepBulkRequest, HeldStepBulkReceipt
)


def held_step_action(action: HeldStepAction) -> Target[HeldStepActionRequest, HeldStepReceipt]:
    """Return the target of an action on one held step."""
    return Target(HELD_STEPS, action.value, HeldStepActionRequest, HeldStepReceipt)
