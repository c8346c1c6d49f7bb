"""Serdes: round trips, and rejection of unwritable and invalid values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum, StrEnum
from typing import Annotated, Any, Optional
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from perdure._runtime.serdes import InputSerde, TypedSerde, Unreadable, invalid_input, serde_for
from perdure.errors import ConfigurationError, InvalidInput, TerminalError


class Colour(Enum):
    RED = "red"
    BLUE = 2


class Word(StrEnum):
    YES = "yes"
    NO = "no"


@dataclass(frozen=True)
class Point:
    x: int
    label: str | None


class Indescribable:
    pass


class AllOptional(BaseModel):
    a: int = 0


class OtherOptional(BaseModel):
    b: int = 0


class Leg(BaseModel):
    model_config = ConfigDict(extra="forbid")

    day: date
    at: datetime
    price: Decimal
    colour: Colour
    takes: timedelta


class Trip(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: UUID
    legs: list[Leg]
    note: str | None = None
    tags: dict[str, int] = {}
    seats: int = Field(default=1, ge=1)


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
DATES = st.datetimes()
DECIMALS = st.decimals(allow_nan=False, allow_infinity=False)
LEGS = st.builds(
    Leg,
    day=st.dates(),
    at=DATES,
    price=DECIMALS,
    colour=st.sampled_from(Colour),
    takes=st.timedeltas(),
)
TRIPS = st.builds(
    Trip,
    id=st.uuids(),
    legs=st.lists(LEGS, max_size=3),
    note=st.none() | TEXT,
    tags=st.dictionaries(TEXT, st.integers(), max_size=3),
    seats=st.integers(min_value=1),
)
POINTS = st.builds(Point, x=st.integers(), label=st.none() | TEXT)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)

VALUES: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (Trip, TRIPS),
    (list[Trip], st.lists(TRIPS, max_size=2)),
    (dict[str, Leg], st.dictionaries(TEXT, LEGS, max_size=2)),
    (Trip | None, st.none() | TRIPS),
    (Point, POINTS),
    (list[Point], st.lists(POINTS, max_size=3)),
    (date, st.dates()),
    (datetime, DATES),
    (list[datetime], st.lists(DATES, max_size=3)),
    (timedelta, st.timedeltas()),
    (Decimal, DECIMALS),
    (Colour, st.sampled_from(Colour)),
    (Word, st.sampled_from(Word)),
    (Optional[Word], st.none() | st.sampled_from(Word)),  # noqa: UP045 - the old spelling must work, too
    (UUID, st.uuids()),
    (str, TEXT),
    (int, st.integers()),
    (bool, st.booleans()),
    (float, st.floats(allow_nan=False)),
    (int | None, st.none() | st.integers()),
    (bytes, st.binary()),
    (tuple[int, str], st.tuples(st.integers(), TEXT)),
    (set[int], st.sets(st.integers(), max_size=4)),
    (type(None), st.none()),
    (Any, JSON_VALUES),
]


@pytest.mark.parametrize(("type_", "values"), VALUES, ids=[str(type_) for type_, _ in VALUES])
@settings(deadline=None)
@given(data=st.data())
def test_round_trip_of_values(type_: Any, values: st.SearchStrategy[Any], data: st.DataObject):
    value = data.draw(values)
    serde = serde_for(type_)
    read = serde.deserialize(serde.serialize(value))
    assert read == value
    assert type(read) is type(value)


def test_round_trip_of_nan():
    serde = serde_for(float)
    read = serde.deserialize(serde.serialize(math.nan))
    assert read is not None
    assert math.isnan(read)


def test_round_trip_of_times():
    serde = serde_for(datetime)
    aware = datetime.fromisoformat("2026-01-02T03:04:05.678901+05:30")
    assert serde.deserialize(serde.serialize(aware)) == aware
    naive = datetime.fromisoformat("2026-01-02T03:04:05.678901")
    read = serde.deserialize(serde.serialize(naive))
    assert read is not None
    assert read.tzinfo is None


def test_cache_serde_per_type():
    assert serde_for(Trip) is serde_for(Trip)
    assert serde_for(list[Trip]) is serde_for(list[Trip])
    assert serde_for(Trip | None) is serde_for(Optional[Trip])  # noqa: UP045 - equal types share it
    assert serde_for(int) is not serde_for(bool)


def test_write_optional_none_as_empty_body():
    assert serde_for(type(None)).serialize(None) == b""
    assert serde_for(Trip | None).serialize(None) == b""
    assert serde_for(Trip | None).deserialize(b"") is None
    assert serde_for(Trip | None).deserialize(b"null") is None


@pytest.mark.parametrize("type_", [Trip, int, dict[str, None], list[None], tuple[int, None]])
def test_reject_empty_body_for_required_value(type_: Any):
    with pytest.raises(ValidationError):
        serde_for(type_).deserialize(b"")


def test_read_memoryview():
    assert serde_for(int).deserialize(bytearray(b"5")) == 5


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (int, "x"),
        (Trip, {"id": "nope"}),
        (list[int], [1, "x"]),
        (Any, object()),
        (str, "\ud800"),
        (int, None),
        (Trip, None),
        (dict[str, int], 5),
        (Leg, Indescribable()),
        (AllOptional, Point(1, "x")),
        (AllOptional, OtherOptional(b=1)),
        (AllOptional, AllOptional.model_construct(a="\ud800")),
    ],
)
def test_reject_unreadable_value_when_writing(type_: Any, value: Any):
    # In the journal, it would fail each replay; a transient error would repeat the side effect.
    with pytest.raises(TerminalError) as refused:
        serde_for(type_).serialize(value)
    assert "cannot write a value" in refused.value.message
    assert refused.value.metadata is not None
    assert refused.value.metadata["code"] == "unwritable"


@pytest.mark.parametrize(
    ("type_", "value", "read"),
    [
        (list[int], (1, 2), [1, 2]),
        (float, 3, 3.0),
        (Decimal, 3, Decimal(3)),
        (Word, "yes", Word.YES),
        (AllOptional, {"a": 1}, AllOptional(a=1)),
    ],
)
def test_accept_convertible_value_of_another_class(type_: Any, value: Any, read: Any):
    serde = serde_for(type_)
    assert serde.deserialize(serde.serialize(value)) == read


@pytest.mark.parametrize("type_", [Indescribable, Annotated[Indescribable, []], list[Indescribable]])
def test_reject_unsupported_type(type_: Any):
    with pytest.raises(ConfigurationError, match=r"(?s)no JSON serde for .*Indescribable.*Use a pydantic model"):
        serde_for(type_)


def test_support_unhashable_annotation():
    type_ = Annotated[int, {"not": "hashable"}]
    assert serde_for(type_).deserialize(b"5") == 5


def test_return_schema_of_type():
    assert serde_for(Trip).json_schema()["properties"]["seats"]["minimum"] == 1


# --- input -----------------------------------------------------------------------------------------------------------


def refused(type_: Any, body: bytes) -> InvalidInput:
    value = InputSerde(serde_for(type_)).deserialize(body)
    assert isinstance(value, Unreadable), f"{body!r} was read as {value!r}"
    assert value.error.status_code == 400
    assert value.error.metadata is not None
    assert value.error.metadata["code"] == "invalid_input"
    return value.error


GOOD_LEG = '{"day":"2026-01-02","at":"2026-01-02T03:04:05","price":"1","colour":"red","takes":"PT1H"}'
ID = "2b0a8f4e-6a43-4d2e-9a5c-0d6a5a0d3f10"


def field_of(error: InvalidInput) -> str:
    return (error.metadata or {})["field"]


@pytest.mark.parametrize(
    ("body", "field", "text"),
    [
        (b"", "body", "the request body is empty: a JSON value is required"),
        (b"{", "body", "Invalid JSON"),
        (b'{"id":"\xff"}', "body", "Invalid JSON"),
        (b"[" * 100_000, "body", "Invalid JSON"),
        (b"[]", "body", "Input should be an object"),
        (b"{}", "id", "id: Field required; legs: Field required"),
        (f'{{"id":"{ID}","legs":[],"nope":1}}'.encode(), "nope", "nope: there is no such field"),
        (f'{{"id":"{ID}","legs":[],"seats":0}}'.encode(), "seats", "greater than or equal to 1"),
        (f'{{"id":"{ID}","legs":[],"seats":1.5}}'.encode(), "seats", "seats: Input should be a valid integer"),
        (f'{{"id":"{ID}","legs":[{GOOD_LEG},{{}}]}}'.encode(), "legs.1.day", "legs.1.day: Field required"),
        (f'{{"id":"{ID}","legs":[],"tags":{{"a":"x"}}}}'.encode(), "tags.a", "tags.a: Input should be a valid integer"),
    ],
)
def test_invalid_input_names_field_and_reason(body: bytes, field: str, text: str):
    error = refused(Trip, body)
    assert field_of(error) == field
    assert text in error.message


def test_count_problems_beyond_five():
    error = refused(list[int], b'["a","b","c","d","e","f","g"]')
    assert error.message.count("valid integer") == 5
    assert error.message.endswith("; and 2 more")
    assert field_of(error) == "0"
    assert "more" not in refused(list[int], b'["a","b","c","d","e"]').message


def test_do_not_echo_input():
    error = refused(Trip, f'{{"id":"{ID}","legs":[],"seats":"secret-token"}}'.encode())
    assert "secret-token" not in error.message


def test_truncate_long_field_names():
    error = refused(Trip, f'{{"id":"{ID}","legs":[],"{"x" * 100_000}":1}}'.encode())
    assert len(error.message) < 1_000
    assert len(field_of(error)) < 300
    assert field_of(error).startswith("xxx")


class Checked(BaseModel):
    code: str

    @field_validator("code")
    @classmethod
    def _known(cls, code: str) -> str:
        if code != "known":
            raise ValueError("not one of ours")
        return code


def test_keep_message_of_validator():
    assert refused(Checked, b'{"code":"x"}').message == "invalid input: code: not one of ours"


def test_return_value_of_valid_input():
    assert InputSerde(serde_for(Checked)).deserialize(b'{"code":"known"}') == Checked(code="known")
    assert InputSerde(serde_for(Checked | None)).deserialize(b"") is None


def test_input_error_without_location_names_body():
    with pytest.raises(ValidationError) as found:
        TypedSerde(int).deserialize(b'"x"')
    assert field_of(invalid_input(found.value)) == "body"
