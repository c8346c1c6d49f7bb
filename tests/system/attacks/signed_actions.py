"""Attacks on signed actions and on links."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import uuid4

from perdure.approvals.signatures import sign_action as sign_approval
from perdure.saga.schema import OperatorAction
from perdure.saga.signatures import sign_action as sign_letter_act
from perdure.security import ActorKey, PrivateKey, Role, mint_link
from tests.system.attacks.attack import Attack, Run, at_ingress
from tests.system.attacks.platform import ADA, GRACE, OLGA, VERA, DefendedPlatform


def _approve(body: Callable[[DefendedPlatform, str], dict[str, Any]]) -> Run:
    async def run(at: DefendedPlatform) -> str:
        digest = (await at.approval()).payload_digest
        return await at_ingress(f"/Approvals/{at.waiting}/approve", body(at, digest))(at)

    return run


def _signed(key: ActorKey, approval_id: str, digest: str, *, age: timedelta = timedelta(0)) -> dict[str, Any]:
    return sign_approval(key, "approve", approval_id, digest, {"reason": "attack"}, at=datetime.now(UTC) - age)


def _stranger() -> ActorKey:
    return ActorKey.issue(
        PrivateKey.generate(),
        actor=GRACE,
        roles=[Role.APPROVER],
        groups=(),
        lifetime=timedelta(hours=1),
        now=datetime.now(UTC),
    )


def _redrive(key: Callable[[DefendedPlatform], ActorKey]) -> Run:
    async def run(at: DefendedPlatform) -> str:
        who, letter = key(at), await at.letter_now()
        signed = sign_letter_act(who, OperatorAction.REDRIVE, letter, reason="attack", at=datetime.now(UTC))
        body = {
            "id": letter.id,
            "actor": who.actor,
            "reason": "attack",
            "signed_action": signed.model_dump(mode="json"),
        }
        return await at_ingress("/DeadLetters/redrive", body)(at)

    return run


async def _replayed_annotation(at: DefendedPlatform) -> str:
    """Annotate a dead letter as olga, then repeat the request."""
    letter = await at.letter_now()
    signed = sign_letter_act(at.keys[OLGA], OperatorAction.ANNOTATE, letter, reason="a note", at=datetime.now(UTC))
    body = {"id": letter.id, "actor": OLGA, "reason": "a note", "signed_action": signed.model_dump(mode="json")}
    send = at_ingress("/DeadLetters/annotate", body)
    if not (first := await send(at)).startswith("200"):
        return f"{first} for the first request"
    return await send(at)


async def _changed_payload(at: DefendedPlatform) -> str:
    """Send olga's signed redrive with a different payload."""
    letter = await at.letter_now()
    signed = sign_letter_act(at.keys[OLGA], OperatorAction.REDRIVE, letter, reason="", at=datetime.now(UTC))
    body = {"id": letter.id, "actor": OLGA, "payload": {"x": 1}, "signed_action": signed.model_dump(mode="json")}
    return await at_ingress("/DeadLetters/redrive", body)(at)


SIGNED_ACTIONS: Final = (
    Attack("signed action", "an unsigned approval", "401", _approve(lambda _at, _digest: {"actor": GRACE})),
    Attack(
        "signed action",
        "an approval by an unknown issuer",
        "401",
        _approve(lambda at, digest: _signed(_stranger(), at.waiting, digest)),
    ),
    Attack(
        "signed action",
        "the requester approves their own trip",
        "403",
        _approve(lambda at, digest: _signed(at.keys[ADA], at.waiting, digest)),
    ),
    Attack(
        "signed action",
        "an operator without the approver role approves",
        "403",
        _approve(lambda at, digest: _signed(at.keys[OLGA], at.waiting, digest)),
    ),
    Attack(
        "signed action",
        "a signature for another approval",
        "403",
        _approve(lambda at, digest: _signed(at.keys[GRACE], at.linked, digest)),
    ),
    Attack(
        "signed action",
        "a valid signature under another name",
        "403",
        _approve(lambda at, digest: {**_signed(at.keys[GRACE], at.waiting, digest), "actor": OLGA}),
    ),
    Attack(
        "signed action",
        "a signature for another payload",
        "409",
        _approve(lambda at, _digest: _signed(at.keys[GRACE], at.waiting, "0" * 64)),
    ),
    Attack(
        "signed action",
        "an expired signature",
        "401",
        _approve(lambda at, digest: _signed(at.keys[GRACE], at.waiting, digest, age=timedelta(minutes=59))),
    ),
    Attack("signed action", "a viewer redrives a dead letter", "403", _redrive(lambda at: at.keys[VERA])),
    Attack("signed action", "an approver redrives a dead letter", "403", _redrive(lambda at: at.keys[GRACE])),
    Attack("signed action", "a signed redrive with a changed payload", "403", _changed_payload),
    Attack("signed action", "a reused signature", "409", _replayed_annotation),
)


def _by_link(token: Callable[[DefendedPlatform, str], str], approval: Callable[[DefendedPlatform], str]) -> Run:
    async def run(at: DefendedPlatform) -> str:
        body = {"token": token(at, (await at.approval()).payload_digest), "approve": True}
        return await at_ingress(f"/Approvals/{approval(at)}/decide_by_link", body)(at)

    return run


def _forged(at: DefendedPlatform, digest: str) -> str:
    return mint_link(
        PrivateKey.generate(),
        approval_id=at.waiting,
        person=GRACE,
        payload_digest=digest,
        issued_at=datetime.now(UTC),
        expires_at=datetime.now(UTC) + timedelta(hours=1),
        nonce=uuid4().hex,
    )


LINKS: Final = (
    Attack("link", "a used link", "409", _by_link(lambda at, _: at.link, lambda at: at.linked)),
    Attack("link", "a link for another approval", "403", _by_link(lambda at, _: at.link, lambda at: at.waiting)),
    Attack("link", "a link with a forged signature", "401", _by_link(_forged, lambda at: at.waiting)),
    Attack(
        "link",
        "a genuine link with one letter changed",
        "401",
        _by_link(
            lambda at, _: at.link[:-3] + ("A" if at.link[-3] != "A" else "B") + at.link[-2:], lambda at: at.linked
        ),
    ),
)
