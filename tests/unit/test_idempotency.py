"""Joining and validation of idempotency keys."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from perdure.errors import GuardrailViolation, InvalidInput
from perdure.guardrails import GuardrailPolicy, set_policy
from perdure.idempotency import (
    MAX_KEY_LENGTH,
    check_idempotency_key,
    child_key,
    digest_key,
    join_key,
    validate_idempotency_key,
)

# Few letters, to find collisions.
PARTS = st.lists(st.text("a:\\/.", max_size=4), min_size=1, max_size=4)


@pytest.fixture
def _policy_of_the_environment():
    yield
    set_policy(None)


@settings(max_examples=10 * settings.default.max_examples, deadline=None)
@given(PARTS, PARTS)
def test_different_parts_give_different_keys(one, other):
    assume(one != other)
    assert join_key(*one) != join_key(*other)


@settings(deadline=None)
@given(PARTS | st.lists(st.text(max_size=20), min_size=1, max_size=6))
def test_join_is_reversible(parts):
    read, current, escaped = [], "", False
    for letter in join_key(*parts):
        if escaped or letter not in ":\\":
            current, escaped = current + letter, False
        elif letter == "\\":
            escaped = True
        else:
            read.append(current)
            current = ""
    assert [*read, current] == parts


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a/b",), ("a", "b")),
        (("a", "..", "b"), ("b",)),
        (("a", ".", "b"), ("a", "b")),
        (("a", "", "b"), ("a", "b")),
        (("a", ""), ("a",)),
        (("", ""), ("",)),
        (("a:", "b"), ("a", ":b")),
        (("a\\", "b"), ("a\\:b",)),
        (("a\\", "b"), ("a:b",)),
    ],
)
def test_distinguish_parts_with_path_separators(one, other):
    assert join_key(*one) != join_key(*other)


def test_documented_examples_of_join_key():
    assert join_key("a", "b") == "a:b"
    assert join_key("a:b") == "a\\:b"


def test_reject_key_without_parts():
    with pytest.raises(InvalidInput, match="at least one part"):
        join_key()


def test_limit_length_of_key():
    assert len(join_key("x" * MAX_KEY_LENGTH)) == MAX_KEY_LENGTH
    with pytest.raises(InvalidInput, match=r"is 513 characters long; at most 512"):
        join_key("x" * 255, "y" * 257)
    with pytest.raises(InvalidInput, match=r"is 514 characters"):
        join_key(":" * 257)  # escapes count


@pytest.mark.parametrize(
    "key",
    ["trip:1", "order-123456789", "2b0a8f4e-6a43-4d2e-9a5c-0d6a5a0d3f10", "x", "a" * 600],
)
def test_return_valid_key(key):
    assert validate_idempotency_key(key) == key


def test_reject_empty_key():
    with pytest.raises(InvalidInput, match=r"^idempotency key cannot be empty$") as refused:
        validate_idempotency_key("")
    assert refused.value.status_code == 400
    assert (refused.value.metadata or {})["field"] == "idempotency_key"


@pytest.mark.parametrize("key", ["order-1767323045", "1767323045123", "a1767323045123456789b", "order:20260102030405"])
def test_reject_timestamp_in_key(key):
    with pytest.raises(InvalidInput) as refused:
        validate_idempotency_key(key)
    assert refused.value.message == f"idempotency key may contain non-deterministic timestamp: {key}"


@settings(deadline=None)
@given(st.uuids())
def test_accept_any_uuid(uuid):
    assert validate_idempotency_key(f"trip:seat:{uuid}")
    assert validate_idempotency_key(f"trip:seat:{uuid}".upper())


@settings(deadline=None)
@given(st.lists(st.text() | st.from_regex(r"[0-9]{10,20}", fullmatch=True)))
def test_digest_key_of_any_names_is_valid(names):
    assert validate_idempotency_key(digest_key(*names))
    assert digest_key(*names) == digest_key(*names) != digest_key(*names, "")


@pytest.mark.parametrize("uuid", ["12345678-1234-4234-9234-123456789012", "00000000-0000-4000-8000-000000000000"])
def test_accept_uuid_of_digits(uuid):
    # One in sixty random UUIDs ends in ten digits or more.
    assert validate_idempotency_key(f"trip:{uuid}")
    with pytest.raises(InvalidInput):
        validate_idempotency_key(f"trip:{uuid}:1767323045")


@pytest.mark.usefixtures("_policy_of_the_environment")
def test_policy_decides_on_timestamps_in_clients(caplog):
    # Phone and order numbers may have ten digits, too.
    set_policy(GuardrailPolicy.WARN)
    check_idempotency_key("order-1767323045")
    assert len(caplog.records) == 1
    assert "TimestampInIdempotencyKey" in caplog.text
    set_policy(GuardrailPolicy.DISABLED)
    check_idempotency_key("order-1767323045")
    assert len(caplog.records) == 1
    set_policy(GuardrailPolicy.STRICT)
    with pytest.raises(GuardrailViolation, match=r"\[TimestampInIdempotencyKey\].*order-1767323045"):
        check_idempotency_key("order-1767323045")


@pytest.mark.usefixtures("_policy_of_the_environment")
@pytest.mark.parametrize("policy", list(GuardrailPolicy))
def test_clients_reject_empty_key(policy):
    set_policy(policy)
    with pytest.raises(InvalidInput, match="cannot be empty"):
        check_idempotency_key("")


@pytest.mark.usefixtures("_policy_of_the_environment")
def test_keys_have_own_policy(monkeypatch, caplog):
    # With order numbers of ten digits, keys need a lenient policy beside a strict one for guardrails.
    set_policy(GuardrailPolicy.STRICT)
    monkeypatch.setenv("PERDURE_IDEMPOTENCY_VALIDATION", "disabled")
    check_idempotency_key("order-1767323045")
    assert caplog.records == []
    with pytest.raises(GuardrailViolation):
        check_idempotency_key("order-1767323045", GuardrailPolicy.STRICT)
    monkeypatch.setenv("PERDURE_IDEMPOTENCY_VALIDATION", "strict")
    set_policy(GuardrailPolicy.DISABLED)
    with pytest.raises(GuardrailViolation):
        check_idempotency_key("order-1767323045")
    check_idempotency_key("order-1767323045", GuardrailPolicy.WARN)
    assert len(caplog.records) == 1


@pytest.mark.usefixtures("_policy_of_the_environment")
def test_unknown_key_policy_means_warn(monkeypatch, caplog, capsys):
    set_policy(GuardrailPolicy.STRICT)
    monkeypatch.setenv("PERDURE_IDEMPOTENCY_VALIDATION", "fail")
    check_idempotency_key("order-1767323045")
    assert capsys.readouterr().err == (
        "Warning: Unknown PERDURE_IDEMPOTENCY_VALIDATION=\"fail\", defaulting to 'warn'\n"
    )
    assert len(caplog.records) == 1


NAMES = st.text(st.characters() | st.sampled_from(":\\~a0\n"), max_size=80)


@given(st.lists(st.tuples(NAMES, NAMES), unique=True, max_size=8))
def test_child_keys_are_distinct_and_short(parts):
    keys = [child_key(parent, name) for parent, name in parts]
    assert len(set(keys)) == len(keys)
    assert all(1 <= len(key) <= 64 and key.isprintable() for key in keys)


@given(st.text(min_size=1, max_size=200), st.lists(NAMES, min_size=1, max_size=12))
def test_child_key_stays_short_at_any_depth(root, names):
    seen, key = {root}, root
    for name in names:
        key = child_key(key, name)
        assert key not in seen
        assert len(key) <= 64
        seen.add(key)


def test_short_child_key_names_parent_and_step():
    assert child_key("trip-1", "hotel") == "trip-1:hotel"
