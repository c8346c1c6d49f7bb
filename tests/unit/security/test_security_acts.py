from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from perdure.errors import ConfigurationError, Conflict, Forbidden, TerminalError, Unauthenticated
from perdure.security import (
    ActorKey,
    NonceLog,
    PrivateKey,
    Role,
    SignedAction,
    SigningMode,
    SigningRules,
    SigningSettings,
    TrustedKeys,
    get_signing_rules,
    issue_credential,
    json_digest,
    set_signing_rules,
)

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
ISSUER, OTHER_ISSUER = PrivateKey(b"i" * 32), PrivateKey(b"o" * 32)
TRUST = TrustedKeys(issuers=(ISSUER.public,))
DIGEST = json_digest({"amount": 5})


def key_of(actor: str = "Ada@example.com", issuer: PrivateKey = ISSUER, **changes: Any) -> ActorKey:
    facts: dict[str, Any] = {
        "roles": [Role.APPROVER],
        "groups": ["Finance"],
        "lifetime": timedelta(hours=8),
        "now": NOW,
    }
    return ActorKey.issue(issuer, actor=actor, **{**facts, "now": NOW, **changes})


ADA = key_of()


def signed(key: ActorKey = ADA, **changes: Any) -> SignedAction:
    facts = {"act": "approve", "target": "Approvals/t1", "payload_digest": DIGEST, "reason": "fine", "at": NOW}
    return key.sign(**{**facts, **changes})


def verify(proof: SignedAction, trusted_keys: TrustedKeys = TRUST, /, **changes: Any) -> Any:
    asked = {"act": "approve", "target": "Approvals/t1", "payload_digest": DIGEST, "reason": "fine", "now": NOW}
    return trusted_keys.verify(proof, **{**asked, "actor": "ada@example.com", **changes})


def test_a_genuine_act_says_who_it_was():
    travelled = SignedAction.model_validate_json(signed().model_dump_json())
    who = verify(travelled, role=Role.APPROVER)
    assert (who.actor, who.roles, who.groups) == ("ada@example.com", {Role.APPROVER}, {"finance"})
    assert (who.key, who.at) == (ADA.credential.key, NOW)


def test_an_actors_name_is_compared_as_people_are():
    assert verify(signed(), actor="ADA@example.com ").actor == "ada@example.com"


def changed(act: SignedAction, /, **fields: Any) -> SignedAction:
    return act.model_copy(update=fields)


def with_credential(act: SignedAction, /, **fields: Any) -> SignedAction:
    return act.model_copy(update={"credential": act.credential.model_copy(update=fields)})


EVE = key_of("eve@example.com", roles=[Role.OPERATOR])
MINUTE = timedelta(minutes=1)


@pytest.mark.parametrize(
    ("why", "error", "act", "asked"),
    [
        ("act", Forbidden, signed(), {"act": "reject"}),
        ("target", Forbidden, signed(), {"target": "Approvals/t2"}),
        ("reason", Forbidden, signed(), {"reason": "very fine"}),
        ("details", Forbidden, signed(details={"to": "bob"}), {"details": {"to": "eve"}}),
        ("details", Forbidden, signed(), {"details": {"to": "eve"}}),
        ("details", Forbidden, signed(details={"to": "bob"}), {}),
        ("actor", Forbidden, signed(), {"actor": "bob@example.com"}),
        ("actor", Forbidden, signed(EVE), {}),
        ("payload", Conflict, signed(), {"payload_digest": json_digest({"amount": 6})}),
        ("action_signature", Unauthenticated, changed(signed(), act="reject"), {"act": "reject"}),
        ("action_signature", Unauthenticated, changed(signed(), reason="other"), {"reason": "other"}),
        ("action_signature", Unauthenticated, changed(signed(), at=NOW + MINUTE), {}),
        ("action_signature", Unauthenticated, changed(signed(), nonce="A" * 22), {}),
        ("action_signature", Unauthenticated, changed(signed(), signature=signed(EVE).signature), {}),
        ("action_signature", Unauthenticated, changed(signed(), signature="A" * 86), {}),
        ("action_signature", Unauthenticated, changed(signed(EVE), credential=ADA.credential), {}),
        # The credential's signature has the form of an act's, but isn't over one.
        ("action_signature", Unauthenticated, changed(signed(), signature=ADA.credential.signature), {}),
        ("credential_signature", Unauthenticated, with_credential(signed(), roles=(Role.ADMINISTRATOR,)), {}),
        ("credential_signature", Unauthenticated, with_credential(signed(), actor="eve@example.com"), {}),
        ("credential_signature", Unauthenticated, with_credential(signed(), key=EVE.credential.key), {}),
        ("credential_signature", Unauthenticated, with_credential(signed(), groups=("admins",)), {}),
        ("credential_signature", Unauthenticated, with_credential(signed(), expires_at=NOW + 900 * MINUTE), {}),
        ("issuer", Unauthenticated, signed(key_of(issuer=OTHER_ISSUER)), {}),
        # Who signs for themselves is no issuer, however the credential looks.
        ("issuer", Unauthenticated, with_credential(signed(), issuer=OTHER_ISSUER.public.id), {}),
        ("too_old", Unauthenticated, signed(), {"now": NOW + timedelta(minutes=5, seconds=31)}),
        ("future", Unauthenticated, signed(at=NOW + timedelta(seconds=31)), {}),
        ("credential_expired", Unauthenticated, signed(key_of(lifetime=MINUTE)), {"now": NOW + MINUTE}),
        ("credential_early", Unauthenticated, signed(key_of(now=NOW + MINUTE)), {}),
        ("operator", Forbidden, signed(), {"role": Role.OPERATOR}),
        ("administrator", Forbidden, signed(), {"role": Role.ADMINISTRATOR}),
    ],
)
def test_anything_else_is_refused(why: str, error: type[TerminalError], act: SignedAction, asked: dict[str, Any]):
    with pytest.raises(error) as refused:
        verify(act, **asked)
    facts = refused.value.metadata or {}
    assert why in (facts.get("why"), facts.get("role"))
    assert refused.value.status_code in (401, 403, 409)


def test_limits_of_time():
    assert verify(signed(), now=NOW + timedelta(minutes=5, seconds=30))
    assert verify(signed(at=NOW + timedelta(seconds=30)))
    assert verify(signed(key_of(now=NOW + timedelta(seconds=30))))
    short = signed(key_of(lifetime=MINUTE))
    assert verify(short, now=NOW + MINUTE - timedelta(microseconds=1))


def test_a_revoked_credential_or_key_is_refused():
    for revoked in (ADA.credential.serial, ADA.credential.key):
        with pytest.raises(Unauthenticated, match="is revoked"):
            verify(signed(), TrustedKeys(issuers=(ISSUER.public,), revoked=frozenset({revoked})))


def test_two_issuers_while_one_takes_over():
    both = TrustedKeys(issuers=(OTHER_ISSUER.public, ISSUER.public))
    assert verify(signed(), both)
    assert verify(signed(key_of(issuer=OTHER_ISSUER)), both)


@pytest.mark.parametrize(("roles", "may"), [(["viewer"], True), (["operator"], True), ([], False)])
def test_whoever_has_a_role_may_look(roles: list[str], may: bool):
    who = verify(signed(key_of(roles=roles)))
    assert who.has(Role.VIEWER) is may
    if not may:
        with pytest.raises(Forbidden, match="this action requires the role viewer, and theirs: none"):
            who.require(Role.VIEWER)


def test_a_moment_elsewhere_is_the_same_moment():
    there = NOW.astimezone(timezone(timedelta(hours=9)))
    act = signed(at=there)
    assert act.at.utcoffset() == timedelta(0)
    assert verify(SignedAction.model_validate_json(act.model_dump_json().replace("12:00:00Z", "14:00:00+02:00")))


@pytest.mark.parametrize(
    "change",
    [
        {"act": "Approve"},
        {"act": ""},
        {"target": ""},
        {"target": "x" * 601},
        {"target": "half a \ud800"},
        {"payload_digest": "0" * 63},
        {"payload_digest": DIGEST.upper()},
        {"reason": "x" * 2001},
        {"at": datetime(2026, 1, 1)},  # noqa: DTZ001 - that's the point
    ],
)
def test_what_no_act_looks_like_is_not_signed(change: dict[str, Any]):
    with pytest.raises(ValidationError):
        signed(**change)


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: fields | {"more": 1},
        lambda fields: {name: value for name, value in fields.items() if name != "nonce"},
        lambda fields: fields | {"signature": fields["signature"] + "="},
        lambda fields: fields | {"nonce": "short"},
        lambda fields: fields | {"at": "0001-01-01T00:00:00+14:00"},
        lambda fields: fields | {"credential": fields["credential"] | {"more": 1}},
        lambda fields: fields | {"credential": fields["credential"] | {"roles": ["root"]}},
        lambda fields: fields | {"credential": fields["credential"] | {"actor": ""}},
        lambda fields: fields | {"credential": fields["credential"] | {"key": "publickeyv1_x"}},
        lambda fields: fields | {"credential": fields["credential"] | {"groups": [f"g{n}" for n in range(101)]}},
        lambda fields: (
            fields | {"credential": fields["credential"] | {"expires_at": fields["credential"]["issued_at"]}}
        ),
    ],
)
def test_what_no_act_looks_like_is_not_read(change: Callable[[dict[str, Any]], dict[str, Any]]):
    with pytest.raises(ValidationError):
        SignedAction.model_validate_json(json.dumps(change(json.loads(signed().model_dump_json()))))


def test_a_signature_has_one_spelling():
    act = signed()
    last = act.signature[-1]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    twin = alphabet[alphabet.index(last) ^ 1]  # differs in bits that belong to no byte
    with pytest.raises(Unauthenticated):
        verify(changed(act, signature=act.signature[:-1] + twin))


# --- nonces ------------------------------------------------------------------------------------------------------


def test_an_act_counts_once():
    who = verify(signed())
    log = NonceLog().use(who.nonce, until=who.fresh_until, now=NOW)
    kept = NonceLog.model_validate_json(log.model_dump_json())
    with pytest.raises(Conflict, match="counts once") as refused:
        kept.use(who.nonce, until=who.fresh_until, now=NOW)
    assert (refused.value.metadata or {})["why"] == "replayed"
    other = verify(signed())
    assert len(kept.use(other.nonce, until=other.fresh_until, now=NOW).used) == 2


def test_a_nonce_is_remembered_until_its_act_is_too_old():
    who = verify(signed())
    log = NonceLog().use(who.nonce, until=who.fresh_until, now=NOW)
    last = who.fresh_until  # at this very moment the act is still taken
    assert verify(signed(), now=last)
    later = log.use("another", until=last + MINUTE, now=last - timedelta(microseconds=1))
    assert who.nonce in later.used
    with pytest.raises(Conflict):
        log.use("another", until=last + MINUTE, now=last).use(who.nonce, until=last, now=last)
    assert list(log.use("another", until=last + MINUTE, now=last + MINUTE).used) == ["another"]


def test_the_nonce_of_one_person_is_not_anothers():
    copied = changed(signed(EVE), nonce=signed().nonce)
    again = EVE.sign("approve", "Approvals/t1", DIGEST, at=NOW)
    assert copied.nonce != again.nonce
    act = signed()
    mine = verify(act)
    assert mine.nonce == verify(act).nonce
    assert mine.nonce != act.nonce  # of this key


# --- key files ---------------------------------------------------------------------------------------------------


def test_a_key_file_holds_key_and_credential(tmp_path: Path):
    path = tmp_path / "ada.key"
    ADA.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    loaded = ActorKey.load(path)
    assert loaded.credential == ADA.credential
    assert verify(signed(loaded))
    with pytest.raises(ConfigurationError, match="never overwritten"):
        ADA.save(path)
    path.chmod(0o644)
    with pytest.raises(ConfigurationError, match="may be read by others"):
        ActorKey.load(path)


def test_a_key_never_shows_itself(tmp_path: Path):
    path = tmp_path / "ada.key"
    ADA.save(path)
    secret = json.loads(path.read_text())["private_key"].splitlines()[1]
    assert secret not in repr(ADA)
    content = json.loads(path.read_text())
    content["credential"] = EVE.credential.model_dump(mode="json")
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigurationError, match=r"eve@example\.com is for another key") as refused:
        ActorKey.load(path)
    assert secret not in str(refused.value)
    path.write_text(json.dumps({"private_key": secret}))
    with pytest.raises(ConfigurationError, match="is no actor's key file") as refused:
        ActorKey.load(path)
    assert secret not in str(refused.value)


def test_a_console_issues_for_its_sessions():
    session = PrivateKey.generate()
    credential = issue_credential(
        ISSUER, actor="bob", key=session.public, roles=["approver"], lifetime=timedelta(hours=1), now=NOW
    )
    assert verify(signed(ActorKey(session, credential)), actor="bob").roles == {Role.APPROVER}
    with pytest.raises(ValidationError):
        issue_credential(ISSUER, actor="bob", key=session.public, roles=[], lifetime=timedelta(0), now=NOW)


# --- rules -------------------------------------------------------------------------------------------------------


def check(rules: SigningRules, proof: SignedAction | None, nonces: NonceLog | None = None) -> Any:
    return rules.check(
        proof,
        action="approve",
        target="Approvals/t1",
        payload_digest=DIGEST,
        now=NOW,
        actor="ada@example.com",
        reason="fine",
        role=Role.APPROVER,
        nonces=nonces or NonceLog(),
    )


def test_signed_mode_wants_a_proof_and_uses_it_up():
    rules = SigningRules(mode=SigningMode.SIGNED, trusted_keys=TRUST)
    with pytest.raises(Unauthenticated, match="must be signed"):
        check(rules, None)
    proof = signed()
    who, nonces = check(rules, proof)
    assert who.actor == "ada@example.com"
    with pytest.raises(Conflict):
        check(rules, proof, nonces)


def test_unsigned_mode_takes_all_but_a_wrong_proof():
    rules = SigningRules(trusted_keys=TRUST)
    assert check(rules, None) == (None, NonceLog())
    with pytest.raises(Unauthenticated):
        check(rules, changed(signed(), signature="A" * 86))
    with pytest.raises(Unauthenticated, match="can't check it: set PERDURE_ISSUER_KEYS"):
        check(SigningRules(), signed())


def test_rules_that_refuse_everyone_are_refused():
    with pytest.raises(ConfigurationError, match="set PERDURE_ISSUER_KEYS"):
        SigningRules(mode=SigningMode.SIGNED)
    with pytest.raises(ConfigurationError, match="set PERDURE_ISSUER_KEYS"):
        SigningRules(mode=SigningMode.SIGNED, trusted_keys=TrustedKeys(issuers=()))


def test_rules_come_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in os.environ if name.startswith("PERDURE_")]:
        monkeypatch.delenv(name)
    assert SigningSettings().rules() == SigningRules()
    monkeypatch.setenv("PERDURE_ACTS", "signed")
    monkeypatch.setenv("PERDURE_ISSUER_KEYS", f" {ISSUER.public.id}, {OTHER_ISSUER.public.id},")
    monkeypatch.setenv("PERDURE_REVOKED", "abc,")
    set_signing_rules(None)
    try:
        rules = get_signing_rules()
        assert rules.mode is SigningMode.SIGNED
        assert rules.trusted_keys == TrustedKeys(
            issuers=(ISSUER.public, OTHER_ISSUER.public), revoked=frozenset({"abc"})
        )
        assert get_signing_rules() is rules
        monkeypatch.setenv("PERDURE_ACTS", "sometimes")
        set_signing_rules(None)
        with pytest.raises(ConfigurationError, match="'signed' or 'unsigned'"):
            get_signing_rules()
        monkeypatch.setenv("PERDURE_ACTS", "signed")
        monkeypatch.setenv("PERDURE_ISSUER_KEYS", "nonsense")
        with pytest.raises(ConfigurationError, match="is no public key"):
            get_signing_rules()
    finally:
        set_signing_rules(None)
