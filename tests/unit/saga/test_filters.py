"""Filters of sagas: SQL conditions, run by SQLite, and business attributes."""

from __future__ import annotations

import sqlite3
import string
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.cli.saga_actions import filter_of, parse_attributes
from perdure.errors import ConfigurationError, InvalidInput
from perdure.saga.attributes import MAX_VALUE_LENGTH, attribute_keys, attribute_name, attribute_value
from perdure.saga.filters import SagaFilter, batches
from perdure.saga.status import SagaPhase
from perdure.security.codec import JournalCodec

CODEC = JournalCodec([b"k" * 32])
ROTATED = JournalCodec([b"n" * 32, b"k" * 32])

# Few different texts, so that filters match, among them some that SQL would misread without quotes.
texts = st.sampled_from(["a", "A", "x/y", "o'hara", "' or 1=1 --", "%", "x_y", "42"])
names = st.sampled_from(["customer", "region"])
sagas = st.lists(
    st.fixed_dictionaries({"service": texts, "key": texts, "attributes": st.dictionaries(names, texts)}),
    unique_by=lambda saga: (saga["service"], saga["key"]),
    max_size=8,
)
filters = st.builds(SagaFilter, attributes=st.dictionaries(names, texts))


def matches(wanted: SagaFilter, saga: dict[str, Any]) -> bool:
    return wanted.attributes.items() <= saga["attributes"].items()


@given(sagas, filters, st.sampled_from([None, CODEC]))
def test_condition_selects_matching_sagas(stored, wanted, codec):
    condition = " and ".join(("true", *wanted.conditions(codec)))
    with sqlite3.connect(":memory:") as engine:
        engine.execute("create table sagas (number, service, key)")
        engine.execute("create table state (service_name, service_key, key)")
        for number, saga in enumerate(stored):
            engine.execute("insert into sagas values (?, ?, ?)", (number, saga["service"], saga["key"]))
            for name, value in saga["attributes"].items():
                entry = attribute_keys(name, value, codec)[0]
                engine.execute("insert into state values (?, ?, ?)", (saga["service"], saga["key"], entry))
        found = engine.execute(f"select number from sagas where {condition}").fetchall()
    assert {number for (number,) in found} == {n for n, saga in enumerate(stored) if matches(wanted, saga)}


def test_age_is_a_condition_on_the_start():
    conditions = SagaFilter(older_than=timedelta(hours=1)).conditions(None)
    assert conditions == ["started_at < now() - interval '3600000 milliseconds'"]


@given(names, texts)
def test_hash_hides_value_and_survives_rotation(name, value):
    (hashed,) = attribute_keys(name, value, CODEC)
    assert len(hashed.removeprefix(f"attribute/{name}/")) == 32
    assert hashed in attribute_keys(name, value, ROTATED)
    assert attribute_keys(name, value, ROTATED)[0] != hashed
    assert attribute_keys(name, value, JournalCodec([b"k" * 32], platform="other")) != [hashed]
    assert attribute_name(hashed) == name


@given(st.text(), st.text() | st.integers())
def test_only_searchable_attributes_are_accepted(name, value):
    alphabet = string.ascii_lowercase + string.digits + "_"
    is_name = 1 <= len(name) <= 32 and set(name) <= set(alphabet) and name[0] in string.ascii_lowercase
    text = str(value)
    if is_name and 1 <= len(text) <= MAX_VALUE_LENGTH and text.isprintable():
        assert attribute_value(name, value) == text
    else:
        with pytest.raises(InvalidInput):
            attribute_value(name, value)


@pytest.mark.parametrize("value", [True, None, 1.5, b"x", "", "x" * 129, "a\nb", "\x00"])
def test_reject_values_that_are_no_text(value):
    with pytest.raises(InvalidInput, match="attribute 'customer'"):
        attribute_value("customer", value)


@given(st.dictionaries(names, texts))
def test_options_describe_the_attributes(values):
    assert parse_attributes([f"{name}={value}" for name, value in values.items()]) == values


@pytest.mark.parametrize("option", ["customer", "=42", "Customer=42", "customer="])
def test_reject_malformed_attribute_option(option):
    with pytest.raises(ConfigurationError, match="--attribute"):
        parse_attributes([option])


def test_error_option_takes_an_error_or_its_signature():
    for error in ("timeout of 30 s", "timeout of * s"):
        wanted = filter_of(
            [SagaPhase.RUNNING], "Trips", older_than="1h", since="1d", error=error, attribute=["customer=42"]
        )
        assert wanted.error == "timeout of * s"
    assert str(wanted) == "phase running, service Trips, older than 1:00:00, error 'timeout of * s', customer=42"


@given(st.lists(st.integers()), st.integers(1, 5))
def test_batches_keep_order_and_size(items, size):
    found = [list(each) for each in batches(items, size)]
    assert [item for each in found for item in each] == items
    assert all(1 <= len(each) <= size for each in found)
