"""Messages of the dead letters API."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from perdure._runtime.plain_text import Reason
from perdure.saga.messages import Cursor, DeadLetter, DeadLetterFilter
from perdure.saga.schema import AuditEntry, OperatorAction

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
    """An action on all dead letters that match a filter, in batches of at most 100.

    Args:
        action: The action.
        filter: The filter, with at least one field.
        reason: The reason.
        digest: The digest of the matching dead letters as shown. The action fails if they have changed. Null acts on
            those that match now.
        after: `next` of the previous batch's receipt; null for the first batch.
        until: `until` of the previous batch's receipt; null for the first batch.
    """

    model_config = ConfigDict(extra="forbid")

    action: OperatorAction
    filter: DeadLetterFilter
    reason: Reason = ""
    digest: Annotated[str, Field(max_length=64)] | None = None
    after: Cursor | None = None
    until: Cursor | None = None


class NewPayload(BaseModel):
    """A payload to compare with the current one."""

    model_config = ConfigDict(extra="forbid")

    payload: JsonValue
