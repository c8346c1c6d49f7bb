"""Request identity: the verifier's decisions compared with those of the SDK's verifier."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from restate._internal import (
    IdentityVerificationException,
    PyIdentityVerifier,
)

from perdure.errors import IdentityError
from perdure.security import PrivateKey
from perdure.security.encodings import base64url_encode
from perdure.security.identity import SCHEME_HEADER, TOKEN_HEADER, IdentityVerifier, normalised_path

KEY, OLD_KEY, STRANGER = (PrivateKey(bytes([number]) * 32) for number in (1, 2, 3))
PATH = "/invoke/Trips/run"
Headers = list[tuple[bytes, bytes]]
ABSENT: Any = object()


def now() -> int:
    return int(time.time())


def token(
    key: PrivateKey = KEY,
    *,
    head: dict[str, Any] | bytes | None = None,
    claims: dict[str, Any] | bytes | None = None,
    **changes: Any,
) -> str:
    """Sign a token. Keyword arguments change claims; ABSENT removes one."""
    made = now()
    facts = {"aud": PATH, "iat": made, "nbf": made - 60, "exp": made + 60, **changes}
    facts = {name: value for name, value in facts.items() if value is not ABSENT}
    written = claims if isinstance(claims, bytes) else json.dumps(facts if claims is None else claims).encode()
    header = {"typ": "JWT", "alg": "EdDSA", "kid": key.public.id} if head is None else head
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    signed = f"{base64url_encode(encoded)}.{base64url_encode(written)}"
    return f"{signed}.{base64url_encode(key.sign(signed.encode()))}"


def sent(jwt: str | bytes, scheme: bytes = b"v1") -> Headers:
    return [(SCHEME_HEADER, scheme), (TOKEN_HEADER, jwt if isinstance(jwt, bytes) else jwt.encode("latin-1"))]


HEAD = {"typ": "JWT", "alg": "EdDSA", "kid": KEY.public.id}


def with_alg(alg: str) -> str:
    return token(head={**HEAD, "alg": alg})


@dataclass
class Case:
    name: str
    headers: Headers
    ok: bool = False
    path: str = PATH
    stricter: str = ""
    """Why this case is refused although the SDK accepts it."""
    says: str = field(default="")


def cases() -> list[Case]:
    """Return fresh cases: the SDK's verifier reads the clock, and a token is valid for a minute."""
    good = token()
    unsigned_none = f"{base64url_encode(json.dumps({**HEAD, 'alg': 'none'}).encode())}.{good.split('.')[1]}."
    flipped = good[:-2] + ("A" if good[-2] != "A" else "B") + good[-1]

    claims = json.dumps({"aud": PATH, "iat": now(), "nbf": now() - 60, "exp": now() + 60})

    def with_field(text: bytes) -> bytes:
        return claims[:-1].encode() + b"," + text + b"}"

    return [
        Case("genuine", sent(good), ok=True),
        Case("genuine, by the previous key", sent(token(OLD_KEY)), ok=True),
        Case("no headers", [], says="not signed"),
        Case("no scheme", sent(good)[1:], says="not signed"),
        Case("no token", sent(good)[:1], says="no token"),
        Case("scheme unsigned", sent(good, b"unsigned"), says="marked as unsigned"),
        Case("scheme v2", sent(good, b"v2"), says="scheme is unknown"),
        Case("scheme in capitals", sent(good, b"V1")),
        Case("scheme with a space", sent(good, b" v1")),
        Case("scheme empty", sent(good, b"")),
        Case("an unknown key", sent(token(STRANGER)), says="unknown key"),
        Case("a foreign signature with a known kid", sent(token(STRANGER, head=HEAD)), says="not signed by the key"),
        Case("expired", sent(token(exp=now() - 5)), says="expired"),
        Case("expired long ago", sent(token(iat=now() - 7200, nbf=now() - 7260, exp=now() - 7140))),
        Case("from the future", sent(token(nbf=now() + 100, iat=now() + 160, exp=now() + 220)), says="not valid yet"),
        Case("for another handler", sent(token(aud="/invoke/Trips/status")), says="another path"),
        Case("for another service", sent(token(aud="/invoke/Refunds/run"))),
        Case("for discovery", sent(token(aud="/discover"))),
        Case("aud a list with the path", sent(token(aud=["/discover", PATH])), ok=True),
        Case("aud a list without it", sent(token(aud=["/discover"]))),
        Case("aud an empty list", sent(token(aud=[]))),
        Case("aud a list with a number", sent(token(aud=[PATH, 1]))),
        Case("aud null", sent(token(aud=None))),
        Case("aud the start of the path", sent(token(aud="/invoke/Trips"))),
        Case("aud with a slash at the end", sent(token(aud=PATH + "/"))),
        Case("no aud", sent(token(aud=ABSENT))),
        Case("no exp", sent(token(exp=ABSENT))),
        Case("no nbf", sent(token(nbf=ABSENT))),
        Case("exp a text", sent(token(exp=str(now() + 60)))),
        Case("exp negative", sent(token(exp=-1))),
        Case("exp a fraction", sent(token(exp=now() + 59.5)), ok=True),
        Case("exp true", sent(token(exp=True))),
        Case("exp beyond 64 bits", sent(token(exp=2**64))),
        Case("nbf null", sent(token(nbf=None))),
        Case("nbf negative", sent(token(nbf=-5))),
        Case("alg none, no signature", sent(unsigned_none), says="EdDSA"),
        Case("alg none, signed", sent(with_alg("none"))),
        Case("alg HS256 with the public key", sent(with_alg("HS256"))),
        Case("alg RS256", sent(with_alg("RS256"))),
        Case("alg ES256", sent(with_alg("ES256"))),
        Case("alg in small letters", sent(with_alg("eddsa"))),
        Case("no alg", sent(token(head={"typ": "JWT", "kid": KEY.public.id}))),
        Case("alg twice", sent(token(head=json.dumps(HEAD)[:-1].encode() + b',"alg":"EdDSA"}'))),
        Case("typ a number", sent(token(head={**HEAD, "typ": 1}))),
        Case("no typ", sent(token(head={"alg": "EdDSA", "kid": KEY.public.id})), ok=True),
        Case("kid a number", sent(token(head={**HEAD, "kid": 1}))),
        Case("one bit of the signature changed", sent(flipped)),
        Case(
            "claims changed after signing",
            sent(".".join([good.split(".")[0], token(exp=now() + 9999).split(".")[1], good.split(".")[2]])),
        ),
        Case("no signature", sent(good.rpartition(".")[0] + ".")),
        Case("two parts", sent(good.rpartition(".")[0]), says="three parts"),
        Case("four parts", sent(good + ".x")),
        Case("extra dots", sent(good.replace(".", ".."))),
        Case("cut off", sent(good[:-10])),
        Case("only dots", sent("..")),
        Case("empty", sent("")),
        Case("padded", sent(good + "==")),
        Case("a space behind", sent(good + " ")),
        Case("a space before", sent(" " + good)),
        Case("Bearer before", sent("Bearer " + good)),
        Case("a line break inside", sent(good[:50] + "\n" + good[50:])),
        Case("base64 instead of base64url", sent(good[:50] + "+" + good[51:])),
        Case("a null character", sent(good + "\0")),
        Case("header no JSON", sent(token(head=b"EdDSA"))),
        Case("header a list", sent(token(head=b"[]"))),
        Case("claims no JSON", sent(token(claims=b"{"))),
        Case("claims a list", sent(token(claims=b"[]"))),
        Case("claims with a byte order mark", sent(token(claims=b"\xef\xbb\xbf" + claims.encode()))),
        Case("claims with spaces around", sent(token(claims=f"  {claims}\n".encode())), ok=True),
        Case("claims with NaN", sent(token(claims=with_field(b'"x":NaN')))),
        Case("claims with a raw line break", sent(token(claims=with_field(b'"x":"\n"')))),
        Case("exp twice", sent(token(claims=with_field(f'"exp":{now() + 999}'.encode())))),
        Case("unknown claims", sent(token(sub="x", extra={"deep": [1, 2]})), ok=True),
        Case("mounted under a prefix", sent(good), ok=True, path="/prefix/deeper" + PATH),
        Case("two slashes before", sent(good), ok=True, path="/" + PATH),
        Case("two slashes inside", sent(good), path="/invoke//Trips/run"),
        Case("a slash behind", sent(good), path=PATH + "/"),
        Case("dots in the path", sent(good), path="/invoke/Trips/../run"),
        Case("percent in the path", sent(good), path="/invoke%2FTrips/run"),
        Case("a query in the path", sent(good), path=PATH + "?x"),
        Case("discovery", sent(token(aud="/discover")), ok=True, path="/discover"),
        Case("discovery under a prefix", sent(token(aud="/discover")), ok=True, path="/prefix/discover"),
        Case("discovery with a slash behind", sent(token(aud="/discover")), path="/discover/"),
        Case("a handler named discover", sent(token(aud="/discover")), path="/invoke/Trips/discover"),
        Case("a service named invoke", sent(token(aud="/invoke/invoke/run")), ok=True, path="/invoke/invoke/run"),
        Case("an invocation token for discovery", sent(good), path="/discover"),
        Case("an unknown path", sent(token(aud="/secret")), ok=True, path="/secret"),
        # Deliberately stricter.
        Case("no kid", sent(token(head={"alg": "EdDSA"})), stricter="restate-server sends kid"),
        Case("another kid", sent(token(head={**HEAD, "kid": "x"})), stricter="restate-server sends kid"),
        Case("no iat", sent(token(iat=ABSENT)), stricter="restate-server sends iat"),
        Case("iat a text", sent(token(iat="now")), stricter="restate-server sends iat"),
        Case(
            "made in an hour", sent(token(iat=now() + 3600)), stricter="restate-server issues no tokens in the future"
        ),
        Case("exp the largest number", sent(token(exp=2**64 - 1)), stricter="restate-server tokens last two minutes"),
        Case(
            "two minutes and a second", sent(token(nbf=now() - 62)), stricter="restate-server tokens last two minutes"
        ),
        Case(
            "two minutes and a second since iat",
            sent(token(iat=now() - 91, nbf=now() - 50, exp=now() + 30)),
            stricter="restate-server tokens last two minutes",
        ),
        Case("crit", sent(token(head={**HEAD, "crit": ["x"]})), stricter="RFC 7515, section 4.1.11"),
        Case(
            "an unknown field twice",
            sent(token(claims=with_field(b'"x":1,"x":2'))),
            stricter="parsers differ on duplicates",
        ),
        Case("no UTF-8", sent(token(claims=claims[:-1].encode() + b',"x":"\xff"}')), stricter="JSON is UTF-8"),
        Case("a second scheme", [*sent(good), (SCHEME_HEADER, b"unsigned")], stricter="parsers differ on duplicates"),
        Case("a second token behind", [*sent(good), (TOKEN_HEADER, b"x")], stricter="parsers differ on duplicates"),
        Case("a second token before", [(TOKEN_HEADER, b"x"), *sent(good)]),
        Case("the longest key of the ingress", sent(token(sub="\x01" * 21_000)), ok=True),
        Case("256 KiB of token", sent(token(x="y" * 200_000)), stricter="restate-server sends no header of this size"),
    ]


NAMES = [case.name.replace(" ", "-") for case in cases()]

sdk_verifier = PyIdentityVerifier([KEY.public.id, OLD_KEY.public.id])
our_verifier = IdentityVerifier([KEY.public, OLD_KEY.public])


def sdk_accepts(case: Case) -> bool:
    try:
        headers = [(name.decode(), value.decode()) for name, value in case.headers]  # as the SDK decodes them
        sdk_verifier.verify(headers, case.path)
    except IdentityVerificationException:
        return False
    return True


def test_identity_cases_are_complete():
    assert len(NAMES) == len(set(NAMES)) >= 90
    assert sum(case.ok for case in cases()) >= 14


def error_of(case: Case) -> str | None:
    """Return the verifier's error, or None for an accepted request."""
    try:
        our_verifier.verify(case.headers, case.path, now=now())
    except IdentityError as error:
        return str(error)
    return None


@pytest.mark.parametrize("number", range(len(NAMES)), ids=NAMES)
def test_verifier_agrees_with_sdk(number: int):
    case = cases()[number]
    ours = error_of(case)
    assert (ours is None) is case.ok
    assert sdk_accepts(case) is (case.ok or bool(case.stricter))
    if ours is not None:
        assert case.says in ours
        assert not any(len(value) > 9 and value.decode("latin-1") in ours for _, value in case.headers)


def test_refuse_token_with_invalid_utf8():
    headers = sent(b"\xff\xfe")
    with pytest.raises(IdentityError, match="malformed"):
        our_verifier.verify(headers, PATH, now=now())
    with pytest.raises(UnicodeDecodeError):
        sdk_accepts(Case("", headers))


def test_verify_returns_signing_key():
    assert our_verifier.verify(sent(token(OLD_KEY)), PATH, now=now()) == OLD_KEY.public


def test_cached_token_is_checked_for_path_and_time():
    verifier = IdentityVerifier([KEY.public])
    moment = now()
    headers = sent(token(iat=moment, nbf=moment - 60, exp=moment + 60))
    for _ in range(2):
        assert verifier.verify(headers, PATH, now=moment) == KEY.public
    for path, later in (("/invoke/Trips/status", 0), (PATH, 61), (PATH, -61)):
        with pytest.raises(IdentityError):
            verifier.verify(headers, path, now=moment + later)
    for number in range(1100):  # the cache is bounded
        verifier.verify(sent(token(sub=str(number))), PATH, now=now())
    assert len(verifier._cache) <= 512


def test_header_names_are_case_insensitive():
    headers = [(name.upper(), value) for name, value in sent(token())]
    our_verifier.verify(headers, PATH, now=now())


@pytest.mark.parametrize(("later", "ok"), [(-61, False), (-60, True), (0, True), (60, True), (60.9, True), (61, False)])
def test_token_is_valid_from_nbf_to_exp(later: float, ok: bool):
    moment = now()
    headers = sent(token(iat=moment, nbf=moment - 60, exp=moment + 60))
    if ok:
        assert our_verifier.verify(headers, PATH, now=moment + later) == KEY.public
    else:
        with pytest.raises(IdentityError):
            our_verifier.verify(headers, PATH, now=moment + later)


@given(
    st.integers(-400, 400),
    st.integers(-400, 400),
    st.integers(-400, 400),
    st.integers(-500, 500),
    st.integers(-500, 500),
)
def test_token_lifetime_is_limited_to_two_minutes(begin: int, made: int, end: int, first: int, second: int):
    moment = 1_000_000
    headers = sent(token(nbf=moment + begin, iat=moment + made, exp=moment + end))
    taken = []
    for later in (first, second):
        with suppress(IdentityError):
            our_verifier.verify(headers, PATH, now=moment + later)
            taken.append(later)
    if len(taken) == 2:
        assert abs(first - second) <= 120


@pytest.mark.parametrize(
    ("path", "normal"),
    # The cases of Restate's own test.
    [
        ("/invoke/a/b", "/invoke/a/b"),
        ("/foo/invoke/a/b", "/invoke/a/b"),
        ("/foo/bar/invoke/a/b", "/invoke/a/b"),
        ("/discover", "/discover"),
        ("/foo/discover", "/discover"),
        ("/foo", "/foo"),
        ("/invoke", "/invoke"),
        ("/foo/invoke", "/foo/invoke"),
        ("/invoke/a", "/invoke/a"),
        ("/foo/invoke/a", "/foo/invoke/a"),
        ("", ""),
        ("/", "/"),
        ("////", "////"),
        ("discover", "discover"),
        ("foo/discover", "/discover"),
        ("foo/invoke/a/b", "/invoke/a/b"),
    ],
)
def test_mount_point_is_removed_from_path(path: str, normal: str):
    assert normalised_path(path) == normal
