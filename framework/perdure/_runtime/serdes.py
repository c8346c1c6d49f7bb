"""Serialisation: one cached JSON serde per type.

pydantic's TypeAdapter supports models, lists of models, dates, Decimal, enums and dataclasses. The SDK's default serde
fails on some of these and inspects an action's signature in each call, so Perdure always passes a serde.
"""

from __future__ import annotations

import functools
import inspect
import json
import types
import typing
from collections.abc import Callable, Hashable
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, Final, Generic, Literal, NamedTuple, TypeVar, cast
from weakref import WeakKeyDictionary

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import PydanticSerializationError
from restate.serde import Serde

from perdure.errors import CODE_KEY, ConfigurationError, InvalidInput, PerdureTerminalError

T = TypeVar("T")

ENGINE_MESSAGE_LIMIT: Final = 32 * 1024 * 1024
"""The engine's default limit for messages, such as results and state, in bytes."""

# For bytes that are not UTF-8, and for NaN and infinity. Pydantic refuses it for models and dataclasses, which have
# their own configuration.
_PLAIN = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="strings")

_LONGEST_FIELD = 100


class TypedSerde(Serde[T], Generic[T]):
    """JSON serde of a type that pydantic's TypeAdapter supports. Validates values when reading."""

    def __init__(self, type_: type[T]) -> None:
        self.type = type_
        self._model = type_ if is_model(type_) else None
        self._adapter: TypeAdapter[T] = _adapter(type_)
        self.accepts_empty = _takes_none(self._adapter)
        self._dump = self._adapter.serializer.to_json
        self._load = self._adapter.validator.validate_json

    def serialize(self, obj: T | None) -> bytes:
        """Return the value as JSON; None becomes the empty body if the type allows None.

        Raises:
            PerdureTerminalError: The value does not match the type. The error is terminal, because a retry would repeat
                the side effect that returned the value.
        """
        if obj is None and self.accepts_empty:
            return b""
        try:
            # A model was validated on construction. A second validation takes three times as long.
            if type(obj) is self.type or (self._model is not None and isinstance(obj, self._model)):
                return self._dump(obj)
            # pydantic silently writes None for any type, and ``{}`` for an object of another class than the model.
            if obj is None or self._model is not None:
                return self._dump_unexpected(obj)
            return self._dump(obj, warnings="error")
        except PydanticSerializationError:
            return self._dump_unexpected(obj)

    def _dump_unexpected(self, obj: T | None) -> bytes:
        """Return the JSON of a value of another class, such as a tuple for a list, if the type can read it."""
        try:
            data = self._dump(self._adapter.validate_python(obj), warnings=False)
            self._load(data)
        except (PydanticSerializationError, ValidationError) as error:
            name = getattr(self.type, "__qualname__", str(self.type))
            raise PerdureTerminalError(
                f"cannot write a value of class {type(obj).__qualname__} as {name}: {error}",
                metadata={CODE_KEY: "unwritable"},
            ) from error
        return data

    def deserialize(self, buf: bytes) -> T | None:
        """Return the value of a JSON body; raise pydantic's ValidationError if it does not match the type."""
        if not buf and self.accepts_empty:
            return None
        return cast("T", self._load(bytes(buf)))

    def json_schema(self, mode: Literal["validation", "serialization"] = "validation") -> Any:
        """Return the JSON schema of the values that are read or written; True if the type has none."""
        try:
            schema = self._adapter.json_schema(mode=mode)
            json.dumps(schema, allow_nan=False)  # as the engine reads it
        except (PydanticUserError, ValueError, TypeError):
            return True
        return schema


class CheckedSerde(Serde[T], Generic[T]):
    """Serde of a type whose subclasses define the error for unreadable values."""

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
            name = getattr(self._inner.type, "__qualname__", str(self._inner.type))
            raise self.unreadable(name, invalid_input(error, empty=not buf)) from error

    def unreadable(self, name: str, found: InvalidInput) -> Exception:
        """Return the error for a value that does not match the type of this name."""
        raise NotImplementedError


class Unreadable:
    """A request body that does not match its type, with the error that the handler's wrapper raises.

    The SDK would turn an error of the serde into a terminal 500 instead of a 400.
    """

    def __init__(self, error: InvalidInput) -> None:
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
        adapter.validate_python(None)
    except ValidationError:
        return False
    return True


def is_model(type_: Any) -> bool:
    """Tell whether a type is a pydantic model."""
    return isinstance(type_, type) and issubclass(type_, BaseModel)


def compact_json(payload: bytes) -> str:
    """Return JSON with sorted keys and without white space; the empty payload becomes ``null``."""
    return json.dumps(json.loads(payload or b"null"), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
