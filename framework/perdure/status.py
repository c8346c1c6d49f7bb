"""Status of a workflow: written by its main handler, read by any of its handlers."""

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
    """Progress of a workflow.

    Args:
        phase: Phase of the workflow.
        progress: From 0 to 1.
        current_step: Name of the running step.
        completed_steps: Names of the completed steps, in order.
        is_complete: True when the workflow has ended, successfully or not.
        error: Reason of the failure.
        metadata: More details.
        updated_at: Time of this update; set by `update_status`. In the status of a saga, the time of the last entry in
            its journal or of the last change of its rollback; None if the engine's admin API is not known.
        started_at: Start of the saga; None if the engine's admin API is not known, and in other statuses.
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
    started_at: datetime | None = None


async def update_status(ctx: restate.WorkflowContext, status: StatusData, key: str = STATUS_KEY) -> StatusData:
    """Write the status of a workflow, with the journaled time as ``updated_at``.

    Args:
        ctx: The context of the workflow's main handler.
        status: The status.
        key: Name of the state entry.

    Returns:
        The status with its time.

    Raises:
        InvalidInput: The progress is not between 0 and 1.
        ReadOnlyStateError: The handler is shared; terminal, 400.

    Example:
        await update_status(ctx, StatusData(phase="shipping", progress=0.5))
    """
    if not 0.0 <= status.progress <= 1.0:
        raise InvalidInput(f"progress must be from 0 to 1, got {status.progress}", metadata={"field": "progress"})
    updated = status.model_copy(update={"updated_at": await Time(ctx).now()})
    await State(ctx, key, StatusData).set(updated)
    return updated


class WorkflowStatus:
    """Reads the status of a workflow from any of its handlers.

    Args:
        ctx: The workflow's context, main or shared.
        key: Name of the state entry.
    """

    def __init__(self, ctx: StateContext, key: str = STATUS_KEY) -> None:
        self._state = State(ctx, key, StatusData)

    async def get_status(self) -> StatusData | None:
        """Return the status, or None before the first update."""
        return await self._state.get()


class ChangeKind(StrEnum):
    """Kind of a change; also the name of its event."""

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
        kind: Kind of the change.
        value: The new phase, step, progress, metadata or error.
    """

    model_config = ConfigDict(frozen=True)

    kind: ChangeKind
    value: JsonValue = None


def status_changes(before: StatusData | None, after: StatusData) -> list[StatusChange]:
    """Return the changes between two statuses, in the order of their events.

    A new ``updated_at`` alone is no change, and neither is a completed step that disappears.

    Args:
        before: The previous status; None for a new workflow.
        after: The current status.
    """
    before = before or StatusData(phase="")
    changes: list[StatusChange] = []
    if after.phase != before.phase:
        changes.append(StatusChange(kind=ChangeKind.PHASE, value=after.phase))
    known = list(before.completed_steps)
    for step in after.completed_steps:
        if step in known:
            known.remove(step)  # a name may occur twice
        else:
            changes.append(StatusChange(kind=ChangeKind.STEP_COMPLETED, value=step))
    if after.current_step != before.current_step:
        changes.append(StatusChange(kind=ChangeKind.STEP, value=after.current_step))
    if after.progress != before.progress:
        changes.append(StatusChange(kind=ChangeKind.PROGRESS, value=after.progress))
    changed = {name: value for name, value in after.metadata.items() if before.metadata.get(name) != value}
    if changed:
        changes.append(StatusChange(kind=ChangeKind.METADATA, value=changed))
    if after.error is not None and after.error != before.error:
        changes.append(StatusChange(kind=ChangeKind.FAILED, value=after.error))
    if after.is_complete and not before.is_complete:
        changes.append(StatusChange(kind=ChangeKind.COMPLETED, value=after.error is None))
    return changes
