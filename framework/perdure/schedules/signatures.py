"""What an operator's signature on a schedule is over, and its check.

Signed are the act, the schedule's name and the reason; with ``set`` the schedule as it is to be, with the other acts
the schedule as it was shown, and which generation of it. Used signatures are kept with the schedule, and outlive it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import restate
from pydantic import JsonValue

from perdure.determinism import Time
from perdure.schedules.messages import ScheduleAction, ScheduleStatus
from perdure.schedules.recurrence import ScheduleSpec
from perdure.security.credentials import Role
from perdure.security.encodings import json_digest
from perdure.security.nonces import NonceLog
from perdure.security.signed_actions import ActorKey, SignedAction, get_signing_rules
from perdure.state import State


@dataclass(frozen=True)
class Admitted:
    """Who may do what they want to.

    Args:
        actor: Who acts: proved, or in a process that takes unsigned acts only said.
        reason: Why.
        proof: What proved it.
    """

    actor: str
    reason: str
    proof: SignedAction | None = None


class _Request(Protocol):
    @property
    def actor(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def proof(self) -> SignedAction | None: ...


def sign_action(
    key: ActorKey, act: ScheduleAction, schedule: ScheduleStatus, *, reason: str = "", at: datetime
) -> SignedAction:
    """Sign an act on a schedule other than ``set``, for the ``proof`` of `ScheduleActionRequest`.

    Args:
        key: The operator's key.
        act: What to do.
        schedule: The schedule, as it was shown.
        reason: Why.
        at: Now.
    """
    shown = shown_schedule(schedule.spec, schedule.generation)
    return key.sign(act.value, _target(schedule.name), shown, reason=reason, at=at)


def sign_setting(key: ActorKey, name: str, spec: ScheduleSpec, *, reason: str = "", at: datetime) -> SignedAction:
    """Sign that a schedule is set, for the ``proof`` of `ScheduleRequest`.

    Args:
        key: The operator's key.
        name: The schedule's name.
        spec: The schedule, as it is to be.
        reason: Why.
        at: Now.
    """
    return key.sign(ScheduleAction.SET.value, _target(name), shown_setting(spec), reason=reason, at=at)


async def admit(ctx: restate.ObjectContext, act: ScheduleAction, request: _Request, shown: str) -> Admitted:
    """Check who acts on a schedule, and use the signature up.

    Args:
        ctx: The schedule's context.
        act: What they want to do.
        request: The request.
        shown: The digest of what they must have seen.

    Raises:
        Unauthenticated: It must be signed and isn't, or the signature doesn't hold (401).
        Forbidden: It is signed for something else, by somebody else, or by no operator (403).
        Conflict: The signature was used before, or the schedule has changed since it was shown (409).
    """
    nonces = State(ctx, "nonces", NonceLog, default=NonceLog())
    who, used = get_signing_rules().check(
        request.proof,
        action=act.value,
        target=_target(ctx.key()),
        payload_digest=shown,
        now=await Time(ctx).now(),
        actor=request.actor,
        reason=request.reason,
        role=Role.OPERATOR,
        nonces=await nonces.get(),
    )
    if who is None:
        return Admitted(request.actor, request.reason)
    await nonces.set(used)
    return Admitted(who.actor, request.reason, request.proof)


def shown_schedule(spec: ScheduleSpec, generation: int) -> str:
    """Return the digest of a schedule as it is shown.

    Args:
        spec: What it does.
        generation: How often its timing was begun anew.
    """
    return json_digest({"spec": _written(spec), "generation": generation})


def shown_setting(spec: ScheduleSpec) -> str:
    """Return the digest of a schedule as it is to be.

    Args:
        spec: What it does.
    """
    return json_digest({"spec": _written(spec)})


def _written(spec: ScheduleSpec) -> dict[str, JsonValue]:
    # Without what is as always, so that a later version with one setting more writes the same.
    return spec.model_dump(mode="json", exclude_defaults=True)


def _target(name: str) -> str:
    return f"Schedules/{name}"
