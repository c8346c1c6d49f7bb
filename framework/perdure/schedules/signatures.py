"""Signing and verification of operator actions on schedules.

A signature covers the action, the schedule's name, the reason and a digest: with ``set`` of the new specification, with
other actions of the displayed specification and generation. Used nonces outlive the schedule.
"""

from __future__ import annotations

from datetime import datetime

import restate
from pydantic import JsonValue

from perdure.determinism import Time
from perdure.schedules.messages import ScheduleAction, ScheduleActionRequest, ScheduleStatus
from perdure.schedules.recurrence import ScheduleSpec
from perdure.schedules.schema import NONCES_KEY
from perdure.security.credentials import Role
from perdure.security.encodings import json_digest
from perdure.security.nonces import NonceLog
from perdure.security.signed_actions import ActorKey, SignedAction, get_signing_rules
from perdure.state import State


def sign_action(
    key: ActorKey, action: ScheduleAction, schedule: ScheduleStatus, *, reason: str = "", at: datetime
) -> SignedAction:
    """Sign an action other than ``set``, for `ScheduleActionRequest`.

    Args:
        key: The operator's key.
        action: The action.
        schedule: The schedule as the operator saw it.
        reason: The reason, for the audit log.
        at: The current time.
    """
    digest = schedule_digest(schedule.spec, schedule.generation)
    return key.sign(action.value, _target(schedule.name), digest, reason=reason, at=at)


def sign_setting(key: ActorKey, name: str, spec: ScheduleSpec, *, reason: str = "", at: datetime) -> SignedAction:
    """Sign the action ``set``, for `ScheduleRequest`.

    Args:
        key: The operator's key.
        name: The schedule's name.
        spec: The new specification.
        reason: The reason, for the audit log.
        at: The current time.
    """
    return key.sign(ScheduleAction.SET.value, _target(name), spec_digest(spec), reason=reason, at=at)


async def authorize(
    ctx: restate.ObjectContext, action: ScheduleAction, request: ScheduleActionRequest, digest: str
) -> None:
    """Verify the signature of an operator action, if signatures are required, and consume its nonce.

    Raises:
        Unauthenticated: The action is unsigned, or its signature is invalid (401).
        Forbidden: The signature belongs to another action or actor, or the actor is not an operator (403).
        Conflict: The nonce was used before, or the schedule changed since it was displayed (409).
    """
    nonces = State(ctx, NONCES_KEY, NonceLog, default=NonceLog())
    actor, used = get_signing_rules().check(
        request.signed_action,
        action=action.value,
        target=_target(ctx.key()),
        payload_digest=digest,
        now=await Time(ctx).now(),
        actor=request.actor,
        reason=request.reason,
        role=Role.OPERATOR,
        nonces=await nonces.get(),
    )
    if actor is not None:
        await nonces.set(used)


def schedule_digest(spec: ScheduleSpec, generation: int) -> str:
    """Return the digest of a schedule as displayed to an operator."""
    return json_digest({"spec": _canonical(spec), "generation": generation})


def spec_digest(spec: ScheduleSpec) -> str:
    """Return the digest of a specification to be set."""
    return json_digest({"spec": _canonical(spec)})


def _canonical(spec: ScheduleSpec) -> dict[str, JsonValue]:
    # Without defaults, so that a later version with more settings computes the same digest.
    return spec.model_dump(mode="json", exclude_defaults=True)


def _target(name: str) -> str:
    return f"Schedules/{name}"
