"""Result types of actions, read from their signatures and cached."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from perdure._runtime.serdes import result_type
from perdure.errors import ConfigurationError


class Trip(BaseModel):
    id: str


class Leg(BaseModel):
    number: int


def gives_trip() -> Trip: ...


async def gives_trips(_: int) -> list[Trip]: ...


def gives_nothing() -> None: ...


def says_nothing():
    return 1


class Actions:
    def method(self) -> Trip: ...

    async def __call__(self) -> Leg: ...


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        (gives_trip, Trip),
        (gives_trips, list[Trip]),
        (gives_nothing, type(None)),
        (says_nothing, Any),
        (lambda: 1, Any),
        (Actions().method, Trip),
        (Actions(), Leg),
        (functools.partial(gives_trips, 1), list[Trip]),
        (functools.partial(functools.partial(gives_trips), 1), list[Trip]),
        (functools.partial(Actions()), Leg),
        (Trip, Trip),
        (len, Any),
    ],
    ids=[
        "function",
        "list",
        "none",
        "untyped",
        "lambda",
        "method",
        "callable",
        "partial",
        "partial-of-partial",
        "partial-of-callable",
        "type",
        "built-in",
    ],
)
def test_read_result_type_from_signature(action: Callable[..., Any], expected: Any):
    assert result_type(action) == expected
    assert result_type(action) == expected  # and again from the cache


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


@logged
def wrapped_trip() -> Trip: ...


@logged
def wrapped_leg() -> Leg: ...


def test_decorated_functions_keep_result_types():
    # They share the wrapper's code object.
    assert result_type(wrapped_trip) is Trip
    assert result_type(wrapped_leg) is Leg


def module_with(model: type) -> types.ModuleType:
    module = types.ModuleType("handlers")
    module.__dict__["Model"] = model
    source = "from __future__ import annotations\ndef load() -> Model:\n    return None\n"
    exec(compile(source, f"/somewhere/{model.__name__}/handlers.py", "exec"), module.__dict__)  # noqa: S102
    return module


def test_equal_functions_keep_result_types():
    # Code objects with equal name, line and instructions are equal, whatever their module.
    first, second = module_with(Trip), module_with(Leg)
    assert first.load.__code__ == second.load.__code__
    assert result_type(first.load) is Trip
    assert result_type(second.load) is Leg
    assert result_type(first.load) is Trip


def test_closures_keep_result_types():
    # One code object with annotations that are evaluated at each definition.
    module = types.ModuleType("factory")
    source = "def make(model):\n    def load() -> model:\n        return None\n    return load\n"
    exec(compile(source, "/somewhere/factory.py", "exec", dont_inherit=True), module.__dict__)  # noqa: S102
    one, two = module.make(Trip), module.make(Leg)
    assert one.__code__ is two.__code__
    assert result_type(one) is Trip
    assert result_type(two) is Leg


def make_local(number: int) -> tuple[type, Callable[[], Any]]:
    class Local(BaseModel):
        value: int

    def local_model() -> Local:
        return Local(value=number)

    return Local, local_model


def test_resolve_type_of_enclosing_function():
    first, one = make_local(1)
    second, two = make_local(2)
    assert result_type(one) is first
    assert result_type(two) is second


def gives_unknown() -> NeverDefined: ...  # noqa: F821 - unresolvable on purpose


def takes_unknown(_: NeverDefined) -> Trip: ...  # noqa: F821


def test_reject_unresolvable_result_type():
    # Plain JSON would return a dict where the type checker expects a model.
    with pytest.raises(ConfigurationError, match=r"gives_unknown.*NeverDefined.*returns="):
        result_type(gives_unknown)


def test_parameter_types_need_no_resolution():
    assert result_type(takes_unknown) is Trip
