"""Request that opens an approval.

An approval has one or more stages, each with its own approvers, quorum and timeout. A stage that times out escalates to
the next one; ``on_timeout`` of the last stage decides the result. The request refuses unknown fields, so that a rule of
a later version is never ignored.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Any, Final, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import from_json

from perdure.security.user_names import (
    Approver,
    GroupName,
    UserName,
    VetoHolder,
    check_name,
    group_of,
    is_group,
    shares_mailbox,
)

MAX_ID_LENGTH: Final = 256
MAX_APPROVERS: Final = 100
MAX_STAGES: Final = 10
MAX_REMINDERS: Final = 100
MAX_PAYLOAD: Final = 256 * 1024
"""Bytes of JSON; the payload is copied into the inbox of every approver."""
MAX_TIMEOUT: Final = timedelta(days=3650)
_WRAPPING_LEVELS: Final = 10
"""JSON levels that messages and records add around a payload; parsers accept 200 in total."""
_EXCLUDED: Final = ("requester", "requester_owner", "subject")

WaitId: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=100)]
AwakeableId: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=500)]
ApprovalId: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=MAX_ID_LENGTH)]
"""ID of an approval, chosen by its opener; the key of the virtual object."""
Name: TypeAlias = Annotated[str, StringConstraints(max_length=1000), AfterValidator(check_name)]
"""Canonical name of a person or program that may not vote; may be empty."""


class OnTimeout(StrEnum):
    """Effect of a stage's timeout."""

    ERROR = "error"
    """The approval times out; the waiting orchestration gets a terminal error 408."""
    REJECT = "reject"
    APPROVE = "approve"
    ESCALATE = "escalate"
    """The next stage begins."""


def _unique(names: list[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _check_interval(interval: timedelta | None, info: ValidationInfo) -> timedelta | None:
    timeout = info.data.get("timeout")
    if interval is not None and isinstance(timeout, timedelta) and timeout > interval * MAX_REMINDERS:
        raise ValueError(f"more than {MAX_REMINDERS} reminders within {timeout}")
    return interval


_Approvers: TypeAlias = Annotated[list[Approver], Field(max_length=MAX_APPROVERS), AfterValidator(_unique)]
_Quorum: TypeAlias = Annotated[int, Field(ge=1, le=MAX_APPROVERS)]
_Timeout: TypeAlias = Annotated[timedelta, Field(gt=timedelta(0), le=MAX_TIMEOUT)]
_Interval: TypeAlias = Annotated[timedelta | None, Field(gt=timedelta(0)), AfterValidator(_check_interval)]


class Requester(BaseModel):
    """Requester and subject of an approval. Neither may vote.

    Args:
        requester: Requesting person or program, such as ``key:shop``; may be empty.
        requester_verified: Whether the requester was authenticated.
        requester_owner: Owner of the requesting program's API key; empty for a person.
        subject: UserName affected by the request, as stated by the caller; may be empty.
    """

    requester: str = ""
    requester_verified: bool = False
    requester_owner: str = ""
    subject: str = ""

    @property
    def requester_fields(self) -> dict[str, Any]:
        """The fields of this class, to copy them to another record."""
        return {name: getattr(self, name) for name in Requester.model_fields}

    @property
    def requester_text(self) -> str:
        """Requester and subject as one phrase; empty for an approval with neither."""
        name = self.requester if self.requester_verified or not self.requester else f"{self.requester} (unverified)"
        return f"{name}, for {self.subject}".removeprefix(", ") if self.subject not in ("", self.requester) else name

    @property
    def excluded(self) -> tuple[str, ...]:
        """Users excluded from voting: the requester, the owner of its API key, and the subject."""
        return tuple(dict.fromkeys(filter(None, (self.requester, self.requester_owner, self.subject))))

    def excludes(self, person: str) -> bool:
        """Return whether a person, or an alias of their mailbox, may not vote."""
        return shares_mailbox(person, self.excluded)


class Stage(BaseModel):
    """Stage of an approval that follows when the previous one times out.

    Votes of the previous stages count if their voters are approvers of this stage too.

    Args:
        approvers: People and groups that may vote; empty for anyone except requester and subject.
        quorum: Number of approvals needed.
        timeout: Duration of the stage.
        remind_every: Interval of reminders; None for no reminders.
        on_timeout: Effect of the timeout. Defaults to ``escalate`` if a stage follows, else to ``error``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    approvers: _Approvers = []
    quorum: _Quorum = 1
    timeout: _Timeout
    remind_every: _Interval = None
    on_timeout: OnTimeout | None = None


class ApprovalRequest(Requester):
    """Request for an approval. Its own fields describe the first stage.

    Args:
        approval_id: Key of the virtual object.
        title: The request in one sentence.
        requester: The authenticated caller, a person or a program such as ``key:shop``; without one, the subject. May
            not vote.
        requester_verified: Whether the requester was authenticated. The library sets it, see `Orchestration.caller`.
        requester_owner: Owner of the requesting program's API key; empty for a person. May not vote.
        subject: UserName affected by the request, as stated by the caller; may be empty. May not vote.
        groups: Members by group. Membership in other groups is taken from the voter's credential.
        approvers: People and groups (``group:finance``) that may vote; empty for anyone except requester, owner and
            subject.
        quorum: Number of approvals needed, of different people.
        veto: People and groups whose single rejection rejects the approval, in every stage. ``anyone`` gives every
            approver a veto.
        timeout: Duration of the stage.
        remind_every: Interval of reminders; None for no reminders.
        on_timeout: Effect of the timeout. Defaults to ``escalate`` if a stage follows, else to ``error``.
        escalation: The following stages.
        payload: The data that approvers decide on; at most 256 KiB of JSON.
        wait: Random ID of this wait. `Approvals` returns it with the outcome, which proves the origin of the outcome.
        awakeable: Awakeable to complete when there is an outcome. Any client may complete it, so it carries no data.
        opener: The waiting invocation. Its end ends the wait.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    approval_id: ApprovalId
    title: Annotated[str, StringConstraints(min_length=1, max_length=500)]
    requester: Name = ""
    requester_owner: Name = ""
    subject: Name = ""
    groups: dict[GroupName, list[UserName]] = Field(default={}, max_length=MAX_APPROVERS)
    approvers: _Approvers = []
    quorum: _Quorum = Field(default=1, validate_default=True)
    veto: Annotated[list[VetoHolder], Field(max_length=MAX_APPROVERS), AfterValidator(_unique)] = []
    timeout: _Timeout
    remind_every: _Interval = None
    on_timeout: OnTimeout | None = None
    escalation: list[Stage] = Field(default=[], max_length=MAX_STAGES - 1)
    payload: JsonValue = None
    wait: WaitId
    awakeable: AwakeableId
    opener: Annotated[str, StringConstraints(max_length=500)] = ""

    @field_validator("groups")
    @classmethod
    def _check_groups(cls, groups: dict[str, list[str]]) -> dict[str, list[str]]:
        for group, members in groups.items():
            if not 0 < len(members) <= MAX_APPROVERS:
                raise ValueError(f"group '{group}' has {len(members)} members; 1 to {MAX_APPROVERS} are allowed")
        return {group: _unique(members) for group, members in groups.items()}

    @field_validator("quorum")
    @classmethod
    def _check_first_quorum(cls, quorum: int, info: ValidationInfo) -> int:
        _check_quorum(quorum, info.data.get("approvers") or [], info.data)
        return quorum

    @field_validator("payload")
    @classmethod
    def _check_payload(cls, payload: JsonValue) -> JsonValue:
        text = json.dumps(payload, ensure_ascii=False).encode(errors="surrogatepass")
        if len(text) > MAX_PAYLOAD:
            raise ValueError(f"{len(text)} bytes of JSON exceed the limit of {MAX_PAYLOAD}")
        try:
            from_json(_WRAPPING_LEVELS * b"[" + text + _WRAPPING_LEVELS * b"]")
        except ValueError as error:
            raise ValueError(f"the payload cannot be read back as JSON: {error}") from error
        return payload

    @field_validator("escalation")
    @classmethod
    def _check_quorums(cls, stages: list[Stage], info: ValidationInfo) -> list[Stage]:
        for stage in stages:
            _check_quorum(stage.quorum, stage.approvers, info.data)
        return stages

    @model_validator(mode="after")
    def _check_timeouts(self) -> ApprovalRequest:
        effects = [self.on_timeout, *(stage.on_timeout for stage in self.escalation)]
        if effects[-1] is OnTimeout.ESCALATE:
            raise ValueError("on_timeout: the last stage cannot escalate")
        if any(effect not in (None, OnTimeout.ESCALATE) for effect in effects[:-1]):
            raise ValueError("on_timeout: a stage that another stage follows must escalate")
        return self

    @property
    def total_timeout(self) -> timedelta:
        """Duration of all stages."""
        return sum((stage.timeout for stage in self.escalation), self.timeout)

    @property
    def stages(self) -> list[Stage]:
        """All stages in order, with the effect of each timeout."""
        first = Stage(
            approvers=self.approvers,
            quorum=self.quorum,
            timeout=self.timeout,
            remind_every=self.remind_every,
            on_timeout=self.on_timeout,
        )
        stages = [first, *self.escalation]
        defaults = [OnTimeout.ESCALATE] * (len(stages) - 1) + [OnTimeout.ERROR]
        return [
            stage.model_copy(update={"on_timeout": stage.on_timeout or default})
            for stage, default in zip(stages, defaults, strict=True)
        ]


def eligible_people(
    approvers: Iterable[str], groups: Mapping[str, Iterable[str]], excluded: Iterable[str]
) -> frozenset[str] | None:
    """Return the eligible voters; None if any user is eligible or the members of a group are unknown."""
    people: set[str] = set()
    for name in approvers:
        if not is_group(name):
            people.add(name)
        elif group_of(name) in groups:
            people.update(groups[group_of(name)])
        else:
            return None
    names = tuple(excluded)
    return frozenset(person for person in people if not shares_mailbox(person, names)) if people else None


def _check_quorum(quorum: int, approvers: list[str], data: Mapping[str, object]) -> None:
    groups = data.get("groups")
    excluded = [name for field in _EXCLUDED if isinstance(name := data.get(field), str)]
    if not approvers or not isinstance(groups, dict) or len(excluded) < len(_EXCLUDED):
        return  # anyone may vote, or another field is invalid and reported
    people = eligible_people(approvers, groups, excluded)
    if people is None:
        return
    if quorum > len(people):
        raise ValueError(
            f"{quorum} approvals are needed, but only {len(people)} approvers may vote (requester and subject may not)"
        )
    if len(people) > MAX_APPROVERS:
        raise ValueError(f"{len(people)} people may vote, including members of groups; at most {MAX_APPROVERS} may")
