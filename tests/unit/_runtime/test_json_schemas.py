"""Comparison of JSON schemas, against what pydantic reads."""

from __future__ import annotations

import json
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Literal
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from perdure._runtime.json_schemas import mismatch, schema_of_value
from perdure._runtime.serdes import serde_for


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Leaf(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: int
    label: str = ""


class Renamed(BaseModel):
    size: int = Field(validation_alias="label", serialization_alias="z")


class Tree(BaseModel):
    name: str
    leaf: Leaf | None = None
    children: list[Tree] = []
    colors: dict[str, Color] = {}
    pair: tuple[int, str] = (1, "a")
    price: Decimal = Decimal(0)
    at: datetime | None = None
    kind: Literal["a", "b"] | int = "a"


TYPES: list[Any] = [
    Tree, Leaf, Renamed, Color, int, str, bool, float, Decimal, datetime, date, timedelta, UUID, bytes, list[Leaf],
    set[int], dict[str, list[int]], tuple[int, ...], Leaf | None, int | str, Literal["x", 1], Any, type(None),
]  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3)
    | st.sampled_from(["red", "a", "x", "2020-01-01"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["name", "leaf", "size", "label", "children", "colors", "kind", "z"]), inner),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=300)
@given(st.sampled_from(TYPES), VALUES)
def test_readable_value_is_never_refused(type_, value):
    try:
        TypeAdapter(type_).validate_json(json.dumps(value))
    except ValidationError:
        return
    assert mismatch(serde_for(type_).json_schema(), schema_of_value(value)) is None


@pytest.mark.parametrize("type_", TYPES, ids=str)
def test_type_reads_what_it_writes(type_):
    serde = serde_for(type_)
    assert mismatch(serde.json_schema(), serde.json_schema("serialization")) is None


@pytest.mark.parametrize(
    ("type_", "value", "problem"),
    [
        (Tree, {}, "name is missing"),
        (Tree, [], "the value is an array, not an object"),
        (Tree, None, "the value is null, not an object"),
        (Tree, {"name": []}, "name is an array, not a string"),
        (Tree, {"name": "a", "leaf": {"size": "many"}}, "leaf.size is a string, not an integer"),
        (Tree, {"name": "a", "children": [{"name": "b", "children": [{}]}]}, "children.0.children.0.name is missing"),
        (Tree, {"name": "a", "colors": {"x": "green"}}, "colors.x is 'green', not one of 'red', 'blue'"),
        (Tree, {"name": "a", "pair": [1, 2]}, "pair.1 is an integer, not a string"),
        (Leaf, {"size": 1, "weight": 2}, "there is no field weight"),
        (list[Leaf], [{"size": 1}, {}], "1.size is missing"),
        (int, "five", "the value is a string, not an integer"),
    ],
)
def test_mismatch_names_field(type_, value, problem):
    assert mismatch(serde_for(type_).json_schema(), schema_of_value(value)) == problem


class Renamed(BaseModel):
    title: str


class Narrow(BaseModel):
    name: str


@pytest.mark.parametrize(
    ("reader", "writer", "problem"),
    [
        (Tree, Renamed, "name is missing"),
        (Narrow, Tree, None),
        (Tree, Narrow, None),
        (int, str, None),
        (int, list[int], "the value is an array, not an integer"),
        (str, type(None), "the value is null, not a string"),
        (list[int], list[Leaf], "* is an object, not an integer"),
        (Leaf, Tree, "size is missing"),
        (int, int | None, "the value is null, not an integer"),
    ],
)
def test_compare_types_of_caller_and_handler(reader, writer, problem):
    assert mismatch(serde_for(reader).json_schema(), serde_for(writer).json_schema("serialization")) == problem


@pytest.mark.parametrize("schema", [True, {}, {"$ref": "#/missing"}, {"$ref": "#"}, {"allOf": [{}, {}]}, {"not": {}}])
def test_unknown_schema_accepts_any_value(schema):
    assert mismatch(schema, schema_of_value({"a": [1, None]})) is None
    assert mismatch(serde_for(Tree).json_schema(), schema) is None
