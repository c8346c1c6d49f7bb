"""Typed clients for calling other handlers from inside a handler.

A client is made from a target or from the handler's own function; both give it its types. Calls inside a handler are
exactly-once by the journal, so they need no idempotency key; only a send that several invocations may make does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from datetime import timedelta
from typing import Any, Generic, TypeVar, cast, overload

import restate

from perdure import _sdk
from perdure.idempotency import check_idempotency_key
from perdure.policy import guardrail
from perdure.runs import refuse_inside_run
from perdure.serdes import TypedSerde, serde_for
from perdure.targets import Target, target_of

I = TypeVar("I")  # noqa: E741 - the input, as the SDK names it
O = TypeVar("O")  # noqa: E741 - the output
R = TypeVar("R")  # the output of a handler without input

NO_REQUEST: Any = None
"""The request of a handler that takes none."""


class CallFuture(Awaitable[O], Generic[O]):
    """A call that has been made; await it for its result.

    Args:
        future: The SDK's future of the raw response, for `restate.select` and `restate.wait_completed`.
        serde: The response's serde.
    """

    def __init__(self, future: restate.RestateDurableCallFuture[bytes], serde: TypedSerde[O]) -> None:
        self.future = future
        self._serde = serde

    def __await__(self) -> Generator[Any, Any, O]:
        refuse_inside_run("the future of a call")
        raw = yield from self.future.__await__()
        return cast("O", self._serde.deserialize(raw))

    async def invocation_id(self) -> str:
        """Return the id of the invocation that was called."""
        refuse_inside_run("the future of a call")
        return await self.future.invocation_id()


class SentInvocation:
    """An invocation that was started without waiting for it.

    Args:
        handle: The SDK's handle.
    """

    def __init__(self, handle: restate.SendHandle) -> None:
        self._handle = handle

    async def invocation_id(self) -> str:
        """Return its id. Asking costs a round trip to the engine, so don't where it isn't needed."""
        refuse_inside_run("the handle of a send")
        return await self._handle.invocation_id()


class _Client(Generic[I, O]):
    def __init__(self, ctx: restate.Context, target: Target[I, O], key: str | None) -> None:
        self._ctx = ctx
        self.target = target
        self._key = key
        self._input = serde_for(target.input)
        self._output = serde_for(target.output)

    async def call(self, request: I = NO_REQUEST) -> O:
        """Call the handler and wait for its response.

        Args:
            request: The request.

        Raises:
            TerminalError: The handler ended with one, or this invocation was cancelled.
        """
        return await self.call_async(request)

    def call_async(self, request: I = NO_REQUEST, *, idempotency_key: str | None = None) -> CallFuture[O]:
        """Call the handler without waiting.

        Args:
            request: The request.
            idempotency_key: Calls with the same key reach the same invocation. Rarely needed: see `clients`.

        Returns:
            The call's future.
        """
        self._check(idempotency_key, call=True)
        future = self._ctx.generic_call(
            self.target.service,
            self.target.handler,
            self._input.serialize(request),
            key=self._key,
            idempotency_key=idempotency_key,
        )
        return CallFuture(future, self._output)

    async def send(
        self, request: I = NO_REQUEST, *, delay: timedelta | None = None, idempotency_key: str | None = None
    ) -> SentInvocation:
        """Start the handler and do not wait for it.

        Args:
            request: The request.
            delay: Start it this much later; durable. Nothing or less, as of a moment that has passed, means now.
            idempotency_key: Sends with the same key start one invocation.

        Returns:
            What was started.
        """
        self._check(idempotency_key, call=False)
        handle = self._ctx.generic_send(
            self.target.service,
            self.target.handler,
            self._input.serialize(request),
            key=self._key,
            send_delay=None if delay is None else max(delay, timedelta(0)),  # the SDK can't send into the past
            idempotency_key=idempotency_key,
        )
        return SentInvocation(handle)

    def _check(self, idempotency_key: str | None, *, call: bool) -> None:
        refuse_inside_run(f"a client of {self.target}")
        if idempotency_key is None:
            return
        check_idempotency_key(idempotency_key)
        caller = _sdk.handler_info(self._ctx)
        if call and (caller.service, caller.handler) == (self.target.service, self.target.handler):
            guardrail(
                "RedundantIdempotencyKey",
                f"idempotency key '{idempotency_key}' is unnecessary for same-handler call to "
                f"{self.target.service}.{self.target.handler} "
                "(Restate journaling already provides exactly-once execution)",
                severity="info",
            )


class ServiceClient(_Client[I, O]):
    """Calls a handler of a service.

    Args:
        ctx: The caller's context.
        handler: A target, or the handler's function.
    """

    @overload
    def __init__(self, ctx: restate.Context, handler: Target[I, O]) -> None: ...
    @overload
    def __init__(self, ctx: restate.Context, handler: Callable[[Any, I], Awaitable[O]]) -> None: ...
    @overload
    def __init__(
        self: ServiceClient[None, R], ctx: restate.Context, handler: Callable[[Any], Awaitable[R]]
    ) -> None: ...
    def __init__(self, ctx: restate.Context, handler: Any) -> None:
        super().__init__(ctx, target_of(handler), None)


class ObjectClient(_Client[I, O]):
    """Calls a handler of a virtual object.

    Args:
        ctx: The caller's context.
        handler: A target, or the handler's function.
        key: The object's key.
    """

    @overload
    def __init__(self, ctx: restate.Context, handler: Target[I, O], key: str) -> None: ...
    @overload
    def __init__(self, ctx: restate.Context, handler: Callable[[Any, I], Awaitable[O]], key: str) -> None: ...
    @overload
    def __init__(
        self: ObjectClient[None, R], ctx: restate.Context, handler: Callable[[Any], Awaitable[R]], key: str
    ) -> None: ...
    def __init__(self, ctx: restate.Context, handler: Any, key: str) -> None:
        super().__init__(ctx, target_of(handler), key)


class WorkflowClient(_Client[I, O]):
    """Starts a workflow and calls its other handlers.

    Args:
        ctx: The caller's context.
        handler: A target, or the handler's function.
        key: The workflow's key; its main handler runs once for each key.
    """

    @overload
    def __init__(self, ctx: restate.Context, handler: Target[I, O], key: str) -> None: ...
    @overload
    def __init__(self, ctx: restate.Context, handler: Callable[[Any, I], Awaitable[O]], key: str) -> None: ...
    @overload
    def __init__(
        self: WorkflowClient[None, R], ctx: restate.Context, handler: Callable[[Any], Awaitable[R]], key: str
    ) -> None: ...
    def __init__(self, ctx: restate.Context, handler: Any, key: str) -> None:
        super().__init__(ctx, target_of(handler), key)

    async def submit(self, request: I = NO_REQUEST, *, delay: timedelta | None = None) -> str:
        """Start the workflow and do not wait for it.

        Args:
            request: The request.
            delay: Start it this much later; durable.

        Returns:
            The invocation's id, for `attach`.
        """
        return await (await self.send(request, delay=delay)).invocation_id()

    async def attach(self, invocation_id: str) -> O:
        """Wait for the result of a workflow that was submitted.

        Args:
            invocation_id: What `submit` returned.

        Raises:
            TerminalError: The workflow ended with one, or this invocation was cancelled.
        """
        refuse_inside_run(f"a client of {self.target}")
        return cast("O", await self._ctx.attach_invocation(invocation_id, serde=self._output))
