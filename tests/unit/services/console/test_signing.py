"""Acts signed for who is signed in, as a handler that knows only the issuer's key checks them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from perdure.errors import Forbidden, Unauthenticated
from perdure.security import PrivateKey, Role, SignedAction, TrustedKeys, json_digest
from services.console.signing import LIFETIME, Signer, load_key

DIGEST = json_digest({"amount": 1})


def check(trusted_keys: TrustedKeys, signed: dict, desk, **changes):
    wanted = {"action": "approve", "target": "Approvals/T1", "payload_digest": DIGEST, "reason": "fine"}
    wanted = {**wanted, "actor": "ada@example.com", **changes}
    return trusted_keys.verify(SignedAction.model_validate(signed), now=desk.clock(), **wanted)


async def signed_in_as(desk, *roles: Role, groups: tuple[str, ...] = ()):
    return await desk.parts.sessions.find(await desk.add("ada@example.com", *roles, groups=groups))


async def test_an_act_proves_who_did_what_with_which_rights(desk):
    ada = await signed_in_as(desk, Role.APPROVER, groups=("finance",))
    signer = desk.parts.signer
    signed = signer.sign(ada, "approve", "Approvals/T1", payload_digest=DIGEST, reason="fine")
    trusted_keys = TrustedKeys(issuers=(signer.issuer,))
    actor = check(trusted_keys, signed, desk)
    assert (actor.actor, actor.roles, actor.groups) == ("ada@example.com", {Role.APPROVER}, {"finance"})
    for wrong in ({"action": "reject"}, {"target": "Approvals/T2"}, {"reason": "else"}, {"actor": "eve@example.com"}):
        with pytest.raises(Forbidden):
            check(trusted_keys, signed, desk, **wrong)
    with pytest.raises(Unauthenticated):
        check(TrustedKeys(issuers=(PrivateKey.generate().public,)), signed, desk)


async def test_a_sessions_key_is_its_own_ends_soon_and_is_made_anew(desk):
    ada = await signed_in_as(desk, Role.APPROVER)
    signer = desk.parts.signer
    first = signer.key(ada)
    assert signer.key(ada) is first
    other = await desk.parts.sessions.find(await desk.token("ada@example.com"))
    assert signer.key(other).credential.key != first.credential.key
    desk.clock.move(LIFETIME)
    second = signer.key(ada)
    assert second.credential.key != first.credential.key
    assert second.credential.expires_at == desk.clock() + LIFETIME
    signer.forget(ada)
    assert signer.key(ada) is not second
    desk.clock.move(timedelta(seconds=1))


def test_the_consoles_key_is_made_once(tmp_path):
    file = tmp_path / "keys" / "issuer.pem"
    made = load_key(file)
    assert load_key(file).public == made.public
    assert Signer(made).issuer == made.public
