"""What was used counts once, and nobody's acts leave no room for those of others."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from perdure.errors import Conflict, Refused
from perdure.security import (
    ActorKey,
    NonceLog,
    PrivateKey,
    Role,
    SigningMode,
    SigningRules,
    TrustedKeys,
    json_digest,
)
from perdure.security import nonces as bounds

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
ISSUER = PrivateKey(b"i" * 32)
TRUST = TrustedKeys(issuers=(ISSUER.public,))
RULES = SigningRules(mode=SigningMode.SIGNED, trusted_keys=TRUST)
DIGEST = json_digest(None)


def key_of(actor: str) -> ActorKey:
    return ActorKey.issue(ISSUER, actor=actor, roles=[Role.APPROVER], lifetime=60 * MINUTE, now=NOW)


def signed_by(keys: Sequence[ActorKey], log: NonceLog, number: int = 1, target: str = "DeadLetters/x/1") -> NonceLog:
    """Do so many acts, by turns with these keys, as each handler that takes signed acts checks them."""
    for each in range(number):
        key = keys[each % len(keys)]
        proof = key.sign("redrive", target, DIGEST, at=NOW)
        _, log = RULES.check(
            proof, action="redrive", target=target, payload_digest=DIGEST, now=NOW, actor=key.actor, nonces=log
        )
    return log


def refusal(log: NonceLog, *keys: ActorKey) -> str | None:
    with pytest.raises(Refused) as refused:
        signed_by(keys, log)
    return (refused.value.metadata or {}).get("code")


def test_who_signs_without_end_keeps_nobody_else_from_acting():
    """However many keys they have: each sign-in at the console makes one."""
    eves = [key_of("eve") for _ in range(50)]
    log = signed_by(eves, NonceLog(), bounds.UNRESTRICTED_NONCES)
    assert refusal(log, eves[0]) == refusal(log, key_of("EVE")) == "too_many_actions"
    ada, bob = key_of("ada"), key_of("bob")
    log = signed_by([ada, bob], log, 2 * bounds.NONCES_PER_PERSON)
    assert refusal(log, ada) == "too_many_actions"
    assert len(signed_by([key_of("cy")], log).used) == bounds.UNRESTRICTED_NONCES + 2 * bounds.NONCES_PER_PERSON + 1
    replayed = next(iter(log.used))
    with pytest.raises(Conflict):
        log.use(replayed, until=NOW + MINUTE, now=NOW, by="cy")


def test_one_operator_may_do_many_acts_as_long_as_there_is_room():
    assert len(signed_by([key_of("olga")], NonceLog(), 200).used) == 200


def test_there_is_an_end_to_how_many_are_known():
    nearly = {str(number): NOW + MINUTE for number in range(bounds.MAX_NONCES - 1)}
    log = NonceLog(used=nearly).use("last", until=NOW + MINUTE, now=NOW, by="ada")
    with pytest.raises(Refused, match=f"{bounds.MAX_NONCES} signed acts") as refused:
        log.use("one more", until=NOW + MINUTE, now=NOW, by="bob")
    assert refused.value.status_code == 429
    assert len(log.use("one more", until=NOW + 3 * MINUTE, now=NOW + 2 * MINUTE, by="bob").used) == 1


def test_links_and_acts_leave_each_other_room():
    full = NonceLog(used={str(number): NOW + MINUTE for number in range(bounds.MAX_NONCES)})
    log = full.use_link("n" * 20, person="ada", until=NOW + MINUTE, now=NOW)
    with pytest.raises(Conflict, match="counts once"):
        log.use_link("n" * 20, person="ada", until=NOW + MINUTE, now=NOW)
    links = NonceLog(used={f"link {number}": NOW + MINUTE for number in range(bounds.MAX_NONCES)})
    assert signed_by([key_of("ada")], links)
    with pytest.raises(Refused):
        links.use_link("n" * 20, person="ada", until=NOW + MINUTE, now=NOW)


def test_what_the_version_before_kept_is_honoured():
    """It kept nothing but nonces, and links' among them."""
    proof = key_of("ada").sign("redrive", "DeadLetters/x/1", DIGEST, at=NOW)
    who = TRUST.verify(proof, action="redrive", target="DeadLetters/x/1", payload_digest=DIGEST, now=NOW, actor="ada")
    until = who.fresh_until.isoformat()
    before = NonceLog.model_validate_json(f'{{"used": {{"{who.nonce}": "{until}", "link {"n" * 20}": "{until}"}}}}')
    with pytest.raises(Conflict):
        before.use(who.nonce, until=who.fresh_until, now=NOW, by="ada")
    with pytest.raises(Conflict):
        before.use_link("n" * 20, person="ada", until=who.fresh_until, now=NOW)
    crowd = NonceLog(used={str(number): NOW + MINUTE for number in range(bounds.UNRESTRICTED_NONCES)})
    assert len(crowd.use("new", until=NOW + MINUTE, now=NOW, by="ada").used) == bounds.UNRESTRICTED_NONCES + 1


def test_what_is_over_is_forgotten_with_whose_it_was():
    log = NonceLog().use("a", until=NOW + MINUTE, now=NOW, by="ada").use("b", until=NOW + 2 * MINUTE, now=NOW, by="ada")
    assert log.fresh(NOW + MINUTE) == log  # at this very moment an act is still taken
    later = log.fresh(NOW + MINUTE + timedelta(microseconds=1))
    assert (set(later.used), set(later.whose)) == ({"b"}, {"b"})
    assert log.fresh(NOW + 3 * MINUTE) == NonceLog()
