"""Decision links: forged, damaged, expired and reused ones are refused."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from perdure.errors import Conflict, Forbidden, Unauthenticated
from perdure.security import NonceLog, PrivateKey, json_digest, mint_link, read_link
from perdure.security.encodings import base64url_decode, base64url_encode

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
KEY, OLD_KEY, STRANGER = (PrivateKey(bytes([number]) * 32) for number in (1, 2, 3))
DIGEST = json_digest({"amount": 5})


def mint(key: PrivateKey = KEY, **changes: Any) -> str:
    fields = {
        "approval_id": "trip 1/ä",
        "person": "Ada@example.com",
        "payload_digest": DIGEST,
        "issued_at": NOW,
        "expires_at": NOW + timedelta(hours=1),
        "nonce": "6e4c1a52-52f0-4b5b-8c3e-1f2d3c4b5a69",
    }
    return mint_link(key, **{**fields, **changes})


def read(token: str, now: datetime = NOW) -> Any:
    return read_link(token, [KEY.public, OLD_KEY.public], now=now)


def test_link_contains_person_approval_and_payload():
    link = read(mint())
    assert (link.approval_id, link.person, link.payload_digest) == ("trip 1/ä", "ada@example.com", DIGEST)
    link.check(approval_id="trip 1/ä", payload_digest=DIGEST)
    assert read(mint(OLD_KEY)) != link


def test_link_token_is_url_safe_and_deterministic():
    token = mint()
    assert set(token) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")
    assert len(token) < 500
    assert mint() == token


def test_link_is_bound_to_approval_and_payload():
    link = read(mint())
    with pytest.raises(Forbidden, match="another approval"):
        link.check(approval_id="trip 2", payload_digest=DIGEST)
    with pytest.raises(Conflict, match="has changed"):
        link.check(approval_id="trip 1/ä", payload_digest=json_digest({"amount": 6}))


def test_link_is_used_once():
    link = read(mint())
    log = NonceLog().use(link.nonce, by=link.person, until=link.expires_at, now=NOW, is_link=True)
    with pytest.raises(Conflict):
        log.use(link.nonce, by=link.person, until=link.expires_at, now=NOW, is_link=True)


def test_link_expires():
    assert read(mint(), NOW + timedelta(minutes=59, seconds=59))
    with pytest.raises(Unauthenticated, match="expired at 2026-03-01 13:00:00 UTC"):
        read(mint(), NOW + timedelta(hours=1))


def test_reject_link_from_the_future():
    assert read(mint(issued_at=NOW + timedelta(seconds=30)))
    with pytest.raises(Unauthenticated, match="in the future"):
        read(mint(issued_at=NOW + timedelta(seconds=31)))


def rewritten(token: str, **changes: Any) -> str:
    """Change fields of a token and keep its signature."""
    body, _, signature = token.partition(".")
    fields = json.loads(base64url_decode(body)) | changes
    return f"{base64url_encode(json.dumps(fields, sort_keys=True, separators=(',', ':')).encode())}.{signature}"


good = mint()


@pytest.mark.parametrize(
    "token",
    [
        mint(STRANGER),
        rewritten(good, person="eve@example.com"),
        rewritten(good, approval_id="trip 2"),
        rewritten(good, expires_at="2036-03-01T13:00:00Z"),
        rewritten(good, issued_at="2026-03-01T12:00:01Z"),
        rewritten(good, payload_digest="0" * 64),
        rewritten(good, signature="A" * 86),
        rewritten(good, more=1),
        good[:-1],
        good + "A",
        good + "=",
        good + ".",
        "." + good,
        " " + good,
        good.replace(".", ""),
        good.replace(".", "%2E"),
        good.partition(".")[0] + "." + mint(nonce="x" * 16).partition(".")[2],
        good.partition(".")[0] + ".",
        ".",
        "",
        "e30." + "A" * 86,
        "bnVsbA." + "A" * 86,
        base64url_encode(b"[" * 3000) + "." + "A" * 86,
        "A" * 5000,
        "ä." + "A" * 86,
        base64url_encode(base64url_decode(good.partition(".")[0]) + b" ") + "." + good.partition(".")[2],
    ],
)
def test_reject_forged_or_damaged_link(token: str):
    with pytest.raises(Unauthenticated):
        read(token)


@pytest.mark.parametrize(
    "change", [{"person": ""}, {"nonce": "short"}, {"approval_id": "x" * 257}, {"payload_digest": "x"}]
)
def test_reject_invalid_link_fields(change: dict[str, Any]):
    with pytest.raises(ValidationError):
        mint(**change)
