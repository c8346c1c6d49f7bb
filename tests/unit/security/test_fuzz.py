"""Fuzz tests: none of 120,000 mutated signatures crashes a reader or is accepted.

The inputs are mutations of genuine ones, since random input fails at the first character. One example of Hypothesis is
the bytes of a batch of mutations, since drawing a number takes longer than rejecting an input.
"""

from __future__ import annotations

import functools
import json
import struct
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from perdure._runtime.places import Place
from perdure.errors import Conflict, Forbidden, IdentityError, Unauthenticated, UnreadableValue
from perdure.security import ActorKey, PrivateKey, SignedAction, TrustedKeys, json_digest, mint_link, read_link
from perdure.security.codec import JournalCodec
from perdure.security.encodings import base64url_encode
from perdure.security.identity import SCHEME_HEADER, TOKEN_HEADER, IdentityVerifier

BATCH = 100
EXAMPLES = 300  # for each of four readers

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
KEY, OTHER = PrivateKey(b"1" * 32), PrivateKey(b"2" * 32)

Mutation = tuple[int, int, int]


def mutate(genuine: bytes, donor: bytes, mutation: Mutation) -> bytes:
    """Modify a genuine input, or splice it with another one."""
    kind, where, value = mutation
    at = where % (len(genuine) + 1)
    end = min(len(genuine), at + 1 + value % 40)
    return [
        lambda: genuine[:at] + bytes([value % 256]) + genuine[at + 1 :],
        lambda: genuine[:at] + bytes([value % 256]) + genuine[at:],
        lambda: genuine[:at] + genuine[end:],
        lambda: genuine[:at],
        lambda: genuine[at:],
        lambda: genuine[:at] + donor[at:],
        lambda: donor[:at] + genuine[at:],
        lambda: genuine[:at] + genuine[at:end] * 2 + genuine[end:],
        lambda: genuine[:at] + genuine[at:end].swapcase() + genuine[end:],
        lambda: genuine[:at] + genuine[at:end][::-1] + genuine[end:],
        lambda: genuine[:at] + bytes([genuine[at % len(genuine)] ^ (1 << value % 8)]) + genuine[at + 1 :],
        lambda: genuine[:at] + PIECES[value % len(PIECES)] + genuine[at:],
        lambda: genuine[:at] + PIECES[value % len(PIECES)] + genuine[end:],
    ][kind % 13]()


PIECES = [
    b".", b"..", b"=", b" ", b"\0", b"\n", b"\xff", b"\xed\xa0\x80", b"null", b"{}", b"[]", b"-1", b"1e999", b"NaN",
    b'"', b'\\u0000', b'\\ud800', b",", b'"signature":"', b'"alg":"none",', b"e30",
    b"9" * 5000, b"[" * 5000, b'{"a":' * 3000,
]  # fmt: skip

batches = st.binary(min_size=4 * BATCH, max_size=4 * BATCH).map(
    lambda drawn: [(kind, high << 8 | low, value) for kind, high, low, value in struct.iter_unpack("4B", drawn)]
)


class Tries:
    """Number of inputs of the current test."""

    count = 0


def fuzz(test: Callable[[Mutation], None]) -> Callable[[], None]:
    """Run the test of one mutation on many mutations, and check their number."""

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(batches)
    def tries(mutations: list[Mutation]) -> None:
        for mutation in mutations:
            Tries.count += 1
            test(mutation)

    @functools.wraps(test, assigned=("__name__", "__qualname__", "__doc__", "__module__"), updated=())
    def fuzzed() -> None:
        Tries.count = 0
        tries()
        assert Tries.count >= EXAMPLES * BATCH

    del fuzzed.__wrapped__  # or pytest takes the parameter for a fixture
    return fuzzed


def jwt(key: PrivateKey, path: str) -> bytes:
    now = int(NOW.timestamp())
    head = base64url_encode(json.dumps({"typ": "JWT", "alg": "EdDSA", "kid": key.public.id}).encode())
    claims = base64url_encode(json.dumps({"aud": path, "iat": now, "nbf": now - 60, "exp": now + 60}).encode())
    return f"{head}.{claims}.{base64url_encode(key.sign(f'{head}.{claims}'.encode()))}".encode()


TOKEN, OTHER_TOKEN = jwt(KEY, "/invoke/Trips/run"), jwt(OTHER, "/invoke/Trips/run")
ELSEWHERE = jwt(KEY, "/discover")
verifier = IdentityVerifier([KEY.public])


@fuzz
def test_reject_mutated_token(mutation: Mutation):
    token = mutate(TOKEN, OTHER_TOKEN if mutation[2] % 2 else ELSEWHERE, mutation)
    try:
        verifier.verify([(SCHEME_HEADER, b"v1"), (TOKEN_HEADER, token)], "/invoke/Trips/run", now=NOW.timestamp())
    except IdentityError:
        return
    assert token == TOKEN


ACTOR = ActorKey.issue(KEY, actor="ada", roles=["approver"], groups=["finance"], lifetime=timedelta(days=1), now=NOW)
MALLORY = ActorKey.issue(OTHER, actor="mallory", roles=["approver"], lifetime=timedelta(days=1), now=NOW)
DIGEST = json_digest({"amount": 5})
ACTION = ACTOR.sign("approve", "Approvals/t1", DIGEST, reason="fine", at=NOW)
OTHER_ACTION = MALLORY.sign("approve", "Approvals/t1", DIGEST, reason="fine", at=NOW)
ACTION_TEXT, OTHER_TEXT = ACTION.model_dump_json().encode(), OTHER_ACTION.model_dump_json().encode()
trusted_keys = TrustedKeys(issuers=(KEY.public,))


@fuzz
def test_reject_mutated_action(mutation: Mutation):
    text = mutate(ACTION_TEXT, OTHER_TEXT, mutation)
    try:
        action = SignedAction.model_validate_json(text)
        verified = trusted_keys.verify(
            action,
            action=action.action,
            target=action.target,
            payload_digest=DIGEST,
            now=NOW,
            actor="ada",
            reason=action.reason,
        )
    except (ValidationError, Unauthenticated, Forbidden, Conflict):
        return
    # The JSON may be spelled differently, but it is the same action of the same person.
    assert action == ACTION
    assert verified.actor == "ada"


def link_by(key: PrivateKey, person: str) -> str:
    return mint_link(
        key,
        approval_id="t1",
        person=person,
        payload_digest=DIGEST,
        issued_at=NOW - timedelta(hours=1),
        expires_at=NOW,
        nonce=person[0] * 36,
    )


LINK, OTHER_LINK = link_by(KEY, "ada").encode(), link_by(OTHER, "eve")


@fuzz
def test_reject_mutated_link(mutation: Mutation):
    token = mutate(LINK, OTHER_LINK.encode(), mutation).decode("latin-1")
    try:
        read_link(token, [KEY.public], now=NOW - timedelta(minutes=1))
    except Unauthenticated:
        return
    assert token.encode("latin-1") == LINK


codec = JournalCodec([b"k" * 32])
HERE = Place.input("Trips", "t1", "run")
SEALED, OTHER_SEALED = codec.seal(b'{"trip":"t1"}', HERE), JournalCodec([b"j" * 32]).seal(b'{"trip":"t1"}', HERE)


@fuzz
def test_reject_mutated_sealed_value(mutation: Mutation):
    value = mutate(SEALED, OTHER_SEALED, mutation)
    try:
        opened = codec.open(value, HERE)
    except UnreadableValue:
        return
    assert (value, opened) == (SEALED, b'{"trip":"t1"}')


@settings(max_examples=5 * settings.default.max_examples, deadline=None, database=None)
@given(
    st.lists(st.tuples(st.sampled_from([SCHEME_HEADER, TOKEN_HEADER, b"x"]), st.binary(max_size=40)), max_size=4),
    st.text(max_size=30),
)
def test_reject_random_request(headers: list[tuple[bytes, bytes]], path: str):
    with pytest.raises(IdentityError):
        verifier.verify(headers, path, now=NOW.timestamp())


@given(st.text(max_size=60))
def test_reject_random_link(token: str):
    with pytest.raises(Unauthenticated):
        read_link(token, [KEY.public], now=NOW)


def test_mutations_cover_every_position():
    assert verifier.verify([(SCHEME_HEADER, b"v1"), (TOKEN_HEADER, TOKEN)], "/invoke/Trips/run", now=NOW.timestamp())
    assert read_link(LINK.decode(), [KEY.public], now=NOW - timedelta(minutes=1))
    spots = {mutate(LINK, b"", (3, where, 0)) for where in range(len(LINK))}
    assert [len(each) for each in sorted(spots, key=len)] == list(range(len(LINK)))
    assert all(shorter == longer[:-1] for shorter, longer in pairwise(sorted(spots, key=len)))
