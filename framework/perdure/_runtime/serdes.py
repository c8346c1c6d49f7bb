"""Serialisation: one cached JSON serde per type.

pydantic's TypeAdapter supports models, lists of models, dates, Decimal, enums and dataclasses. The SDK's default serde
fails on some of these and inspects an action's signature in each call, so Perdure always passes a serde.
"""

from __future__ import annotations

import functools
import inspect
import json
import operator
import re
import types
import typing
from collections.abc import Callable, Hashable, Iterable, Mapping
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, Final, Generic, Literal, NamedTuple, TypeVar, cast
from weakref import WeakKeyDictionary

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import PydanticSerializationError, to_json
from restate.serde import Serde

from perdure._runtime.exact_values import exact_check
from perdure._runtime.outcomes import describe
from perdure._runtime.readable_types import Unwritable, find_unwritable, has_sets, reads_other_names
from perdure._runtime.round_trip import differences, find_invalid_json, order_sets
from perdure.errors import CODE_KEY, ConfigurationError, InvalidInput, PerdureTerminalError, TerminalError

T = TypeVar("T")

# For bytes that are not UTF-8, and for NaN and infinity. Pydantic refuses it for models and dataclasses, which have
# their own configuration.
_PLAIN = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="strings")

_LONGEST_FIELD = 100
_LONGEST_REASON = 300

_MAX_DIGITS: Final = 4300
_LONG_NUMBER: Final = re.compile(rb"\d{%d}" % _MAX_DIGITS)
"""Digits of a number that the JSON parser may refuse."""


class _Form(NamedTuple):
    """A way to write a value.

    Args:
        by_alias: Write aliases instead of field names.
        round_trip: Omit computed fields, and write `pydantic.Json` as text.
        non_finite: Write NaN and infinity as texts. By default, pydantic writes them in models as null.
    """

    by_alias: bool
    round_trip: bool
    non_finite: bool = False


_FORMS: Final = (
    _Form(by_alias=True, round_trip=False),
    _Form(by_alias=True, round_trip=True),
    _Form(by_alias=False, round_trip=False),
    _Form(by_alias=False, round_trip=True),
    _Form(by_alias=True, round_trip=True, non_finite=True),
    _Form(by_alias=False, round_trip=True, non_finite=True),
)


class TypedSerde(Serde[T], Generic[T]):
    """JSON serde of a type that pydantic's TypeAdapter supports. Validates values when reading.

    It writes a value only if the type reads it back: equal, and of the same class, in all parts.
    """

    def __init__(self, type_: type[T]) -> None:
        self.type = type_
        self.type_name = getattr(type_, "__qualname__", str(type_))
        self._adapter: TypeAdapter[T] = _adapter(type_)
        self.accepts_empty = _takes_none(self._adapter)
        schema = self._adapter.core_schema
        self.unwritable = find_unwritable(schema)
        """A field that no value of the type can read back; None if there is none."""
        self._is_exact = exact_check(schema, cast("Mapping[str, Any]", _PLAIN))
        self._order_sets = has_sets(schema)
        # Fields whose aliases differ are written and read by their names. Their aliases are still read.
        self._by_name = True if reads_other_names(schema) else None
        self._dump = self._adapter.serializer.to_json
        self._validate_json = self._adapter.validator.validate_json

    def serialize(self, obj: T | None) -> bytes:
        """Return the value as JSON; None becomes the empty body if the type allows None.

        Raises:
            PerdureTerminalError: The value would be read back changed, or not at all. The error is terminal, because a
                retry would repeat the side effect that returned the value.
        """
        return self.write(obj)

    def write(self, obj: T | None, place: str = "") -> bytes:
        """Return the value as JSON, as `serialize` does.

        Args:
            obj: The value.
            place: The value's place, for the error, such as ``state 'balance'``.

        Raises:
            PerdureTerminalError: The value would be read back changed, or not at all.
        """
        if obj is None and self.accepts_empty:
            return b""
        self.require_writable(place)
        exact = self._encode_exact(obj)
        if exact is not None:
            return exact
        encoded = self._encode(obj)
        if isinstance(encoded, bytes):
            return encoded
        raise _unwritable(place, f"a value of class {type(obj).__qualname__} as {self.type_name}", encoded)

    def require_writable(self, place: str) -> None:
        """Raise the error of `write` if no value of the type can be read back."""
        if self.unwritable is not None:
            raise _unwritable(place, f"a value as {self.type_name}", self.unwritable)

    def _encode_exact(self, obj: Any) -> bytes | None:
        """Return the JSON of a value if its classes alone show that it is read back unchanged."""
        try:
            if self._is_exact is None or not self._is_exact(obj):
                return None
            data = self._dump(order_sets(obj) if self._order_sets else obj, by_alias=True, warnings=False)
        except Exception:  # noqa: BLE001 - `_encode` finds the reason
            return None
        return data if len(data) < _MAX_DIGITS or not _LONG_NUMBER.search(data) else None

    def _encode(self, obj: Any) -> bytes | Unwritable:
        """Return the JSON of a value in the first form that is read back unchanged, or the problem."""
        encoded = self._encode_unchanged(obj)
        if isinstance(encoded, bytes):
            return encoded
        try:  # a value of another class, such as a tuple for a list
            converted = self._adapter.validate_python(obj, by_name=self._by_name)
            changes = list(differences(converted, obj))
        except Exception:  # noqa: BLE001 - validators may raise anything; the problem is known already
            return encoded
        if not changes or not all(change.is_conversion for change in changes):
            return encoded
        return self._encode_unchanged(converted)

    def _encode_unchanged(self, value: Any) -> bytes | Unwritable:
        ordered = order_sets(value) if self._order_sets else value
        problems: list[tuple[int, Unwritable]] = []  # with how far the value got: 0 not written, 1 not read, 2 changed
        for form in _FORMS:
            try:
                data = self._dump_as(form, ordered)
                changed = next(differences(self._load(data), value), None)
            except ValidationError as error:
                first = error.errors(include_url=False, include_context=False, include_input=False)[0]
                is_json = first["type"] != "json_invalid"
                path = ".".join(map(str, first["loc"])) if is_json else find_invalid_json(value)
                problems.append((1, Unwritable(path, f"it cannot be read back: {first['msg']}")))
            except Exception as error:  # noqa: BLE001 - serializers, validators and comparisons may raise anything
                problems.append((0, Unwritable(find_invalid_json(value), _describe(error))))
            else:
                if changed is None:
                    return data
                problems.append((2, Unwritable(changed.field, changed.reason)))
        return max(problems, key=operator.itemgetter(0))[1]

    def _dump_as(self, form: _Form, value: Any) -> bytes:
        if not form.non_finite:
            return self._dump(value, by_alias=form.by_alias, round_trip=form.round_trip, warnings=False)
        plain = self._adapter.serializer.to_python(
            value, mode="json", by_alias=form.by_alias, round_trip=form.round_trip, warnings=False
        )
        return to_json(plain, inf_nan_mode="strings")

    def _load(self, data: bytes) -> Any:
        return self._validate_json(data, by_name=self._by_name)

    def deserialize(self, buf: bytes) -> T | None:
        """Return the value of a JSON body; raise pydantic's ValidationError if it does not match the type."""
        if not buf and self.accepts_empty:
            return None
        return cast("T", self._load(bytes(buf)))

    def json_schema(self, mode: Literal["validation", "serialization"] = "validation") -> Any:
        """Return the JSON schema of the values that are read or written; True if the type has none."""
        if self._by_name and mode == "validation":
            return True  # read by names and by aliases, which no schema of pydantic says
        try:
            schema = self._adapter.json_schema(mode=mode, by_alias=not self._by_name)
            json.dumps(schema, allow_nan=False)  # as the engine reads it
        except (PydanticUserError, ValueError, TypeError):
            return True
        return schema


class CheckedSerde(Serde[T], Generic[T]):
    """Base of serdes that define the error for unreadable values."""

    def __init__(self, type_: type[T]) -> None:
        self._inner = serde_for(type_)

    def serialize(self, obj: T | None) -> bytes:
        """Return the value as JSON."""
        return self._inner.serialize(obj)

    def deserialize(self, buf: bytes) -> T | None:
        """Return the value, or raise the error that `unreadable` returns."""
        try:
            return self._inner.deserialize(buf)
        except ValidationError as error:
            raise self.unreadable(self._inner.type_name, invalid_input(error, empty=not buf)) from error

    def unreadable(self, name: str, found: InvalidInput) -> Exception:
        """Return the error for a value that does not match the type of this name."""
        raise NotImplementedError


class Unreadable:
    """A request body that does not match its type, with the error that the handler's wrapper raises.

    The SDK would turn an error of the serde into a terminal 500 instead of a 400.
    """

    def __init__(self, error: TerminalError) -> None:
        self.error = error


input_bytes: ContextVar[bytes | None] = ContextVar("perdure_input_bytes", default=None)
"""The decrypted body of the running handler's request."""


class InputSerde(Serde[Any]):
    """Serde of a handler's input. Returns `Unreadable` instead of raising."""

    def __init__(self, inner: TypedSerde[Any]) -> None:
        self._inner = inner

    def serialize(self, obj: Any) -> bytes:
        """Return the value as JSON."""
        return self._inner.serialize(obj)

    def deserialize(self, buf: bytes) -> Any:
        """Return the value, or `Unreadable` with the error."""
        input_bytes.set(bytes(buf))
        try:
            return self._inner.deserialize(buf)
        except ValidationError as error:
            return Unreadable(invalid_input(error, empty=not buf))
        except TerminalError as error:
            return Unreadable(error)
        except BaseException as error:  # noqa: BLE001 - of the user's validators; SystemExit would end the process
            problem = f"the request cannot be validated: {describe(error)}"
            return Unreadable(InvalidInput(problem, metadata={"field": "body"}))


class Written(bytes):
    """A serialised response. The handler serialises it, so that a failure is the handler's error."""


class OutputSerde(Serde[Any]):
    """Serde of a handler's output, which is already `Written`."""

    def serialize(self, obj: Any) -> bytes:
        """Return the response."""
        if not isinstance(obj, Written):
            raise TypeError(f"a response must be serialised by the handler; got {type(obj).__qualname__}")
        return bytes(obj)

    def deserialize(self, buf: bytes) -> Any:
        """Return the response unchanged."""
        return buf


def invalid_input(error: ValidationError, *, empty: bool = False) -> InvalidInput:
    """Return a terminal 400 with the fields and reasons of a pydantic error; the metadata name the first field."""
    if empty:
        return InvalidInput("the request body is empty: a JSON value is required", metadata={"field": "body"})
    problems = []
    fields = []
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        field = ".".join(str(part) for part in item["loc"]) or "body"
        if len(field) > _LONGEST_FIELD:  # the name of an unknown field is untrusted
            field = f"{field[:_LONGEST_FIELD]}…"
        fields.append(field)
        unknown = item["type"] == "extra_forbidden"
        reason = "there is no such field" if unknown else item["msg"].removeprefix("Value error, ")
        problems.append(f"{field}: {reason}")
    shown, more = problems[:5], len(problems) - 5
    text = "; ".join(shown) + (f"; and {more} more" if more > 0 else "")
    return InvalidInput(f"invalid input: {text}", metadata={"field": fields[0]})


def _unwritable(place: str, value: str, problem: Unwritable) -> PerdureTerminalError:
    message = f"cannot write {value}: {problem}"
    metadata = {CODE_KEY: "unwritable"} | ({"field": problem.field} if problem.field else {})
    return PerdureTerminalError(f"{place}: {message}" if place else message, metadata=metadata)


def _describe(error: Exception) -> str:
    # Pydantic's errors of serialisation name classes and characters; other errors may contain the value.
    text = str(error) if isinstance(error, PydanticSerializationError) else type(error).__qualname__
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}…"


def _adapter(type_: type[T]) -> TypeAdapter[T]:
    try:
        return TypeAdapter(type_, config=_PLAIN)
    except PydanticUserError as error:
        if error.code != "type-adapter-config-unused":
            raise
        return TypeAdapter(type_)


@lru_cache(maxsize=2048)
def _serde_for_hashable(type_: Hashable) -> TypedSerde[Any]:
    return TypedSerde(cast("type[Any]", type_))


def serde_for(type_: type[T]) -> TypedSerde[T]:
    """Return the cached serde of a type. Raises ConfigurationError if pydantic does not support the type."""
    try:
        try:
            return _serde_for_hashable(cast("Hashable", type_))
        except TypeError:  # an unhashable annotation, such as Annotated with a list inside
            return TypedSerde(type_)
    except Exception as error:
        raise ConfigurationError(
            f"no JSON serde for {type_!r}: {error}. Use a pydantic model, a dataclass, or another type that pydantic"
            " supports."
        ) from error


def type_of(value: Any) -> Any:
    """Return the type of a value, with the types of its items, for a value without a declared type."""
    kind = type(value)
    if kind not in (list, set, frozenset, dict, tuple) or not value:
        return kind
    arguments = tuple(map(type_of, value))
    if kind is dict:
        arguments = (_union(arguments), _union(map(type_of, value.values())))
    elif kind is not tuple:
        arguments = (_union(arguments),)
    return types.GenericAlias(kind, arguments)


def _union(types_: Iterable[Any]) -> Any:
    return functools.reduce(operator.or_, types_)


class _ResultType(NamedTuple):
    annotation: Any
    names: dict[str, Any]
    type: Any


_result_types: WeakKeyDictionary[types.CodeType, _ResultType] = WeakKeyDictionary()


def result_type(action: Callable[..., Any]) -> Any:
    """Return the annotated result type of an action, or ``Any`` (plain JSON) without an annotation.

    Raises:
        ConfigurationError: The annotation cannot be resolved at run time. Plain JSON would return a dict where the type
            checker expects a model.
    """
    function = _plain_function(action)
    if function is None:
        return action if isinstance(action, type) else Any
    annotation = function.__annotations__.get("return", Any)
    found = _result_types.get(function.__code__)
    # Code alone is ambiguous: equal functions of two modules have equal code, and closures share it.
    if found is not None and found.annotation is annotation and found.names is function.__globals__:
        return found.type
    try:
        type_ = _resolve(annotation, function.__globals__, {})
    except NameError:
        return _resolve_in_closure(function, annotation)
    _result_types[function.__code__] = _ResultType(annotation, function.__globals__, type_)
    return type_


def _plain_function(action: Any) -> types.FunctionType | None:
    while not isinstance(action, types.FunctionType):
        if isinstance(action, types.MethodType):
            action = action.__func__
        elif isinstance(action, functools.partial):
            action = action.func
        elif not isinstance(action, type) and isinstance(
            call := getattr(type(action), "__call__", None),  # noqa: B004 - the function itself is needed
            types.FunctionType,
        ):
            action = call
        else:
            return None
    return cast("types.FunctionType", inspect.unwrap(action))


def _resolve_in_closure(function: types.FunctionType, annotation: Any) -> Any:
    """Resolve a type of the enclosing function. Not cached, because each call of that function creates a new type."""
    try:
        return _resolve(annotation, function.__globals__, dict(inspect.getclosurevars(function).nonlocals))
    except NameError as error:
        raise ConfigurationError(
            f"{function.__qualname__}: the type {error.name!r} of its result cannot be resolved at run time; "
            "define it in the module, import it there outside `if TYPE_CHECKING`, or pass the type: returns=..."
        ) from error


def _resolve(annotation: Any, names: dict[str, Any], more: dict[str, Any]) -> Any:
    holder = types.SimpleNamespace(__annotations__={"return": annotation})
    return typing.get_type_hints(holder, names, more, include_extras=True)["return"]


def _takes_none(adapter: TypeAdapter[Any]) -> bool:
    try:
        return adapter.validate_python(None) is None
    except Exception:  # noqa: BLE001 - validators may raise anything
        return False


def compact_json(payload: bytes) -> str:
    """Return JSON with sorted keys and without white space; the empty payload becomes ``null``."""
    return json.dumps(json.loads(payload or b"null"), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
