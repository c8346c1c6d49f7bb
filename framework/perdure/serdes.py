"""How values become bytes and come back: one serde for every type, made once.

pydantic's TypeAdapter covers models, lists of models, dates, Decimal, enums and dataclasses alike. The SDK's default
serde fails on some of these and looks at an action's signature at each call, so perdure always passes a serde
(engine-facts: that alone raised throughput by a quarter).
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Any, Generic, TypeVar, cast
from weakref import WeakKeyDictionary

from pydantic import BaseModel, TypeAdapter, ValidationError
from restate.serde import Serde

from perdure.errors import ConfigurationError, InvalidInput

T = TypeVar("T")


class TypedSerde(Serde[T], Generic[T]):
    """JSON of one Python type, checked against the type when it is read.

    Args:
        type_: The type; anything that pydantic's TypeAdapter takes.
    """

    def __init__(self, type_: type[T]) -> None:
        self.type = type_
        self.accepts_empty = type_ is type(None) or _is_optional(type_)
        self._adapter: TypeAdapter[T] = TypeAdapter(type_)
        self._dump = self._adapter.serializer.to_json
        self._load = self._adapter.validator.validate_json

    def serialize(self, obj: T | None) -> bytes:
        """Return the value as JSON; None becomes the empty body when the type allows None."""
        if obj is None and self.accepts_empty:
            return b""
        return self._dump(obj)

    def deserialize(self, buf: bytes) -> T | None:
        """Return the value of a JSON body; raise pydantic's ValidationError when it does not fit the type."""
        if not buf and self.accepts_empty:
            return None
        return cast("T", self._load(bytes(buf)))

    def json_schema(self) -> dict[str, Any]:
        """Return the JSON schema of the type, for discovery."""
        return self._adapter.json_schema()


class Unreadable:
    """A request body that does not fit its type, kept as a value until the handler's wrapper can refuse it.

    The SDK turns an error raised by a serde into a terminal 500; bad input is the caller's fault and deserves a 400
    that names the field. So the input serde hands this on instead of raising.
    """

    def __init__(self, error: InvalidInput) -> None:
        self.error = error


class InputSerde(Serde[Any]):
    """The serde of a handler's input: never raises on reading, gives `Unreadable` for a body that does not fit.

    Args:
        inner: The serde of the input's type.
    """

    def __init__(self, inner: TypedSerde[Any]) -> None:
        self._inner = inner

    def serialize(self, obj: Any) -> bytes:
        """Return the value as JSON."""
        return self._inner.serialize(obj)

    def deserialize(self, buf: bytes) -> Any:
        """Return the value, or `Unreadable` with the error to raise."""
        try:
            return self._inner.deserialize(buf)
        except ValidationError as error:
            return Unreadable(invalid_input(error, empty=not buf))


def invalid_input(error: ValidationError, *, empty: bool = False) -> InvalidInput:
    """Turn pydantic's error into a terminal 400 that names each field and says what is wrong with it.

    Args:
        error: What pydantic found.
        empty: The body was empty, which deserves a plainer sentence than "invalid JSON".

    Returns:
        The error to raise; its metadata holds the first field's name as ``field``.
    """
    if empty:
        return InvalidInput("the request body is empty: a JSON value is required", metadata={"field": "body"})
    problems = []
    fields = []
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        field = ".".join(str(part) for part in item["loc"]) or "body"
        fields.append(field)
        problems.append(f"{field}: {item['msg']}")
    shown, more = problems[:5], len(problems) - 5
    text = "; ".join(shown) + (f"; and {more} more" if more > 0 else "")
    return InvalidInput(f"invalid input: {text}", metadata={"field": fields[0]})


@lru_cache(maxsize=2048)
def _serde_for_hashable(type_: Hashable) -> TypedSerde[Any]:
    return TypedSerde(cast("type[Any]", type_))


def serde_for(type_: type[T]) -> TypedSerde[T]:
    """Return the serde of a type; the same one for the same type, so that it is built once.

    Args:
        type_: The type; anything that pydantic's TypeAdapter takes.

    Raises:
        ConfigurationError: pydantic can't describe the type.
    """
    try:
        return _serde_for_hashable(cast("Hashable", type_))
    except TypeError:  # an unhashable annotation, such as Annotated with a list inside
        return TypedSerde(type_)
    except Exception as error:
        raise ConfigurationError(
            f"no JSON serde for {type_!r}: {error}. Use a pydantic model, a dataclass, or a type that pydantic knows."
        ) from error


_result_types: WeakKeyDictionary[types.CodeType, Any] = WeakKeyDictionary()


def result_type(action: Callable[..., Any]) -> Any:
    """Return the type that an action says it returns; its signature is read once per piece of code.

    Args:
        action: A function, coroutine function or callable object.

    Returns:
        The annotation of the result; ``Any`` when there is none, which means plain JSON.
    """
    function = _plain_function(action)
    if function is None:
        return _annotation(action)
    found = _result_types.get(function.__code__)
    if found is None:
        found = _result_types[function.__code__] = _annotation(function)
    return found


def _plain_function(action: Any) -> types.FunctionType | None:
    while True:
        if isinstance(action, types.MethodType):
            action = action.__func__
        elif hasattr(action, "func") and hasattr(action, "args"):  # functools.partial
            action = action.func
        else:
            return action if isinstance(action, types.FunctionType) else None


def _annotation(action: Callable[..., Any]) -> Any:
    try:
        annotation = typing.get_type_hints(action).get("return", inspect.Signature.empty)
    except (NameError, TypeError):  # a type known to the checker only, or a callable without hints of its own
        annotation = inspect.Signature.empty
    if annotation is inspect.Signature.empty:
        return Any
    return type(None) if annotation is None else annotation


def _is_optional(type_: Any) -> bool:
    return type_ is Any or type(None) in typing.get_args(type_)


def is_model(type_: Any) -> bool:
    """Tell if a type is a pydantic model."""
    return isinstance(type_, type) and issubclass(type_, BaseModel)
