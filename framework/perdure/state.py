"""Typed state of virtual objects and workflows, with a guard against writes that the engine would refuse.

The SDK's one runtime class has `set` in every handler; the server rejects a write from a shared handler (RT0017),
retries and at last pauses the invocation. The guard looks at the handler's kind and refuses at once, with a terminal
400.
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

_as_it_is = BytesSerde()

StateContext = restate.ObjectContext | restate.ObjectSharedContext

# What the handler is handed, so that a type checker refuses writes from one that is shared.
C_co = TypeVar("C_co", bound=StateContext, default=Any, covariant=True)


class _EntrySerde(Serde[tuple[Any]]):
    """Reads a state entry as a tuple of its value, so that a None that was written is told from no entry.

    An entry that does not fit its type was written by other code: the fault is a deploy's, and another deploy heals it.
    So a handler that may write is left to the engine's retries: it may have done half of its work, which a terminal
    error would give up, and roll back whole sagas for. When the retries are used up it is paused, and can be resumed. A
    shared handler only looks; for it, an error at once is better than none for hours.
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
            name = getattr(self._inner.type, "__qualname__", str(self._inner.type))
            problems = invalid_input(error, empty=not buf).message
            message = (
                f"{self._handler} can't read state '{self._key}' as {name}: {problems}. Deploy code that can, or "
                "repair the entry over the admin API"
            )
            if self._handler.writes_state:
                raise UnreadableState(message) from error
            raise PerdureTerminalError(
                message, metadata={CODE_KEY: "unreadable_state", "handler": str(self._handler), "state": self._key}
            ) from error


class ReadOnlyState(Generic[T, D, C_co]):
    """One state entry that can only be read.

    Args:
        ctx: The context of a virtual object or workflow, exclusive or shared.
        key: The entry's name.
        type_: The value's type; anything that pydantic knows.
        default: What `get` returns when there is no entry; a copy each time, where it's something that can be changed.
        default_factory: Makes that value; instead of ``default``.

    Raises:
        InvalidInput: The handler has no state.
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
        info = sdk.handler_info(cast("restate.Context", ctx))
        if info.kind == "service":
            raise InvalidInput(
                f"state '{key}': {info} is a plain service and has no state; use a virtual object or a workflow",
                metadata={"state": key},
            )
        self._ctx = ctx
        self.key = key
        self._serde = serde_for(type_)
        self._entry_serde = _EntrySerde(self._serde, info, key)
        self._default = default
        self._default_factory = default_factory

    async def get(self) -> T | D:
        """Return the value, or the default when there is none; None without a default.

        Raises:
            UnreadableState: The entry does not fit the type, and the handler may write; not terminal.
            PerdureTerminalError: The entry does not fit the type, and the handler is shared; terminal, 500.
            Cancelled: This invocation was cancelled.
        """
        refuse_inside_run(f"state '{self.key}'")
        ctx = cast("restate.ObjectContext", self._ctx)
        if should_publish(ctx, StateRead):
            publish(StateRead(invocation_of(ctx), self.key))
        entry = await ctx.get(self.key, serde=self._entry_serde)
        if entry is not None:
            return cast("T", entry[0])
        return cast("D", _own(self._default) if self._default_factory is None else self._default_factory())


class State(ReadOnlyState[T, D, C_co]):
    """One state entry; reading works everywhere, writing from handlers that may write.

    Args:
        ctx: The context of a virtual object or workflow.
        key: The entry's name.
        type_: The value's type; anything that pydantic knows.
        default: What `get` returns when there is no entry.
        default_factory: Makes that value; instead of ``default``.
    """

    async def set(self: State[T, D, restate.ObjectContext], value: T) -> None:
        """Write the value.

        A replay must write the same value: take times and random numbers from `Time` and `DeterministicHelpers`.

        Raises:
            ReadOnlyStateError: The handler is shared; terminal, 400.
        """
        ctx = _writable(self._ctx, "Set", self.key)
        written = self._serde.serialize(value)
        if should_publish(ctx, StateWritten):
            publish(StateWritten(invocation_of(ctx), self.key, len(written)))
        ctx.set(self.key, written, serde=_as_it_is)

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
    """State for exclusive handlers only, so that the type checker already refuses a shared context.

    Args:
        ctx: The context of an exclusive handler or a workflow's main handler.
        key: The entry's name.
        type_: The value's type; anything that pydantic knows.
        default: What `get` returns when there is no entry.
        default_factory: Makes that value; instead of ``default``.

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


def _own(default: Any) -> Any:
    """Return a default that may be changed: one list for all would carry what is one's to another."""
    changes = isinstance(default, list | dict | set | bytearray | BaseModel) or is_dataclass(default)
    return copy.deepcopy(default) if changes else default


def _writable(ctx: Any, act: str, key: str) -> restate.ObjectContext:
    refuse_inside_run(f"state '{key}'")
    info = sdk.handler_info(ctx)
    if not info.writes_state:
        raise ReadOnlyStateError(
            f"{act} called from read-only context: {info} is a shared handler, so it can't write state '{key}'; "
            "move the write to an exclusive handler",
            metadata={"handler": str(info), "state": key},
        )
    return cast("restate.ObjectContext", ctx)


WARN_AT: Final = 0.8

log = get_logger("perdure.workflow")


async def monitor_state_size(ctx: StateContext, config: WorkflowConfig) -> int:
    """Measure the state of this workflow or virtual object, and refuse one that is too large.

    What is measured is what the engine stores: names and values, in bytes. Each value that is read becomes an entry of
    the journal, so measure from a shared handler, or rarely.

    Args:
        ctx: The context of a handler of the workflow, main or shared.
        config: Says how large it may be.

    Returns:
        The size in bytes.

    Raises:
        StateTooLarge: It is larger than ``max_state_size``; terminal, 413. From 80 % on, there is a warning in the log.
    """
    refuse_inside_run("monitor_state_size")
    size = 0
    largest, most = "", -1
    for name in sorted(await ctx.state_keys()):
        value = await ctx.get(name, serde=BytesSerde()) or b""
        taken = len(name.encode()) + len(value)
        size += taken
        if taken > most:
            largest, most = name, taken
    limit = config.max_state_size
    if limit and size > limit:
        raise StateTooLarge(
            f"workflow state size ({size} bytes) exceeds configured maximum ({limit} bytes); the largest entry is "
            f"'{largest}' with {most} bytes",
            metadata={"size": str(size), "maximum": str(limit), "largest": largest},
        )
    if limit and size > WARN_AT * limit:
        log.warning("workflow.state_size", size=size, maximum=limit, largest=largest, share=round(size / limit, 2))
    return size
