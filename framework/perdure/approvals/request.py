"""What people are asked: who may decide, how many must, until when, and what comes after that.

An approval has one stage or more. Each has its own approvers, quorum and time; when the time of one is over, it
escalates to the next, and what the end of the last one means is said by its ``on_timeout``.

A request knows no other fields than its own: a rule that this version doesn't know must not be skipped in silence.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Final, TypeAlias

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
"""Bytes of JSON: what is shown is copied into each approver's inbox."""
_DEEPER: Final = 10
"""How many levels of JSON lie around a payload where it is kept and shown; parsers take 200 in all."""
MAX_TIMEOUT: Final = timedelta(days=3650)
_EXCLUDED: Final = ("requester", "requester_owner", "subject")

WaitId: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=100)]
AwakeableId: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=500)]
ApprovalId: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=MAX_ID_LENGTH)]
"""An approval's id: the opener's choice, and the key of the object."""


Name: TypeAlias = Annotated[str, StringConstraints(max_length=1000), AfterValidator(check_name)]
"""The canonical name of a person or program that may not decide; may be empty."""


class OnTimeout(StrEnum):
    """What it means that a stage's time is over."""

    ERROR = "error"
    """It timed out: who waits gets a terminal 408."""
    REJECT = "reject"
    APPROVE = "approve"
    ESCALATE = "escalate"
    """The next stage begins."""


class Stage(BaseModel):
    """A further stage of an approval, entered when the one before it was not decided in time.

    Who decided before keeps their decision; it counts here when they are approvers here, too.

    Args:
        approvers: Who may decide from then on, people and groups; anyone when empty, but never requester and subject.
        quorum: How many approvals are needed.
        timeout: How long they have.
        remind_every: They are reminded at this interval; never when left out.
        on_timeout: What the end of the time means: ``escalate`` when a stage follows, else ``error`` by default.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    approvers: list[Approver] = Field(default=[], max_length=MAX_APPROVERS)
    quorum: int = Field(default=1, ge=1, le=MAX_APPROVERS)
    timeout: timedelta = Field(gt=timedelta(0), le=MAX_TIMEOUT)
    remind_every: timedelta | None = Field(default=None, gt=timedelta(0))
    on_timeout: OnTimeout | None = None

    @field_validator("approvers")
    @classmethod
    def _each_once(cls, people: list[str]) -> list[str]:
        return list(dict.fromkeys(people))

    @field_validator("remind_every")
    @classmethod
    def _not_too_often(cls, interval: timedelta | None, info: ValidationInfo) -> timedelta | None:
        return _checked_interval(interval, info.data.get("timeout"))


class ApprovalRequest(BaseModel):
    """What an orchestrator asks people to decide. Its own fields are the first stage.

    Args:
        approval_id: The approval; the object's key.
        title: What is to be decided, in a sentence.
        requester: The authenticated caller that asks, a person or a program such as ``key:shop``; without one, the
            subject. May not decide.
        requester_verified: Whether the requester was authenticated. The library sets it, see `Orchestration.caller`.
        requester_owner: The person who made the requesting program's API key; empty for a person. May not decide.
        subject: The person whom the business is about, by the caller's word; may be empty. May not decide.
        groups: Members of groups, by the group's name. A group that is not in here has as members who can prove it.
        approvers: Who may decide, people and groups (``group:finance``); anyone when empty. Requester, owner and
            subject never may. Who is named twice counts once.
        quorum: How many approvals are needed, of different people.
        veto: Whose single rejection ends it, whatever the quorum; they may reject at every stage. ``anyone`` stands for
            whoever may decide.
        timeout: How long people have.
        remind_every: They are reminded at this interval; never when left out.
        on_timeout: What the end of the time means: ``escalate`` when there are more stages, else ``error`` by default.
        escalation: The stages that follow, each after the time of the one before.
        payload: What the approvers are shown; at most 256 KiB of JSON.
        wait: Random id of this wait, which `Approvals` returns with the outcome to prove where it comes from.
        awakeable: Wakes the waiter when there is an outcome. It carries no data: anybody may complete it.
        opener: The invocation that waits; when it is gone, so is its interest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    approval_id: ApprovalId
    title: Annotated[str, StringConstraints(min_length=1, max_length=500)]
    requester: Name = ""
    requester_verified: bool = False
    requester_owner: Name = ""
    subject: Name = ""
    groups: dict[GroupName, list[UserName]] = Field(default={}, max_length=MAX_APPROVERS)
    approvers: list[Approver] = Field(default=[], max_length=MAX_APPROVERS)
    quorum: int = Field(default=1, ge=1, le=MAX_APPROVERS, validate_default=True)
    veto: list[VetoHolder] = Field(default=[], max_length=MAX_APPROVERS)
    timeout: timedelta = Field(gt=timedelta(0), le=MAX_TIMEOUT)
    remind_every: timedelta | None = Field(default=None, gt=timedelta(0))
    on_timeout: OnTimeout | None = None
    escalation: list[Stage] = Field(default=[], max_length=MAX_STAGES - 1)
    payload: JsonValue = None
    wait: WaitId
    awakeable: AwakeableId
    opener: Annotated[str, StringConstraints(max_length=500)] = ""

    @field_validator("approvers", "veto")
    @classmethod
    def _each_once(cls, people: list[str]) -> list[str]:
        return list(dict.fromkeys(people))

    @field_validator("groups")
    @classmethod
    def _have_members(cls, groups: dict[str, list[str]]) -> dict[str, list[str]]:
        for group, members in groups.items():
            if not 0 < len(members) <= MAX_APPROVERS:
                raise ValueError(f"group '{group}' has {len(members)} members; 1 to {MAX_APPROVERS} are needed")
        return {group: list(dict.fromkeys(members)) for group, members in groups.items()}

    @field_validator("quorum")
    @classmethod
    def _can_be_reached(cls, quorum: int, info: ValidationInfo) -> int:
        _check_quorum(quorum, info.data.get("approvers") or [], info.data)
        return quorum

    @field_validator("remind_every")
    @classmethod
    def _not_too_often(cls, interval: timedelta | None, info: ValidationInfo) -> timedelta | None:
        return _checked_interval(interval, info.data.get("timeout"))

    @field_validator("payload")
    @classmethod
    def _can_be_shown(cls, payload: JsonValue) -> JsonValue:
        text = json.dumps(payload, ensure_ascii=False).encode(errors="surrogatepass")
        if len(text) > MAX_PAYLOAD:
            raise ValueError(f"{len(text)} bytes of JSON are more than people read; show {MAX_PAYLOAD} at most")
        try:
            from_json(_DEEPER * b"[" + text + _DEEPER * b"]")
        except ValueError as error:
            raise ValueError(f"it can't be read back as JSON: {error}") from error
        return payload

    @field_validator("escalation")
    @classmethod
    def _stages_fit(cls, stages: list[Stage], info: ValidationInfo) -> list[Stage]:
        for stage in stages:
            _check_quorum(stage.quorum, stage.approvers, info.data)
        return stages

    @model_validator(mode="after")
    def _each_stage_leads_on(self) -> ApprovalRequest:
        meanings = [self.on_timeout, *(stage.on_timeout for stage in self.escalation)]
        if meanings[-1] is OnTimeout.ESCALATE:
            raise ValueError("on_timeout: the last stage has nothing to escalate to")
        if any(meaning not in (None, OnTimeout.ESCALATE) for meaning in meanings[:-1]):
            raise ValueError("on_timeout: a stage that others follow escalates, or they would never be reached")
        return self

    @property
    def excluded(self) -> tuple[str, ...]:
        """People excluded from deciding: the requester, the owner of its API key, and the subject."""
        return tuple(dict.fromkeys(filter(None, (self.requester, self.requester_owner, self.subject))))

    @property
    def time_in_all(self) -> timedelta:
        """How long people have, all stages taken together."""
        return sum((stage.timeout for stage in self.escalation), self.timeout)

    @property
    def stages(self) -> list[Stage]:
        """All stages in their order, with what the end of each one means."""
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


def asked_by(requester: str, *, verified: bool, subject: str = "") -> str:
    """Return the requester and the subject in one phrase for people; empty when an approval has neither.

    Args:
        requester: The requester.
        verified: Whether the requester was authenticated.
        subject: The person whom the business is about.
    """
    asker = requester if verified or not requester else f"{requester} (unverified)"
    return f"{asker}, for {subject}".removeprefix(", ") if subject not in ("", requester) else asker


def people_of(
    approvers: Iterable[str], groups: Mapping[str, Iterable[str]], excluded: Iterable[str]
) -> frozenset[str] | None:
    """Return everybody who may decide, when that can be told.

    Args:
        approvers: People and groups.
        groups: The members of groups, as far as they are known.
        excluded: Those who may not, also under an alias of their mailbox.

    Returns:
        The people; None when anyone may, or a group's members are not known.
    """
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
    excluded = [name for each in _EXCLUDED if isinstance(name := data.get(each), str)]
    if not approvers or not isinstance(groups, dict) or len(excluded) < len(_EXCLUDED):
        return  # anyone may decide, or what is wrong is named already
    able = people_of(approvers, groups, excluded)
    if able is None:
        return
    if quorum > len(able):
        raise ValueError(
            f"{quorum} approvals are needed, but only {len(able)} approvers may decide (the requester and the subject "
            "never may)"
        )
    if len(able) > MAX_APPROVERS:
        raise ValueError(
            f"{len(able)} people could decide, with all members of the groups; {MAX_APPROVERS} are allowed"
        )


def _checked_interval(interval: timedelta | None, timeout: object) -> timedelta | None:
    if interval is not None and isinstance(timeout, timedelta) and timeout > interval * MAX_REMINDERS:
        raise ValueError(f"more than {MAX_REMINDERS} reminders within {timeout}")
    return interval
