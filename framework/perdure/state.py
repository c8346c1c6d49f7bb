"""Typed state of virtual objects and workflows.

The SDK's context has `set` in every handler. The engine rejects a write from a shared handler (RT0017), retries, and
pauses the invocation. `State` raises a terminal 400 instead.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any, Final, Generic, cast, overload

import restate
from pydantic import BaseModel, ValidationError
from restate.serde import BytesSerde, Serde
from typing_extensions import TypeVar

from perdure._runtime import sdk
from perdure._runtime.engine_texts import check_name
from perdure._runtime.run_scope import refuse_inside_run
from perdure._runtime.serdes import TypedSerde, invalid_input, serde_for
from perdure.errors import (
    CODE_KEY,
    InvalidInput,
    PerdureTerminalError,
    ReadOnlyStateError,
    StateTooLarge,
    UnreadableState,
)
from perdure.observability.events import StateCleared, StateRead, StateWritten, publish
from perdure.observability.lifecycle import invocation_of, should_publish
from perdure.observability.logging import get_logger
from perdure.workflow_config import WorkflowConfig

T = TypeVar("T")
D = TypeVar("D", default=None)  # what `get` returns when there is no entry

_bytes = BytesSerde()

StateContext = restate.ObjectContext | restate.ObjectSharedContext

# The handler's context, so that a type checker rejects writes from a shared handler.
C_co = TypeVar("C_co", bound=StateContext, default=Any, covariant=True)


class _EntrySerde(Serde[tuple[Any]]):
    """Reads a state entry as a tuple of its value, which distinguishes a stored None from a missing entry.

    Another deployment wrote an entry of another type, and a deployment can fix it. A handler that may write is
    therefore retried and finally paused, because a terminal error would abandon work in progress and roll back sagas. A
    shared handler fails at once.
    """

    def __init__(self, inner: TypedSerde[Any], handler: sdk.HandlerInfo, key: str) -> None:
        self._inner = inner
        self._handler = handler
        self._key = key

    def serialize(self, obj: tuple[Any] | None) -> bytes:
        """Return the value as JSON."""
        return self._inner.serialize(None if obj is None else obj[0])

    def deserialize(self, buf: bytes) -> tuple[Any]:
        """Return the value, in a tuple."""
        try:
            return (self._inner.deserialize(buf),)
        except ValidationError as error:
            problems = invalid_input(error, empty=not buf).message
            message = (
                f"{self._handler} cannot read state '{self._key}' as {self._inner.type_name}: {problems}. Deploy code "
                "that reads it, or repair the entry over the admin API"
            )
            if self._handler.writes_state:
                raise UnreadableState(message) from error
            raise PerdureTerminalError(
                message, metadata={CODE_KEY: "unreadable_state", "handler": str(self._handler), "state": self._key}
            ) from error


class ReadOnlyState(Generic[T, D, C_co]):
    """A read-only state entry.

    Args:
        ctx: The context of a virtual object or workflow, exclusive or shared.
        key: The entry's name.
        type_: The value's type; any type that pydantic supports.
        default: Result of `get` without an entry; mutable values are copied.
        default_factory: Creates that value; instead of ``default``.

    Raises:
        InvalidInput: The handler has no state, or the name is no text that the engine can store.
    """

    @overload
    def __init__(
        self,
        ctx: C_co,
        key: str,
        type_: type[T],
        *,
        default: D = None,  # type: ignore[assignment] # None is D's own default
    ) -> None: ...
    @overload
    def __init__(self, ctx: C_co, key: str, type_: type[T], *, default_factory: Callable[[], D]) -> None: ...
    def __init__(
        self,
        ctx: StateContext,
        key: str,
        type_: type[T],
        *,
        default: Any = None,
        default_factory: Callable[[], Any] | None = None,
    ) -> None:
        check_name("state", key)
        info = sdk.handler_info(cast("restate.Context", ctx))
        if info.kind == "service":
            raise InvalidInput(
                f"state '{key}': {info} belongs to a service, which has no state; use a virtual object or a workflow",
                metadata={"state": key},
            )
        self._ctx = ctx
        self.key = key
        self._serde = serde_for(type_)
        self._entry_serde = _EntrySerde(self._serde, info, key)
        self._default = default
        self._default_factory = default_factory

    async def get(self) -> T | D:
        """Return the value, or the default without an entry.

        Raises:
            UnreadableState: The entry does not match the type, and the handler may write; not terminal.
            PerdureTerminalError: The entry does not match the type, and the handler is shared; terminal, 500.
            Cancelled: This invocation was cancelled.
        """
        refuse_inside_run(f"state '{self.key}'")
        ctx = cast("restate.ObjectContext", self._ctx)
        if should_publish(ctx, StateRead):
            publish(StateRead(invocation_of(ctx), self.key))
        entry = await ctx.get(self.key, serde=self._entry_serde)
        if entry is not None:
            return cast("T", entry[0])
        return cast("D", _copy(self._default) if self._default_factory is None else self._default_factory())


class State(ReadOnlyState[T, D, C_co]):
    """A state entry. All handlers can read it; exclusive and main handlers can write it.

    Example:
        balance = State(ctx, "balance", float, default=0.0)
        await balance.set(await balance.get() + amount)

    Args:
        ctx: The context of a virtual object or workflow.
        key: The entry's name.
        type_: The value's type; any type that pydantic supports.
        default: Result of `get` without an entry; mutable values are copied.
        default_factory: Creates that value; instead of ``default``.
    """

    async def set(self: State[T, D, restate.ObjectContext], value: T) -> None:
        """Write the value, which must be the same at every replay (see `Time` and `DeterministicHelpers`).

        Args:
            value: The value.

        Raises:
            ReadOnlyStateError: The handler is shared; terminal, 400.
            PerdureTerminalError: The value would be read back changed, or not at all.
        """
        ctx = _writable(self._ctx, "Set", self.key)
        data = self._serde.write(value, f"state '{self.key}'")
        if should_publish(ctx, StateWritten):
            publish(StateWritten(invocation_of(ctx), self.key, len(data)))
        ctx.set(self.key, data, serde=_bytes)

    async def clear(self: State[T, D, restate.ObjectContext]) -> None:
        """Remove the entry.

        Raises:
            ReadOnlyStateError: The handler is shared; terminal, 400.
        """
        ctx = _writable(self._ctx, "Clear", self.key)
        if should_publish(ctx, StateCleared):
            publish(StateCleared(invocation_of(ctx), self.key))
        ctx.clear(self.key)


class MutableState(State[T, D, restate.ObjectContext]):
    """A state entry of exclusive handlers. The type checker rejects a shared context.

    Args:
        ctx: The context of an exclusive handler or a workflow's main handler.
        key: The entry's name.
        type_: The value's type; any type that pydantic supports.
        default: Result of `get` without an entry; mutable values are copied.
        default_factory: Creates that value; instead of ``default``.

    Raises:
        ReadOnlyStateError: The handler is shared; terminal, 400.
    """

    @overload
    def __init__(
        self,
        ctx: restate.ObjectContext,
        key: str,
        type_: type[T],
        *,
        default: D = None,  # type: ignore[assignment] # None is D's own default
    ) -> None: ...
    @overload
    def __init__(
        self, ctx: restate.ObjectContext, key: str, type_: type[T], *, default_factory: Callable[[], D]
    ) -> None: ...
    def __init__(
        self,
        ctx: restate.ObjectContext,
        key: str,
        type_: type[T],
        *,
        default: Any = None,
        default_factory: Callable[[], Any] | None = None,
    ) -> None:
        if default_factory is None:
            super().__init__(ctx, key, type_, default=default)
        else:
            super().__init__(ctx, key, type_, default_factory=default_factory)
        _writable(ctx, "MutableState", key)


async def clear_all(ctx: restate.ObjectContext) -> None:
    """Remove all state of this virtual object or workflow.

    Args:
        ctx: The context of an exclusive handler.

    Raises:
        ReadOnlyStateError: The handler is shared; terminal, 400.
    """
    _writable(ctx, "ClearAll", "*")
    if should_publish(ctx, StateCleared):
        publish(StateCleared(invocation_of(ctx), "*"))
    ctx.clear_all()


def _copy(default: Any) -> Any:
    """Return a copy of a mutable default: invocations must not share it."""
    is_mutable = isinstance(default, list | dict | set | bytearray | BaseModel) or is_dataclass(default)
    return copy.deepcopy(default) if is_mutable else default


def _writable(ctx: Any, operation: str, key: str) -> restate.ObjectContext:
    refuse_inside_run(f"state '{key}'")
    info = sdk.handler_info(ctx)
    if not info.writes_state:
        raise ReadOnlyStateError(
            f"{operation} called from read-only context: {info} is a shared handler and cannot write state '{key}'; "
            "move the write to an exclusive handler",
            metadata={"handler": str(info), "state": key},
        )
    return cast("restate.ObjectContext", ctx)


WARN_AT: Final = 0.8

log = get_logger("perdure.workflow")


async def monitor_state_size(ctx: StateContext, config: WorkflowConfig) -> int:
    """Return the size of this workflow's or virtual object's state in bytes, names included.

    Each value becomes a journal entry, so call this from a shared handler, or rarely. A size over 80 % of the limit is
    logged as a warning.

    Args:
        ctx: The context of a handler of the workflow, main or shared.
        config: The configuration with the limit.

    Raises:
        StateTooLarge: The size exceeds ``max_state_size``; terminal, 413.
    """
    refuse_inside_run("monitor_state_size")
    sizes: dict[str, int] = {}
    for name in sorted(await ctx.state_keys()):
        value = await ctx.get(name, serde=_bytes) or b""
        sizes[name] = len(name.encode()) + len(value)
    size, limit = sum(sizes.values()), config.max_state_size
    largest = max(sizes, key=lambda name: sizes[name], default="")
    if limit and size > limit:
        raise StateTooLarge(
            f"workflow state size ({size} bytes) exceeds configured maximum ({limit} bytes); the largest entry is "
            f"'{largest}' with {sizes[largest]} bytes",
            metadata={"size": str(size), "maximum": str(limit), "largest": largest},
        )
    if limit and size > WARN_AT * limit:
        log.warning("workflow.state_size", size=size, maximum=limit, largest=largest, share=round(size / limit, 2))
    return size
