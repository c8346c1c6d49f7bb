"""A workflow's status: one shape for all, written by the main handler and read by anyone."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

import restate
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from perdure.determinism import Time
from perdure.errors import InvalidInput
from perdure.state import State, StateContext

STATUS_KEY = "workflow_status"


class StatusData(BaseModel):
    """How far a workflow is.

    Args:
        phase: Where it stands, in a word.
        progress: From 0 to 1.
        current_step: What it is doing.
        completed_steps: What it has done, in order.
        is_complete: True when it has ended, well or not.
        error: Why it failed.
        metadata: More facts.
        updated_at: When this was written; set by `update_status`.
    """

    model_config = ConfigDict(extra="forbid")

    phase: str
    progress: float = Field(default=0.0, ge=0.0, le=1.0)
    current_step: str | None = None
    completed_steps: list[str] = []
    is_complete: bool = False
    error: str | None = None
    metadata: dict[str, JsonValue] = {}
    updated_at: datetime | None = None


async def update_status(ctx: restate.WorkflowContext, status: StatusData, key: str = STATUS_KEY) -> StatusData:
    """Write a workflow's status, with the time.

    Args:
        ctx: The context of the workflow's main handler.
        status: What to write; its ``updated_at`` is replaced by the journaled time, so that a replay writes the same.
        key: The state entry.

    Returns:
        What was written.

    Raises:
        InvalidInput: The progress is not between 0 and 1.
        ReadOnlyStateError: The handler is shared; terminal, 400.
    """
    if not 0.0 <= status.progress <= 1.0:
        raise InvalidInput(f"progress must be from 0 to 1, got {status.progress}", metadata={"field": "progress"})
    written = status.model_copy(update={"updated_at": await Time(ctx).now()})
    await State(ctx, key, StatusData).set(written)
    return written


class WorkflowStatus:
    """Reads a workflow's status, from any of its handlers.

    Args:
        ctx: The workflow's context, main or shared.
        key: The state entry.
    """

    def __init__(self, ctx: StateContext, key: str = STATUS_KEY) -> None:
        self._state = State(ctx, key, StatusData)

    async def get_status(self) -> StatusData | None:
        """Return the status, or None when none was written yet."""
        return await self._state.get()


class ChangeKind(StrEnum):
    """What changed; also the name of the event."""

    PHASE = "phase"
    STEP = "step"
    STEP_COMPLETED = "step_completed"
    PROGRESS = "progress"
    METADATA = "metadata"
    COMPLETED = "completed"
    FAILED = "failed"


class StatusChange(BaseModel):
    """One change of a status.

    Args:
        kind: What changed.
        value: What it is now: the phase, the step, the progress, the changed metadata, or the error.
    """

    model_config = ConfigDict(frozen=True)

    kind: ChangeKind
    value: JsonValue = None


def status_changes(before: StatusData | None, after: StatusData) -> list[StatusChange]:
    """Return what changed from one status to the next, in the order in which it is told.

    Nothing is said of a new time alone. A step that was completed and vanished again, as with a workflow that starts
    over, is not told.

    Args:
        before: The status that was seen last; None for none yet.
        after: The status now.
    """
    was = before or StatusData(phase="")
    changes: list[StatusChange] = []
    if after.phase != was.phase:
        changes.append(StatusChange(kind=ChangeKind.PHASE, value=after.phase))
    seen = list(was.completed_steps)
    for step in after.completed_steps:
        if step in seen:
            seen.remove(step)  # a name may come twice
        else:
            changes.append(StatusChange(kind=ChangeKind.STEP_COMPLETED, value=step))
    if after.current_step != was.current_step:
        changes.append(StatusChange(kind=ChangeKind.STEP, value=after.current_step))
    if after.progress != was.progress:
        changes.append(StatusChange(kind=ChangeKind.PROGRESS, value=after.progress))
    changed = {name: value for name, value in after.metadata.items() if was.metadata.get(name) != value}
    if changed:
        changes.append(StatusChange(kind=ChangeKind.METADATA, value=changed))
    if after.error is not None and after.error != was.error:
        changes.append(StatusChange(kind=ChangeKind.FAILED, value=after.error))
    if after.is_complete and not was.is_complete:
        changes.append(StatusChange(kind=ChangeKind.COMPLETED, value=after.error is None))
    return changes
