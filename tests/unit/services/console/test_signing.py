"""Signed actions, verified with the issuer's public key as handlers do."""

from __future__ import annotations

from datetime import timedelta

import pytest

from perdure.errors import Forbidden, Unauthenticated
from perdure.security import PrivateKey, Role, SignedAction, TrustedKeys, json_digest
from services.console.signing import LIFETIME, Signer, load_key

DIGEST = json_digest({"amount": 1})


def check(keys: TrustedKeys, signed: SignedAction, console, **changes):
    expected = {"action": "approve", "target": "Approvals/T1", "payload_digest": DIGEST, "reason": "fine"}
    expected = {**expected, "actor": "ada@example.com", **changes}
    return keys.verify(signed, now=console.clock(), **expected)


async def session_of(console, *roles: Role, groups: tuple[str, ...] = ()):
    return await console.components.sessions.find(await console.add("ada@example.com", *roles, groups=groups))


async def test_signed_action_names_actor_and_roles(console):
    ada = await session_of(console, Role.APPROVER, groups=("finance",))
    signer = console.components.signer
    signed = signer.key(ada).sign("approve", "Approvals/T1", DIGEST, reason="fine", at=console.clock())
    keys = TrustedKeys(issuers=(signer.issuer,))
    actor = check(keys, signed, console)
    assert (actor.actor, actor.roles, actor.groups) == ("ada@example.com", {Role.APPROVER}, {"finance"})
    for wrong in ({"action": "reject"}, {"target": "Approvals/T2"}, {"reason": "else"}, {"actor": "eve@example.com"}):
        with pytest.raises(Forbidden):
            check(keys, signed, console, **wrong)
    with pytest.raises(Unauthenticated):
        check(TrustedKeys(issuers=(PrivateKey.generate().public,)), signed, console)


async def test_session_key_expires_and_is_renewed(console):
    ada = await session_of(console, Role.APPROVER)
    signer = console.components.signer
    first = signer.key(ada)
    assert signer.key(ada) is first
    other = await console.components.sessions.find(await console.token("ada@example.com"))
    assert signer.key(other).credential.key != first.credential.key
    console.clock.move(LIFETIME)
    second = signer.key(ada)
    assert second.credential.key != first.credential.key
    assert second.credential.expires_at == console.clock() + LIFETIME
    signer.forget(ada)
    assert signer.key(ada) is not second
    console.clock.move(timedelta(seconds=1))


def test_issuer_key_is_created_once(tmp_path):
    file = tmp_path / "keys" / "issuer.pem"
    made = load_key(file)
    assert load_key(file).public == made.public
    assert Signer(made).issuer == made.public
