"""How values become bytes and come back: one serde for every type, made once.

pydantic's TypeAdapter covers models, lists of models, dates, Decimal, enums and dataclasses alike. The SDK's default
serde fails on some of these and looks at an action's signature at each call, so perdure always passes a serde
(engine-facts: that alone raised throughput by a quarter).
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
from typing import Any, Final, Generic, NamedTuple, TypeVar, cast
from weakref import WeakKeyDictionary

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import PydanticSerializationError
from restate.serde import Serde

from perdure.errors import CODE_KEY, ConfigurationError, InvalidInput, PerdureTerminalError

T = TypeVar("T")

ENGINE_MESSAGE_LIMIT: Final = 32 * 1024 * 1024
"""What the engine takes in one message, in bytes, unless it is set up otherwise. A result is one, and a state too."""

# Without it, bytes that are no UTF-8 can't be written, and a float that is no number can't be read back. Models and
# dataclasses have settings of their own, and pydantic refuses to mix the two.
_PLAIN = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="strings")

_LONGEST_FIELD = 100


class TypedSerde(Serde[T], Generic[T]):
    """JSON of one Python type, checked against the type when it is read.

    Args:
        type_: The type; anything that pydantic's TypeAdapter takes.
    """

    def __init__(self, type_: type[T]) -> None:
        self.type = type_
        self._model = type_ if is_model(type_) else None
        self._adapter: TypeAdapter[T] = _adapter(type_)
        self.accepts_empty = _takes_none(self._adapter)
        self._dump = self._adapter.serializer.to_json
        self._load = self._adapter.validator.validate_json

    def serialize(self, obj: T | None) -> bytes:
        """Return the value as JSON; None becomes the empty body when the type allows None.

        Raises:
            PerdureTerminalError: The value does not fit the type, so that it could not be read back. It is terminal
                since a value in the journal is there for good, and since an ordinary error would repeat the side
                effect that the value came from.
        """
        if obj is None and self.accepts_empty:
            return b""
        try:
            # A model was validated when it was made. Having pydantic check it again takes three times as long.
            if type(obj) is self.type or (self._model is not None and isinstance(obj, self._model)):
                return self._dump(obj)
            # pydantic writes None for any type, and ``{}`` for an object that is not the model's, without a word.
            if obj is None or self._model is not None:
                return self._dump_unexpected(obj)
            return self._dump(obj, warnings="error")
        except PydanticSerializationError:
            return self._dump_unexpected(obj)

    def _dump_unexpected(self, obj: T | None) -> bytes:
        """Return the JSON of a value of another class, such as a tuple for a list, if it reads back as the type."""
        try:
            written = self._dump(self._adapter.validate_python(obj), warnings=False)
            self._load(written)
        except (PydanticSerializationError, ValidationError) as error:
            name = getattr(self.type, "__qualname__", str(self.type))
            raise PerdureTerminalError(
                f"a value of class {type(obj).__qualname__} can't be written as {name}: {error}",
                metadata={CODE_KEY: "unwritable"},
            ) from error
        return written

    def deserialize(self, buf: bytes) -> T | None:
        """Return the value of a JSON body; raise pydantic's ValidationError when it does not fit the type."""
        if not buf and self.accepts_empty:
            return None
        return cast("T", self._load(bytes(buf)))

    def json_schema(self) -> dict[str, Any]:
        """Return the JSON schema of the type, for discovery."""
        return self._adapter.json_schema()


class CheckedSerde(Serde[T], Generic[T]):
    """Writes as the serde of a type does, and says in words of its own what can't be read as the type.

    Args:
        type_: The type.
    """

    def __init__(self, type_: type[T]) -> None:
        self._inner = serde_for(type_)

    def serialize(self, obj: T | None) -> bytes:
        """Return the value as JSON."""
        return self._inner.serialize(obj)

    def deserialize(self, buf: bytes) -> T | None:
        """Return the value, or raise what `unreadable` returns."""
        try:
            return self._inner.deserialize(buf)
        except ValidationError as error:
            name = getattr(self._inner.type, "__qualname__", str(self._inner.type))
            raise self.unreadable(name, invalid_input(error, empty=not buf)) from error

    def unreadable(self, name: str, found: InvalidInput) -> Exception:
        """Return the error to raise.

        Args:
            name: The type's name.
            found: What doesn't fit.
        """
        raise NotImplementedError


class Unreadable:
    """A request body that does not fit its type, kept as a value until the handler's wrapper can refuse it.

    The SDK turns an error raised by a serde into a terminal 500; bad input is the caller's fault and deserves a 400
    that names the field. So the input serde hands this on instead of raising.
    """

    def __init__(self, error: InvalidInput) -> None:
        self.error = error


input_bytes: ContextVar[bytes | None] = ContextVar("perdure_input_bytes", default=None)
"""The body that the running handler was started with, decrypted. It is set in the task that runs the handler."""


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
        input_bytes.set(bytes(buf))
        try:
            return self._inner.deserialize(buf)
        except ValidationError as error:
            return Unreadable(invalid_input(error, empty=not buf))


class Written(bytes):
    """A response that is written already, so that one that can't be is the handler's own failure, and told as such."""


class OutputSerde(Serde[Any]):
    """The serde of a handler's output: hands on what is `Written`."""

    def serialize(self, obj: Any) -> bytes:
        """Return the response."""
        if not isinstance(obj, Written):
            raise TypeError(f"a response is written before it gets here, not {type(obj).__qualname__}")
        return bytes(obj)

    def deserialize(self, buf: bytes) -> Any:
        """Return the response as it is; nobody reads it here."""
        return buf


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
        if len(field) > _LONGEST_FIELD:  # an unknown field's name is the caller's, of any length
            field = f"{field[:_LONGEST_FIELD]}…"
        fields.append(field)
        unknown = item["type"] == "extra_forbidden"
        wrong = "there is no such field" if unknown else item["msg"].removeprefix("Value error, ")
        problems.append(f"{field}: {wrong}")
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
    """Return the serde of a type; the same one for the same type, so that it is built once.

    Args:
        type_: The type; anything that pydantic's TypeAdapter takes.

    Raises:
        ConfigurationError: pydantic can't describe the type.
    """
    try:
        try:
            return _serde_for_hashable(cast("Hashable", type_))
        except TypeError:  # an unhashable annotation, such as Annotated with a list inside
            return TypedSerde(type_)
    except Exception as error:
        raise ConfigurationError(
            f"no JSON serde for {type_!r}: {error}. Use a pydantic model, a dataclass, or a type that pydantic knows."
        ) from error


class _ResultType(NamedTuple):
    annotation: Any
    names: dict[str, Any]
    type: Any


_result_types: WeakKeyDictionary[types.CodeType, _ResultType] = WeakKeyDictionary()


def result_type(action: Callable[..., Any]) -> Any:
    """Return the type that an action says it returns; its signature is read once per piece of code.

    Args:
        action: A function, coroutine function, class or callable object.

    Returns:
        The annotation of the result; ``Any`` when there is none, which means plain JSON.

    Raises:
        ConfigurationError: There is an annotation that can't be resolved at run time. Taking the result for plain JSON
            would give the caller a dict where the type checker promised a model.
    """
    function = _plain_function(action)
    if function is None:
        return action if isinstance(action, type) else Any
    annotation = function.__annotations__.get("return", Any)
    found = _result_types.get(function.__code__)
    # Code alone does not tell: equal functions of two modules have equal code, closures share it.
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
            call := getattr(type(action), "__call__", None),  # noqa: B004 - its function is wanted, not whether it is
            types.FunctionType,
        ):
            action = call
        else:
            return None
    return cast("types.FunctionType", inspect.unwrap(action))


def _resolve_in_closure(function: types.FunctionType, annotation: Any) -> Any:
    """Resolve a type that was made in the enclosing function; a new one at each call of that, so not to be kept."""
    try:
        return _resolve(annotation, function.__globals__, dict(inspect.getclosurevars(function).nonlocals))
    except NameError as error:
        raise ConfigurationError(
            f"{function.__qualname__}: the type {error.name!r} of its result can't be resolved at run time; "
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
    """Tell if a type is a pydantic model."""
    return isinstance(type_, type) and issubclass(type_, BaseModel)


def compact_json(payload: bytes) -> str:
    """Return a JSON document with sorted keys and without white space; the empty payload becomes ``null``."""
    return json.dumps(json.loads(payload or b"null"), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
