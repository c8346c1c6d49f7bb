"""Caller tokens: changed fields and other calls than the signed one are refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from perdure.errors import ConfigurationError, Forbidden, InvalidInput, Unauthenticated
from perdure.security import ActorKey, Caller, CallerKind, CallTarget, PrivateKey, TrustedKeys, sign_call, verify_call
from perdure.security.callers import CALL_START_WINDOW, MAX_CALLER_TOKEN, SignedCall, issue_call_token
from perdure.security.links import mint_link, read_link
from perdure.security.platform import platform_from_environment

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ISSUER, OTHER = PrivateKey(b"i" * 32), PrivateKey(b"o" * 32)
TRUST = TrustedKeys(issuers=(ISSUER.public,), platform="shop")
TARGET = CallTarget(service="Trips", handler="run", key="T1")
BODY = b'{"traveller":"ada@example.com"}'
SHOP = Caller(name="key:shop", kind=CallerKind.PROGRAM, owner="olga@example.com")
ADA = ActorKey.issue(
    ISSUER, actor="ada@example.com", roles=["operator"], lifetime=timedelta(hours=1), now=NOW, platform="shop"
)


def token(caller: Caller = SHOP, issuer: PrivateKey = ISSUER, **changes: Any) -> str:
    arguments = {"target": TARGET, "body": BODY, "at": NOW, "platform": "shop", **changes}
    return issue_call_token(issuer, caller, **arguments)


def check(text: str, trusted_keys: TrustedKeys = TRUST, **changes: Any) -> Caller:
    request = {"target": TARGET, "body": BODY, "now": NOW, **changes}
    return verify_call(trusted_keys, text, **request)


def refusal(text: str, trusted_keys: TrustedKeys = TRUST, **changes: Any) -> str:
    with pytest.raises(Unauthenticated) as refused:
        check(text, trusted_keys, **changes)
    assert refused.value.status_code == 401
    return (refused.value.metadata or {})["why"]


def test_gateway_token_names_program_and_owner():
    assert check(token()) == SHOP


def test_person_signs_own_call():
    signed = sign_call(ADA, TARGET, BODY, at=NOW)
    assert check(signed) == Caller(name="ada@example.com")


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("target", {"target": CallTarget(service="Trips", handler="run", key="T2")}),
        ("target", {"target": CallTarget(service="Trips", handler="status", key="T1")}),
        ("target", {"target": CallTarget(service="Tours", handler="run", key="T1")}),
        ("target", {"target": CallTarget(service="Trips", handler="run")}),
        ("body", {"body": BODY + b" "}),
        ("body", {"body": b""}),
        ("expired", {"now": NOW + CALL_START_WINDOW + timedelta(seconds=30)}),
        ("future", {"now": NOW - timedelta(seconds=31)}),
    ],
)
def test_refuse_token_for_another_call(reason: str, changes: dict[str, Any]):
    assert refusal(token(), **changes) == reason
    now = changes.get("now", NOW)
    expected = {"credential_expired", "credential_early"} if now != NOW else {reason}
    assert refusal(sign_call(ADA, TARGET, BODY, at=NOW), **changes) in expected


def test_delayed_send_may_begin_later():
    delayed = token(delay=timedelta(days=3))
    assert check(delayed, now=NOW + timedelta(days=3, hours=23)) == SHOP
    assert refusal(delayed, now=NOW + timedelta(days=4, minutes=1)) == "expired"


def test_body_is_checked_only_for_handlers_with_input():
    assert check(token(), body=None) == SHOP


def test_refuse_untrusted_signers():
    assert refusal(token(issuer=OTHER)) == "issuer"
    stranger = ActorKey.issue(
        OTHER, actor="ada@example.com", roles=["operator"], lifetime=timedelta(hours=1), now=NOW, platform="shop"
    )
    assert refusal(sign_call(stranger, TARGET, BODY, at=NOW)) == "issuer"
    assert refusal(
        token(), TrustedKeys(issuers=(ISSUER.public,), platform="shop", revoked=frozenset({ISSUER.public.id}))
    ) == ("revoked")
    for revoked in (ADA.credential.serial, ADA.credential.key):
        trusted_keys = TrustedKeys(issuers=(ISSUER.public,), platform="shop", revoked=frozenset({revoked}))
        assert refusal(sign_call(ADA, TARGET, BODY, at=NOW), trusted_keys) == "revoked"


def test_person_cannot_pose_as_program():
    with pytest.raises(ValidationError, match="another caller"):
        SignedCall.signed_by(
            ADA.private_key,
            **_fields(token()),
            signer=ADA.credential.key,
            credential=ADA.credential,
        )


def test_refuse_person_token_with_long_lifetime():
    fields = _fields(sign_call(ADA, TARGET, BODY, at=NOW)) | {"expires_at": NOW + timedelta(days=30)}
    long = SignedCall.signed_by(ADA.private_key, **fields, signer=ADA.credential.key, credential=ADA.credential)
    assert refusal(long.token()) == "expired"


def _fields(text: str) -> dict[str, Any]:
    found = SignedCall.from_token(text, max_length=MAX_CALLER_TOKEN)
    assert found is not None
    return {
        name: getattr(found, name)
        for name in SignedCall.model_fields
        if name not in ("signature", "signer", "credential")
    }


TOKENS = (token(), sign_call(ADA, TARGET, BODY, at=NOW))

texts = st.text(min_size=1, max_size=40)
changes = st.one_of(
    st.builds(lambda to: {"platform": to}, st.sampled_from(["perdure", "shop2", "Shop"])),
    st.builds(lambda to: {"caller": to}, texts),
    st.builds(lambda to: {"owner": to}, st.one_of(st.none(), texts)),
    st.builds(lambda to: {"kind": to}, st.sampled_from(["person", "program"])),
    st.builds(lambda to: {"target": {"service": "Trips", "handler": "run", "key": to}}, texts),
    st.builds(lambda to: {"body_digest": to}, st.text(alphabet="0123456789abcdef", min_size=64, max_size=64)),
    st.builds(lambda to: {"at": NOW + timedelta(seconds=to)}, st.integers(-1000, 1000)),
    st.builds(lambda to: {"expires_at": NOW + timedelta(seconds=to)}, st.integers(1, 10**7)),
    st.builds(lambda to: {"signer": to.public.id}, st.sampled_from([ISSUER, OTHER])),
    st.builds(lambda to: {"credential": to}, st.sampled_from([None, ADA.credential])),
)


@given(st.sampled_from(TOKENS), changes)
def test_reject_any_changed_field(text: str, change: dict[str, Any]):
    genuine = SignedCall.from_token(text, max_length=MAX_CALLER_TOKEN)
    assert genuine is not None
    try:
        changed = SignedCall.model_validate({**genuine.model_dump(), **change})
    except ValidationError:
        return  # not a valid token
    if changed == genuine:
        return
    try:
        verify_call(
            TRUST,
            changed.token(),
            target=changed.target,
            body=None,
            now=NOW,
        )
    except (Unauthenticated, Forbidden):
        return
    raise AssertionError(f"{change} was accepted")


@given(st.sampled_from(TOKENS), st.integers(0, 4000), st.integers(1, 127))
def test_reject_any_changed_character(text: str, place: int, shift: int):
    at = place % len(text)
    changed = text[:at] + chr((ord(text[at]) + shift) % 128) + text[at + 1 :]
    with pytest.raises(Unauthenticated):
        check(changed, body=None)


@pytest.mark.parametrize("text", ["", ".", "x", "a.b", "e30.e30", TOKENS[0] + "=", TOKENS[0] + ".", "A" * 20_000])
def test_refuse_malformed_token(text: str):
    assert refusal(text) == "caller_token"


def test_caller_name_may_be_non_ascii():
    zoe = Caller(name="zoë 王@example.com")
    assert check(token(zoe)).name == "zoë 王@example.com"
    assert token(zoe).isascii()


def test_refuse_long_token():
    crowd = ActorKey.issue(
        ISSUER,
        actor="ada",
        roles=["viewer"],
        groups=[f"{number:03d}" + "x" * 190 for number in range(100)],
        lifetime=timedelta(hours=1),
        now=NOW,
    )
    with pytest.raises(InvalidInput, match="the limit is 16384"):
        sign_call(crowd, TARGET, BODY, at=NOW)


def test_refuse_signatures_of_another_platform():
    elsewhere = TrustedKeys(issuers=(ISSUER.public,), platform="bank")
    assert refusal(token(), elsewhere) == "platform"
    assert refusal(sign_call(ADA, TARGET, BODY, at=NOW), elsewhere) == "platform"
    action = ADA.sign("approve", "Approvals/t1", "0" * 64, at=NOW)
    request: dict[str, Any] = {
        "action": "approve", "target": "Approvals/t1", "payload_digest": "0" * 64, "now": NOW, "actor": ADA.actor
    }  # fmt: skip
    assert TRUST.verify(action, **request).actor == ADA.actor
    with pytest.raises(Unauthenticated, match="for the platform 'shop'; this is 'bank'"):
        elsewhere.verify(action, **request)
    link = mint_link(
        ISSUER,
        approval_id="t1",
        person="ada",
        payload_digest="0" * 64,
        issued_at=NOW,
        expires_at=NOW + timedelta(hours=1),
        nonce="n" * 20,
        platform="shop",
    )
    assert read_link(link, [ISSUER.public], now=NOW, platform="shop").person == "ada"
    with pytest.raises(Unauthenticated, match="for the platform 'shop'"):
        read_link(link, [ISSUER.public], now=NOW, platform="bank")


def test_platform_is_read_from_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PERDURE_PLATFORM", raising=False)
    assert platform_from_environment() == "perdure"
    monkeypatch.setenv("PERDURE_PLATFORM", "shop-eu")
    assert platform_from_environment() == "shop-eu"
    key = ActorKey.issue(ISSUER, actor="ada", roles=["viewer"], lifetime=timedelta(hours=1), now=NOW)
    assert key.credential.platform == TrustedKeys(issuers=()).platform == "shop-eu"
    for wrong in ("a b", "x" * 65, "zoë"):
        with pytest.raises(ConfigurationError, match="PERDURE_PLATFORM"):
            platform_from_environment({"PERDURE_PLATFORM": wrong})
