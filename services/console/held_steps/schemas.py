"""Messages of the held steps API."""

from __future__ import annotations

from pydantic import AwareDatetime, BaseModel, ConfigDict, JsonValue

from perdure._runtime.plain_text import Reason
from perdure.saga.held_step_messages import HeldStepAction, HeldStepFilter


class HeldStepActionInput(BaseModel):
    """The parameters of an action on a held step.

    Args:
        reason: The reason.
        payload: For a retry, the new request; null keeps the current one.
        result: For complete, the result of the step.
        since: `since` of the held step as shown. The action fails if the step was held again since.
    """

    model_config = ConfigDict(extra="forbid")

    reason: Reason = ""
    payload: JsonValue = None
    result: JsonValue = None
    since: AwareDatetime | None = None


class HeldStepBulkInput(BaseModel):
    """An action on all held steps that match a filter.

    Args:
        action: The action.
        filter: The filter, with at least one field; ``before`` leaves out later failures.
        reason: The reason.
        result: For complete, the result of all steps.
    """

    model_config = ConfigDict(extra="forbid")

    action: HeldStepAction
    filter: HeldStepFilter
    reason: Reason = ""
    result: JsonValue = None
