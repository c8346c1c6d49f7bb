"""Verification of signed actions: each changed field, key or time is refused."""

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
    fields: dict[str, Any] = {
        "roles": [Role.APPROVER],
        "groups": ["Finance"],
        "lifetime": timedelta(hours=8),
        "now": NOW,
    }
    return ActorKey.issue(issuer, actor=actor, **{**fields, "now": NOW, **changes})


ADA = key_of()


def signed(key: ActorKey = ADA, **changes: Any) -> SignedAction:
    fields = {"action": "approve", "target": "Approvals/t1", "payload_digest": DIGEST, "reason": "fine", "at": NOW}
    return key.sign(**{**fields, **changes})


def verify(signed_action: SignedAction, trusted_keys: TrustedKeys = TRUST, /, **changes: Any) -> Any:
    requested = {"action": "approve", "target": "Approvals/t1", "payload_digest": DIGEST, "reason": "fine", "now": NOW}
    return trusted_keys.verify(signed_action, **{**requested, "actor": "ada@example.com", **changes})


def test_verify_returns_actor_roles_and_groups():
    received = SignedAction.model_validate_json(signed().model_dump_json())
    verified = verify(received, role=Role.APPROVER)
    assert (verified.actor, verified.roles, verified.groups) == ("ada@example.com", {Role.APPROVER}, {"finance"})
    assert (verified.key, verified.at) == (ADA.credential.key, NOW)


def test_actor_is_compared_canonically():
    assert verify(signed(), actor="ADA@example.com ").actor == "ada@example.com"


def changed(action: SignedAction, /, **fields: Any) -> SignedAction:
    return action.model_copy(update=fields)


def with_credential(action: SignedAction, /, **fields: Any) -> SignedAction:
    return action.model_copy(update={"credential": action.credential.model_copy(update=fields)})


EVE = key_of("eve@example.com", roles=[Role.OPERATOR])
MINUTE = timedelta(minutes=1)


@pytest.mark.parametrize(
    ("reason", "error", "action", "requested"),
    [
        ("action", Forbidden, signed(), {"action": "reject"}),
        ("target", Forbidden, signed(), {"target": "Approvals/t2"}),
        ("reason", Forbidden, signed(), {"reason": "very fine"}),
        ("details", Forbidden, signed(details={"to": "bob"}), {"details": {"to": "eve"}}),
        ("details", Forbidden, signed(), {"details": {"to": "eve"}}),
        ("details", Forbidden, signed(details={"to": "bob"}), {}),
        ("actor", Forbidden, signed(), {"actor": "bob@example.com"}),
        ("actor", Forbidden, signed(EVE), {}),
        ("payload", Conflict, signed(), {"payload_digest": json_digest({"amount": 6})}),
        ("action_signature", Unauthenticated, changed(signed(), action="reject"), {"action": "reject"}),
        ("action_signature", Unauthenticated, changed(signed(), reason="other"), {"reason": "other"}),
        ("action_signature", Unauthenticated, changed(signed(), at=NOW + MINUTE), {}),
        ("action_signature", Unauthenticated, changed(signed(), nonce="A" * 22), {}),
        ("action_signature", Unauthenticated, changed(signed(), signature=signed(EVE).signature), {}),
        ("action_signature", Unauthenticated, changed(signed(), signature="A" * 86), {}),
        ("action_signature", Unauthenticated, changed(signed(EVE), credential=ADA.credential), {}),
        # A genuine signature, but over the credential.
        ("action_signature", Unauthenticated, changed(signed(), signature=ADA.credential.signature), {}),
        ("credential_signature", Unauthenticated, with_credential(signed(), roles=(Role.ADMINISTRATOR,)), {}),
        ("credential_signature", Unauthenticated, with_credential(signed(), actor="eve@example.com"), {}),
        ("credential_signature", Unauthenticated, with_credential(signed(), key=EVE.credential.key), {}),
        ("credential_signature", Unauthenticated, with_credential(signed(), groups=("admins",)), {}),
        ("credential_signature", Unauthenticated, with_credential(signed(), expires_at=NOW + 900 * MINUTE), {}),
        ("issuer", Unauthenticated, signed(key_of(issuer=OTHER_ISSUER)), {}),
        # The actor cannot name a trusted issuer in place of the actual one.
        ("issuer", Unauthenticated, with_credential(signed(), issuer=OTHER_ISSUER.public.id), {}),
        ("too_old", Unauthenticated, signed(), {"now": NOW + timedelta(minutes=5, seconds=31)}),
        ("future", Unauthenticated, signed(at=NOW + timedelta(seconds=31)), {}),
        ("credential_expired", Unauthenticated, signed(key_of(lifetime=MINUTE)), {"now": NOW + MINUTE}),
        ("credential_early", Unauthenticated, signed(key_of(now=NOW + MINUTE)), {}),
        ("operator", Forbidden, signed(), {"role": Role.OPERATOR}),
        ("administrator", Forbidden, signed(), {"role": Role.ADMINISTRATOR}),
    ],
)
def test_refuse_mismatched_signature(
    reason: str, error: type[TerminalError], action: SignedAction, requested: dict[str, Any]
):
    with pytest.raises(error) as refused:
        verify(action, **requested)
    fields = refused.value.metadata or {}
    assert reason in (fields.get("why"), fields.get("role"))
    assert refused.value.status_code in (401, 403, 409)


def test_limits_of_time():
    assert verify(signed(), now=NOW + timedelta(minutes=5, seconds=30))
    assert verify(signed(at=NOW + timedelta(seconds=30)))
    assert verify(signed(key_of(now=NOW + timedelta(seconds=30))))
    short = signed(key_of(lifetime=MINUTE))
    assert verify(short, now=NOW + MINUTE - timedelta(microseconds=1))


def test_refuse_revoked_credential_or_key():
    for revoked in (ADA.credential.serial, ADA.credential.key):
        with pytest.raises(Unauthenticated, match="is revoked"):
            verify(signed(), TrustedKeys(issuers=(ISSUER.public,), revoked=frozenset({revoked})))


def test_accept_both_issuers_during_rotation():
    both = TrustedKeys(issuers=(OTHER_ISSUER.public, ISSUER.public))
    assert verify(signed(), both)
    assert verify(signed(key_of(issuer=OTHER_ISSUER)), both)


@pytest.mark.parametrize(("roles", "is_viewer"), [(["viewer"], True), (["operator"], True), ([], False)])
def test_every_role_includes_viewer(roles: list[str], is_viewer: bool):
    verified = verify(signed(key_of(roles=roles)))
    assert verified.has(Role.VIEWER) is is_viewer
    if not is_viewer:
        with pytest.raises(Forbidden, match=r"requires the role viewer; roles of ada@example\.com: none"):
            verified.require(Role.VIEWER)


def test_times_are_compared_in_utc():
    there = NOW.astimezone(timezone(timedelta(hours=9)))
    action = signed(at=there)
    assert action.at.utcoffset() == timedelta(0)
    assert verify(SignedAction.model_validate_json(action.model_dump_json().replace("12:00:00Z", "14:00:00+02:00")))


@pytest.mark.parametrize(
    "change",
    [
        {"action": "Approve"},
        {"action": ""},
        {"target": ""},
        {"target": "x" * 601},
        {"target": "half a \ud800"},
        {"payload_digest": "0" * 63},
        {"payload_digest": DIGEST.upper()},
        {"reason": "x" * 2001},
        {"at": datetime(2026, 1, 1)},  # noqa: DTZ001 - without a time zone
    ],
)
def test_reject_signing_invalid_action(change: dict[str, Any]):
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
def test_reject_reading_invalid_action(change: Callable[[dict[str, Any]], dict[str, Any]]):
    with pytest.raises(ValidationError):
        SignedAction.model_validate_json(json.dumps(change(json.loads(signed().model_dump_json()))))


def test_reject_other_spelling_of_signature():
    action = signed()
    last = action.signature[-1]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    twin = alphabet[alphabet.index(last) ^ 1]  # differs in unused bits only
    with pytest.raises(Unauthenticated):
        verify(changed(action, signature=action.signature[:-1] + twin))


# --- nonces ------------------------------------------------------------------------------------------------------


def test_action_is_used_once():
    verified = verify(signed())
    log = NonceLog().use(verified.nonce, until=verified.fresh_until, now=NOW, by="ada")
    kept = NonceLog.model_validate_json(log.model_dump_json())
    with pytest.raises(Conflict, match="each is valid once") as refused:
        kept.use(verified.nonce, until=verified.fresh_until, now=NOW, by="ada")
    assert (refused.value.metadata or {})["why"] == "replayed"
    other = verify(signed())
    assert len(kept.use(other.nonce, until=other.fresh_until, now=NOW, by="ada").used) == 2


def test_nonce_is_stored_until_action_expires():
    verified = verify(signed())
    log = NonceLog().use(verified.nonce, until=verified.fresh_until, now=NOW, by="ada")
    last = verified.fresh_until  # inclusive
    assert verify(signed(), now=last)
    later = log.use("another", until=last + MINUTE, now=last - timedelta(microseconds=1), by="ada")
    assert verified.nonce in later.used
    with pytest.raises(Conflict):
        log.use("another", until=last + MINUTE, now=last, by="ada").use(verified.nonce, until=last, now=last, by="ada")
    assert list(log.use("another", until=last + MINUTE, now=last + MINUTE, by="ada").used) == ["another"]


def test_nonces_are_unique_per_key():
    copied = changed(signed(EVE), nonce=signed().nonce)
    again = EVE.sign("approve", "Approvals/t1", DIGEST, at=NOW)
    assert copied.nonce != again.nonce
    action = signed()
    mine = verify(action)
    assert mine.nonce == verify(action).nonce
    assert mine.nonce != action.nonce  # derived with the key


# --- key files ---------------------------------------------------------------------------------------------------


def test_key_file_contains_key_and_credential(tmp_path: Path):
    path = tmp_path / "ada.key"
    ADA.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    loaded = ActorKey.load(path)
    assert loaded.credential == ADA.credential
    assert verify(signed(loaded))
    with pytest.raises(ConfigurationError, match="never overwritten"):
        ADA.save(path)
    path.chmod(0o644)
    with pytest.raises(ConfigurationError, match="readable by others"):
        ActorKey.load(path)


def test_actor_key_is_never_revealed(tmp_path: Path):
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
    with pytest.raises(ConfigurationError, match="is not an actor's key file") as refused:
        ActorKey.load(path)
    assert secret not in str(refused.value)


def test_issue_credential_for_session_key():
    session = PrivateKey.generate()
    credential = issue_credential(
        ISSUER, actor="bob", key=session.public, roles=["approver"], lifetime=timedelta(hours=1), now=NOW
    )
    assert verify(signed(ActorKey(session, credential)), actor="bob").roles == {Role.APPROVER}
    with pytest.raises(ValidationError):
        issue_credential(ISSUER, actor="bob", key=session.public, roles=[], lifetime=timedelta(0), now=NOW)


# --- rules -------------------------------------------------------------------------------------------------------


def check(rules: SigningRules, action: SignedAction | None, nonces: NonceLog | None = None) -> Any:
    return rules.check(
        action,
        action="approve",
        target="Approvals/t1",
        payload_digest=DIGEST,
        now=NOW,
        actor="ada@example.com",
        reason="fine",
        role=Role.APPROVER,
        nonces=nonces or NonceLog(),
    )


def test_signed_mode_requires_unused_signature():
    rules = SigningRules(mode=SigningMode.SIGNED, trusted_keys=TRUST)
    with pytest.raises(Unauthenticated, match="must be signed"):
        check(rules, None)
    action = signed()
    verified, nonces = check(rules, action)
    assert verified.actor == "ada@example.com"
    with pytest.raises(Conflict):
        check(rules, action, nonces)


def test_unsigned_mode_rejects_invalid_signature():
    rules = SigningRules(trusted_keys=TRUST)
    assert check(rules, None) == (None, NonceLog())
    with pytest.raises(Unauthenticated):
        check(rules, changed(signed(), signature="A" * 86))
    with pytest.raises(Unauthenticated, match="cannot verify signed actions: set PERDURE_ISSUER_KEYS"):
        check(SigningRules(), signed())


def test_signed_mode_requires_an_issuer():
    with pytest.raises(ConfigurationError, match="set PERDURE_ISSUER_KEYS"):
        SigningRules(mode=SigningMode.SIGNED)
    with pytest.raises(ConfigurationError, match="set PERDURE_ISSUER_KEYS"):
        SigningRules(mode=SigningMode.SIGNED, trusted_keys=TrustedKeys(issuers=()))


def test_rules_are_read_from_environment(monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in os.environ if name.startswith("PERDURE_")]:
        monkeypatch.delenv(name)
    assert SigningSettings().rules() == SigningRules()
    monkeypatch.setenv("PERDURE_ACTIONS", "signed")
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
        monkeypatch.setenv("PERDURE_ACTIONS", "sometimes")
        set_signing_rules(None)
        with pytest.raises(ConfigurationError, match="'signed' or 'unsigned'"):
            get_signing_rules()
        monkeypatch.setenv("PERDURE_ACTIONS", "signed")
        monkeypatch.setenv("PERDURE_ISSUER_KEYS", "nonsense")
        with pytest.raises(ConfigurationError, match="is not a public key"):
            get_signing_rules()
    finally:
        set_signing_rules(None)
