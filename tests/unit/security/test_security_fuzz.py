"""100,000 and more damaged, spliced and made-up proofs: none crashes a reader, none is taken.

What is tried are mutations of genuine ones, since pure noise fails at the first character. Each of hypothesis' examples
is a list of mutations, each of which makes an input of its own: that's twenty times faster than one input an example.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from perdure._runtime.places import Place
from perdure.errors import Conflict, Forbidden, IdentityError, Unauthenticated, UnreadableValue
from perdure.security import ActorKey, PrivateKey, SignedAction, TrustedKeys, mint_link, payload_digest, read_link
from perdure.security.codec import JournalCodec
from perdure.security.encodings import base64url_encode
from perdure.security.identity import SCHEME_HEADER, TOKEN_HEADER, IdentityVerifier

BATCH = 100
EXAMPLES = 3 * settings.default.max_examples  # of each of four readers: 120,000 inputs at night

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
KEY, OTHER = PrivateKey(b"1" * 32), PrivateKey(b"2" * 32)

Mutation = tuple[int, int, int]


def mutate(genuine: bytes, donor: bytes, mutation: Mutation) -> bytes:
    """Damage a genuine input, or mix it with another genuine one."""
    how, where, what = mutation
    at = where % (len(genuine) + 1)
    end = min(len(genuine), at + 1 + what % 40)
    return [
        lambda: genuine[:at] + bytes([what % 256]) + genuine[at + 1 :],
        lambda: genuine[:at] + bytes([what % 256]) + genuine[at:],
        lambda: genuine[:at] + genuine[end:],
        lambda: genuine[:at],
        lambda: genuine[at:],
        lambda: genuine[:at] + donor[at:],
        lambda: donor[:at] + genuine[at:],
        lambda: genuine[:at] + genuine[at:end] * 2 + genuine[end:],
        lambda: genuine[:at] + genuine[at:end].swapcase() + genuine[end:],
        lambda: genuine[:at] + genuine[at:end][::-1] + genuine[end:],
        lambda: genuine[:at] + bytes([genuine[at % len(genuine)] ^ (1 << what % 8)]) + genuine[at + 1 :],
        lambda: genuine[:at] + PIECES[what % len(PIECES)] + genuine[at:],
        lambda: genuine[:at] + PIECES[what % len(PIECES)] + genuine[end:],
    ][how % 13]()


PIECES = [
    b".", b"..", b"=", b" ", b"\0", b"\n", b"\xff", b"\xed\xa0\x80", b"null", b"{}", b"[]", b"-1", b"1e999", b"NaN",
    b'"', b'\\u0000', b'\\ud800', b",", b'"signature":"', b'"alg":"none",', b"e30",
    b"9" * 5000, b"[" * 5000, b'{"a":' * 3000,
]  # fmt: skip

batches = st.lists(
    st.tuples(st.integers(0, 12), st.integers(0, 4095), st.integers(0, 255)), min_size=BATCH, max_size=BATCH
)


class Tries:
    """How many inputs a test has tried."""

    count = 0


def fuzz(test: Callable[[Mutation], None]) -> Callable[[], None]:
    """Run a test of one mutation on many, and see that it were many."""

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

    del fuzzed.__wrapped__  # pytest would take the mutation for a fixture
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
def test_no_mutated_token_is_taken(mutation: Mutation):
    token = mutate(TOKEN, OTHER_TOKEN if mutation[2] % 2 else ELSEWHERE, mutation)
    try:
        verifier.verify([(SCHEME_HEADER, b"v1"), (TOKEN_HEADER, token)], "/invoke/Trips/run", now=NOW.timestamp())
    except IdentityError:
        return
    assert token == TOKEN


ACTOR = ActorKey.issue(KEY, actor="ada", roles=["approver"], groups=["finance"], lifetime=timedelta(days=1), now=NOW)
MALLORY = ActorKey.issue(OTHER, actor="mallory", roles=["approver"], lifetime=timedelta(days=1), now=NOW)
DIGEST = payload_digest({"amount": 5})
ACT = ACTOR.sign("approve", "Approvals/t1", DIGEST, reason="fine", at=NOW)
OTHER_ACT = MALLORY.sign("approve", "Approvals/t1", DIGEST, reason="fine", at=NOW)
ACT_TEXT, OTHER_TEXT = ACT.model_dump_json().encode(), OTHER_ACT.model_dump_json().encode()
trust = TrustedKeys(issuers=(KEY.public,))


@fuzz
def test_no_mutated_act_is_taken(mutation: Mutation):
    text = mutate(ACT_TEXT, OTHER_TEXT, mutation)
    try:
        act = SignedAction.model_validate_json(text)
        who = trust.verify(
            act, act=act.act, target=act.target, payload_digest=DIGEST, now=NOW, actor="ada", reason=act.reason
        )
    except (ValidationError, Unauthenticated, Forbidden, Conflict):
        return
    # Written in another way perhaps, with a space or in capitals, but the same act by the same person.
    assert act == ACT
    assert who.actor == "ada"


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
def test_no_mutated_link_is_taken(mutation: Mutation):
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
def test_no_mutated_value_is_opened(mutation: Mutation):
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
def test_no_made_up_request_is_taken(headers: list[tuple[bytes, bytes]], path: str):
    with pytest.raises(IdentityError):
        verifier.verify(headers, path, now=NOW.timestamp())


@given(st.text(max_size=60))
def test_no_made_up_link_is_taken(token: str):
    with pytest.raises(Unauthenticated):
        read_link(token, [KEY.public], now=NOW)


def test_the_mutations_reach_every_part():
    """Genuine inputs are taken, and a mutation that changes nothing is one of those that are tried."""
    assert verifier.verify([(SCHEME_HEADER, b"v1"), (TOKEN_HEADER, TOKEN)], "/invoke/Trips/run", now=NOW.timestamp())
    assert read_link(LINK.decode(), [KEY.public], now=NOW - timedelta(minutes=1))
    spots = {mutate(LINK, b"", (3, where, 0)) for where in range(len(LINK))}
    assert [len(each) for each in sorted(spots, key=len)] == list(range(len(LINK)))
    assert all(shorter == longer[:-1] for shorter, longer in pairwise(sorted(spots, key=len)))
