"""Messages of the dead letters API."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from perdure._runtime.plain_text import Reason
from perdure.saga.messages import DeadLetter, DeadLetterFilter
from perdure.saga.schema import AuditEntry, OperatorAction

MAX_BULK: Final = 1000
"""The maximal number of dead letters of a bulk action."""

RedriveCount = Annotated[int, Field(ge=0, le=1_000_000)]


class DeadLetterDetail(BaseModel):
    """A dead letter with the audit log of its step."""

    letter: DeadLetter
    audit_log: list[AuditEntry]


class DeadLetterActionInput(BaseModel):
    """The parameters of an action on a dead letter.

    Args:
        reason: The reason.
        payload: For a redrive, the new payload; null keeps the current one.
        redriven: `redriven` of the dead letter as shown. The action fails if it was redriven since.
    """

    model_config = ConfigDict(extra="forbid")

    reason: Reason = ""
    payload: JsonValue = None
    redriven: RedriveCount | None = None


class BulkActionInput(BaseModel):
    """An action on all dead letters that match a filter.

    Args:
        action: The action.
        filter: The filter, with at least one field.
        reason: The reason.
        letters: `redriven` of each dead letter as shown, by ID. The action fails if the matching ones have changed.
            Null acts on those that match now.
    """

    model_config = ConfigDict(extra="forbid")

    action: OperatorAction
    filter: DeadLetterFilter
    reason: Reason = ""
    letters: Annotated[dict[str, RedriveCount], Field(max_length=MAX_BULK)] | None = None


class NewPayload(BaseModel):
    """A payload to compare with the current one."""

    model_config = ConfigDict(extra="forbid")

    payload: JsonValue
