"""Replay protection and its limits per person and in total."""

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
from perdure.security import nonces as limits

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
ISSUER = PrivateKey(b"i" * 32)
TRUST = TrustedKeys(issuers=(ISSUER.public,))
RULES = SigningRules(mode=SigningMode.SIGNED, trusted_keys=TRUST)
DIGEST = json_digest(None)


def key_of(actor: str) -> ActorKey:
    return ActorKey.issue(ISSUER, actor=actor, roles=[Role.APPROVER], lifetime=60 * MINUTE, now=NOW)


def signed_by(keys: Sequence[ActorKey], log: NonceLog, number: int = 1, target: str = "DeadLetters/x/1") -> NonceLog:
    """Check a number of actions, signed with these keys in turn."""
    for index in range(number):
        key = keys[index % len(keys)]
        action = key.sign("redrive", target, DIGEST, at=NOW)
        _, log = RULES.check(
            action, action="redrive", target=target, payload_digest=DIGEST, now=NOW, actor=key.actor, nonces=log
        )
    return log


def refusal(log: NonceLog, *keys: ActorKey) -> str | None:
    with pytest.raises(Refused) as refused:
        signed_by(keys, log)
    return (refused.value.metadata or {}).get("code")


def test_limit_actions_per_person():
    # Each sign-in at the console creates another key of the same person.
    eves = [key_of("eve") for _ in range(50)]
    log = signed_by(eves, NonceLog(), limits.UNRESTRICTED_NONCES)
    assert refusal(log, eves[0]) == refusal(log, key_of("EVE")) == "too_many_actions"
    ada, bob = key_of("ada"), key_of("bob")
    log = signed_by([ada, bob], log, 2 * limits.NONCES_PER_PERSON)
    assert refusal(log, ada) == "too_many_actions"
    assert len(signed_by([key_of("cy")], log).used) == limits.UNRESTRICTED_NONCES + 2 * limits.NONCES_PER_PERSON + 1
    replayed = next(iter(log.used))
    with pytest.raises(Conflict):
        log.use(replayed, until=NOW + MINUTE, now=NOW, by="cy")


def test_bulk_actions_below_limit_are_accepted():
    assert len(signed_by([key_of("olga")], NonceLog(), 200).used) == 200


def test_limit_nonces_in_total():
    nearly = {str(number): NOW + MINUTE for number in range(limits.MAX_NONCES - 1)}
    log = NonceLog(used=nearly).use("last", until=NOW + MINUTE, now=NOW, by="ada")
    with pytest.raises(Refused, match=f"on this target: {limits.MAX_NONCES},") as refused:
        log.use("one more", until=NOW + MINUTE, now=NOW, by="bob")
    assert refused.value.status_code == 429
    assert len(log.use("one more", until=NOW + 3 * MINUTE, now=NOW + 2 * MINUTE, by="bob").used) == 1


def test_links_and_actions_have_separate_limits():
    full = NonceLog(used={str(number): NOW + MINUTE for number in range(limits.MAX_NONCES)})
    log = full.use("n" * 20, by="ada", until=NOW + MINUTE, now=NOW, is_link=True)
    with pytest.raises(Conflict, match="each is valid once"):
        log.use("n" * 20, by="ada", until=NOW + MINUTE, now=NOW, is_link=True)
    links = NonceLog(used={f"link {number}": NOW + MINUTE for number in range(limits.MAX_NONCES)})
    assert signed_by([key_of("ada")], links)
    with pytest.raises(Refused):
        links.use("n" * 20, by="ada", until=NOW + MINUTE, now=NOW, is_link=True)


def test_expired_nonces_are_removed():
    log = NonceLog().use("a", until=NOW + MINUTE, now=NOW, by="ada").use("b", until=NOW + 2 * MINUTE, now=NOW, by="ada")
    assert log.fresh(NOW + MINUTE) == log  # inclusive
    later = log.fresh(NOW + MINUTE + timedelta(microseconds=1))
    assert (set(later.used), set(later.used_by)) == ({"b"}, {"b"})
    assert log.fresh(NOW + 3 * MINUTE) == NonceLog()
