"""What changed between two looks at a workflow's status: for streams of events, and pure."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, JsonValue

from perdure.status import StatusData


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
