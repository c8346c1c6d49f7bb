"""Typed state of virtual objects and workflows, with a guard against writes that the engine would refuse.

The SDK's one runtime class has `set` in every handler; the server rejects a write from a shared handler (RT0017),
retries and at last pauses the invocation. The guard looks at the handler's kind and refuses at once, with a terminal
400.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, cast, overload

import restate
from restate.serde import Serde
from typing_extensions import TypeVar

from perdure import _sdk
from perdure.errors import InvalidInput, ReadOnlyStateError
from perdure.runs import refuse_inside_run
from perdure.serdes import TypedSerde, serde_for

T = TypeVar("T")
D = TypeVar("D", default=None)  # what `get` returns when there is no entry

StateContext = restate.ObjectContext | restate.ObjectSharedContext


class _EntrySerde(Serde[tuple[Any]]):
    """Reads a state entry as a tuple of its value, so that a None that was written is told from no entry."""

    def __init__(self, inner: TypedSerde[Any]) -> None:
        self._inner = inner

    def serialize(self, obj: tuple[Any] | None) -> bytes:
        """Return the value as JSON."""
        return self._inner.serialize(None if obj is None else obj[0])

    def deserialize(self, buf: bytes) -> tuple[Any]:
        """Return the value, in a tuple."""
        return (self._inner.deserialize(buf),)


class ReadOnlyState(Generic[T, D]):
    """One state entry that can only be read.

    Args:
        ctx: The context of a virtual object or workflow, exclusive or shared.
        key: The entry's name.
        type_: The value's type; anything that pydantic knows.
        default: What `get` returns when there is no entry.
        default_factory: Makes that value; instead of ``default``.

    Raises:
        InvalidInput: The handler has no state.
    """

    @overload
    def __init__(
        self,
        ctx: StateContext,
        key: str,
        type_: type[T],
        *,
        default: D = None,  # type: ignore[assignment] # None is D's own default
    ) -> None: ...
    @overload
    def __init__(self, ctx: StateContext, key: str, type_: type[T], *, default_factory: Callable[[], D]) -> None: ...
    def __init__(
        self,
        ctx: StateContext,
        key: str,
        type_: type[T],
        *,
        default: Any = None,
        default_factory: Callable[[], Any] | None = None,
    ) -> None:
        if not _sdk.has_key(cast("restate.Context", ctx)):
            raise InvalidInput(
                f"state '{key}': {_sdk.handler_info(cast('restate.Context', ctx))} is a plain service and has no "
                "state; use a virtual object or a workflow",
                metadata={"state": key},
            )
        self._ctx = ctx
        self.key = key
        self._serde = serde_for(type_)
        self._entry_serde = _EntrySerde(self._serde)
        self._default = default
        self._default_factory = default_factory

    async def get(self) -> T | D:
        """Return the value, or the default when there is none; None without a default."""
        refuse_inside_run(f"state '{self.key}'")
        entry = await cast("restate.ObjectContext", self._ctx).get(self.key, serde=self._entry_serde)
        if entry is not None:
            return cast("T", entry[0])
        return cast("D", self._default if self._default_factory is None else self._default_factory())


class State(ReadOnlyState[T, D]):
    """One state entry; reading works everywhere, writing from handlers that may write.

    Args:
        ctx: The context of a virtual object or workflow.
        key: The entry's name.
        type_: The value's type; anything that pydantic knows.
        default: What `get` returns when there is no entry.
        default_factory: Makes that value; instead of ``default``.
    """

    async def set(self, value: T) -> None:
        """Write the value.

        A replay must write the same value: take times and random numbers from `Time` and `DeterministicHelpers`.

        Raises:
            ReadOnlyStateError: The handler is shared; terminal, 400.
        """
        _writable(self._ctx, "Set", self.key).set(self.key, value, serde=self._serde)

    async def clear(self) -> None:
        """Remove the entry.

        Raises:
            ReadOnlyStateError: The handler is shared; terminal, 400.
        """
        _writable(self._ctx, "Clear", self.key).clear(self.key)


class MutableState(State[T, D]):
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
    _writable(ctx, "ClearAll", "*").clear_all()


def _writable(ctx: Any, act: str, key: str) -> restate.ObjectContext:
    refuse_inside_run(f"state '{key}'")
    info = _sdk.handler_info(ctx)
    if not info.writes_state:
        raise ReadOnlyStateError(
            f"{act} called from read-only context: {info} is a shared handler, so it can't write state '{key}'; "
            "move the write to an exclusive handler",
            metadata={"handler": str(info), "state": key},
        )
    return cast("restate.ObjectContext", ctx)
