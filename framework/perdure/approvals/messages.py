"""What goes to and from approvals.

What comes from outside (`DecisionRequest`, `ApprovalRequest`) knows no other fields than its own: a rule that this
version doesn't know must not be skipped in silence. What is kept or shown ignores fields of later versions.
"""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    ValidationInfo,
    field_validator,
)

from perdure.approvals.people import Person, canonical_person

MAX_ID_LENGTH: Final = 256
MAX_APPROVERS: Final = 100
MAX_TIMEOUT: Final = timedelta(days=3650)

ApprovalId: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=MAX_ID_LENGTH)]
"""An approval's id: the opener's choice, and the key of the object."""

Reason: TypeAlias = Annotated[str, StringConstraints(max_length=2000)]
"""Why, in a person's words; may be empty."""


class ApprovalResult(StrEnum):
    """How an approval ended; it never changes again."""

    APPROVED = "approved"
    REJECTED = "rejected"
    TIMED_OUT = "timed_out"
    WITHDRAWN = "withdrawn"


ApprovalState: TypeAlias = Literal["expected", "open"] | ApprovalResult
"""``expected``: decisions are in, but nobody has opened it yet. ``open``: it can be decided. Else how it ended."""


class _Input(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class ApprovalRequest(_Input):
    """What an orchestrator asks people to decide.

    Args:
        approval_id: The approval; the object's key.
        title: What is to be decided, in a sentence.
        requester: Who asks, and so may not decide; empty when it's nobody in particular.
        approvers: Who may decide; anyone but the requester when empty. Who is named twice counts once.
        quorum: How many approvals are needed.
        timeout: How long people have.
        payload: What the approvers are shown.
        awakeable: Who waits for the outcome, an `ApprovalOutcome`.
    """

    approval_id: ApprovalId
    title: Annotated[str, StringConstraints(min_length=1, max_length=500)]
    requester: Annotated[str, StringConstraints(max_length=1000), AfterValidator(canonical_person)] = ""
    approvers: list[Person] = Field(default=[], max_length=MAX_APPROVERS)
    quorum: int = Field(default=1, ge=1, le=MAX_APPROVERS, validate_default=True)
    timeout: timedelta = Field(gt=timedelta(0), le=MAX_TIMEOUT)
    payload: JsonValue = None
    awakeable: Annotated[str, StringConstraints(min_length=1, max_length=500)]

    @field_validator("approvers")
    @classmethod
    def _each_once(cls, people: list[str]) -> list[str]:
        return list(dict.fromkeys(people))

    @field_validator("quorum")
    @classmethod
    def _can_be_reached(cls, quorum: int, info: ValidationInfo) -> int:
        approvers, requester = info.data.get("approvers"), info.data.get("requester")
        able = [person for person in approvers or [] if person != requester]
        if approvers and quorum > len(able):
            raise ValueError(
                f"{quorum} approvals are needed, but only {len(able)} approvers may decide (the requester never may)"
            )
        return quorum


class ApprovalOutcome(_Kept):
    """How an approval ended, as those who wait for it are told.

    Args:
        approval_id: The approval.
        outcome: How it ended.
        decided_by: Whose decisions made it so; empty when time ran out.
        reason: Why: what they said, or what happened.
    """

    approval_id: str
    outcome: ApprovalResult
    decided_by: list[str] = []
    reason: str = ""


class DecisionRequest(_Input):
    """A person's approval or rejection, as it comes in; the handler says which of the two.

    Args:
        actor: Who decides.
        reason: Why.
    """

    actor: Person
    reason: Reason = ""


class Decision(_Kept):
    """A person's decision, as it is kept.

    Args:
        actor: Who decided.
        approve: True for an approval, False for a rejection.
        reason: Why.
        at: When.
    """

    actor: str
    approve: bool
    reason: str = ""
    at: AwareDatetime

    @property
    def act(self) -> Literal["approve", "reject"]:
        """What was decided, in a word."""
        return "approve" if self.approve else "reject"


class DecisionReceipt(_Kept):
    """What a person gets for a decision: the one that counts, and how the approval stands now.

    Args:
        approval_id: The approval.
        actor: Who decided.
        act: What was decided.
        reason: Why, as said the first time.
        at: When it was decided, the first time.
        status: How the approval stands.
    """

    approval_id: str
    actor: str
    act: Literal["approve", "reject"]
    reason: str
    at: AwareDatetime
    status: ApprovalState


class Withdrawal(_Input):
    """The end of an opener's interest in an approval.

    Args:
        awakeable: Who no longer waits; the approval is withdrawn when it was the last one. None withdraws it for all.
        reason: Why.
    """

    awakeable: str | None = None
    reason: Reason = ""


class Expiry(_Kept):
    """The end of the time for an approval, sent when it was opened.

    Args:
        deadline: The deadline that it is about; another than the approval's own does nothing.
    """

    deadline: AwareDatetime


class AuditEntry(_Kept):
    """One entry of an approval's trail. Entries are added, never changed.

    Args:
        seq: 1 for the first entry.
        at: When.
        actor: Who; None when it was nobody, as when time ran out.
        act: ``open``, ``approve``, ``reject``, ``expire`` or ``withdraw``.
        reason: Why, in the actor's words.
        result: What came of it: ``opened``, ``joined``, ``kept`` (until it is opened), ``counted``, ``left``, how the
            approval ended, or ``refused:`` and the code of the refusal.
    """

    seq: int
    at: AwareDatetime
    actor: str | None
    act: Literal["open", "approve", "reject", "expire", "withdraw"]
    reason: str = ""
    result: str


class ApprovalStatus(_Kept):
    """An approval, as it is shown.

    Args:
        approval_id: The approval.
        status: ``open``, or how it ended.
        title: What is to be decided.
        requester: Who asks; empty when it's nobody in particular.
        approvers: Who may decide; empty when anyone but the requester may.
        quorum: How many approvals are needed.
        payload: What the approvers are shown.
        payload_digest: SHA-256 of the payload's canonical JSON.
        opened_at: When it was opened.
        deadline: Until when it can be decided.
        decided_at: When it ended.
        decided_by: Whose decisions ended it.
        reason: Why it ended so.
        decisions: What was decided, in the order of counting.
        refusals: How many acts were refused; the trail holds the first ones of them.
        trail: Everything that happened, in order.
    """

    approval_id: str
    status: ApprovalState
    title: str
    requester: str
    approvers: list[str]
    quorum: int
    payload: JsonValue
    payload_digest: str
    opened_at: AwareDatetime
    deadline: AwareDatetime
    decided_at: AwareDatetime | None
    decided_by: list[str]
    reason: str
    decisions: list[Decision]
    refusals: int
    trail: list[AuditEntry]


class InboxItem(_Kept):
    """An open approval that waits for someone.

    Args:
        approval_id: The approval; decide at ``/Approvals/{approval_id}/approve`` or ``reject``.
        title: What is to be decided.
        requester: Who asks.
        quorum: How many approvals are needed.
        opened_at: When it was opened.
        deadline: Until when it can be decided.
        payload: What the approvers are shown.
        payload_digest: SHA-256 of the payload's canonical JSON.
    """

    approval_id: str
    title: str
    requester: str
    quorum: int
    opened_at: AwareDatetime
    deadline: AwareDatetime
    payload: JsonValue
    payload_digest: str
