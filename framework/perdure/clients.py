"""Typed clients for calling other handlers from inside a handler.

A client is created from the handler's function, or from a `Target` with the handler's name and types. The journal
records each call, so a replay does not repeat it. An idempotency key is needed only if several invocations may make the
same call or send.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, TypeVar, cast, overload

import restate
from restate.serde import Serde

from perdure._runtime import sdk
from perdure._runtime.invocation_ids import check_invocation_id
from perdure._runtime.run_scope import refuse_inside_run
from perdure._runtime.serdes import CheckedSerde, serde_for
from perdure._runtime.time_scale import scaled
from perdure._runtime.waiting import done_before
from perdure.errors import CODE_KEY, InvalidInput, PerdureTerminalError, TerminalError
from perdure.guardrails import guardrail
from perdure.idempotency import check_idempotency_key
from perdure.observability.activities import UNOBSERVED, Activity, ActivityKind, start_activity
from perdure.targets import KeyedTarget, ServiceContext, Target, check_key, target_of

I = TypeVar("I")  # noqa: E741 - the SDK's name for the input
O = TypeVar("O")  # noqa: E741 - the SDK's name for the output
R = TypeVar("R")  # the output of a handler without input
SI = TypeVar("SI")  # the input of a signal
SO = TypeVar("SO")  # its output

NO_REQUEST: Any = None
"""The request of a handler without input."""


class ResponseSerde(CheckedSerde[O], Generic[O]):
    """Reads a handler's response.

    A response that does not match its type is a terminal error: it is in the journal, so a retry would read it again.

    Args:
        target: The handler, for the message.
    """

    def __init__(self, target: Target[Any, O, Any]) -> None:
        super().__init__(target.output)
        self._target = target

    def unreadable(self, name: str, found: InvalidInput) -> Exception:
        """Return a terminal error that names the handler and the type."""
        return PerdureTerminalError(
            f"{self._target}: the response does not match {name}: {found.message}. Caller and callee must use the same "
            "type",
            metadata={CODE_KEY: "unreadable"},
        )


class CallFuture(Awaitable[O], Generic[O]):
    """A call that has been started; await it for its result.

    Args:
        future: The SDK's future of the raw response, for `restate.select` and `restate.wait_completed`.
        serde: The response's serde.
        activity: The call in traces and hooks; it ends when the result is first awaited.
    """

    def __init__(
        self, future: restate.RestateDurableCallFuture[bytes], serde: Serde[O], activity: Activity = UNOBSERVED
    ) -> None:
        self.future = future
        self._serde = serde
        self._activity = activity

    def __await__(self) -> Generator[Any, Any, O]:
        refuse_inside_run("the future of a call")
        try:
            raw = yield from self.future.__await__()
            response = cast("O", self._serde.deserialize(raw))
        except TerminalError as error:
            self._activity.end(error)
            raise
        self._activity.end()
        return response

    async def invocation_id(self) -> str:
        """Return the ID of the called invocation."""
        refuse_inside_run("the future of a call")
        return await self.future.invocation_id()

    async def cancel(self) -> None:
        """Request the cancellation of the called invocation and its calls. Await the call for its end."""
        refuse_inside_run("the future of a call")
        await self.future.cancel_invocation()


class SentInvocation:
    """An invocation that was started by a send.

    Args:
        handle: The SDK's handle.
    """

    def __init__(self, handle: restate.SendHandle) -> None:
        self._handle = handle

    async def invocation_id(self) -> str:
        """Return the ID of the invocation; this takes a round trip to the engine."""
        refuse_inside_run("the handle of a send")
        return await self._handle.invocation_id()

    async def cancel(self) -> None:
        """Request the cancellation of the invocation and its calls. A delayed invocation does not start."""
        refuse_inside_run("the handle of a send")
        await self._handle.cancel_invocation()


class _Client(Generic[I, O]):
    def __init__(self, ctx: restate.Context, target: Target[I, O, Any], key: str | None) -> None:
        self._ctx = ctx
        self.target = target
        self._key = check_key(target, key)
        self._input = serde_for(target.input)
        self._output = ResponseSerde(target)

    async def call(
        self,
        request: I = NO_REQUEST,
        *,
        idempotency_key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> O:
        """Call the handler and wait for its response.

        Args:
            request: The request.
            idempotency_key: Calls with the same key reach the same invocation. Rarely needed, see `clients`.
            headers: Headers for the handler.

        Raises:
            TerminalError: The handler's terminal error, a response of another type, or the cancel of this invocation.
        """
        return await self.call_async(request, idempotency_key=idempotency_key, headers=headers)

    def call_async(
        self,
        request: I = NO_REQUEST,
        *,
        idempotency_key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> CallFuture[O]:
        """Start a call without waiting for it.

        Args:
            request: The request.
            idempotency_key: Calls with the same key reach the same invocation. Rarely needed, see `clients`.
            headers: Headers for the handler.

        Returns:
            The call's future.

        Raises:
            PerdureTerminalError: The request would be read back changed, or not at all.
        """
        self._check(idempotency_key, call=True)
        content = self._input.write(request, f"the request of {self.target}")
        activity = start_activity(self._ctx, ActivityKind.CALL, str(self.target))
        try:
            future = self._ctx.generic_call(
                self.target.service,
                self.target.handler,
                content,
                key=self._key,
                idempotency_key=idempotency_key,
                headers=None if headers is None else dict(headers),
            )
        except TerminalError as error:  # refused before it was sent
            activity.end(error)
            raise
        return CallFuture(future, self._output, activity)

    async def send(
        self,
        request: I = NO_REQUEST,
        *,
        delay: timedelta | None = None,
        idempotency_key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> SentInvocation:
        """Start the handler without waiting for it.

        Args:
            request: The request.
            delay: Durable delay of the start; zero or less means none.
            idempotency_key: Sends with the same key start one invocation.
            headers: Headers for the handler.

        Returns:
            The invocation.
        """
        delay = None if delay is None else scaled(delay)
        return self.send_scaled(request, delay, idempotency_key=idempotency_key, headers=headers)

    def send_scaled(
        self,
        request: I,
        delay: timedelta | None,
        *,
        idempotency_key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> SentInvocation:
        """Start the handler after a delay that is already scaled, such as the time until a stored deadline.

        Args:
            request: The request.
            delay: Time until the start; None to start now.
            idempotency_key: A repeated send with this key has no effect.
            headers: Headers of the request.
        """
        self._check(idempotency_key, call=False)
        handle = self._ctx.generic_send(
            self.target.service,
            self.target.handler,
            self._input.write(request, f"the request of {self.target}"),
            key=self._key,
            send_delay=None if delay is None else max(delay, timedelta(0)),  # the SDK rejects a negative delay
            idempotency_key=idempotency_key,
            headers=None if headers is None else dict(headers),
        )
        return SentInvocation(handle)

    def _check(self, idempotency_key: str | None, *, call: bool) -> None:
        refuse_inside_run(f"a client of {self.target}")
        if idempotency_key is None:
            return
        check_idempotency_key(idempotency_key)
        caller = sdk.handler_info(self._ctx)
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

    Raises:
        InvalidInput: The handler belongs to a virtual object or workflow.

    Example:
        seats = await ServiceClient(ctx, flights.reserve).call(ReserveSeats(key=key, flight="PD100"))
    """

    @overload
    def __init__(self, ctx: restate.Context, handler: Target[I, O]) -> None: ...
    @overload
    def __init__(self, ctx: restate.Context, handler: Callable[[ServiceContext, I], Awaitable[O]]) -> None: ...
    @overload
    def __init__(
        self: ServiceClient[None, R], ctx: restate.Context, handler: Callable[[ServiceContext], Awaitable[R]]
    ) -> None: ...
    def __init__(self, ctx: restate.Context, handler: Any) -> None:
        super().__init__(ctx, target_of(handler), None)


class ObjectClient(_Client[I, O]):
    """Calls a handler of a virtual object.

    Args:
        ctx: The caller's context.
        handler: A target, or the handler's function.
        key: The object's key.

    Raises:
        InvalidInput: The key is empty.

    Example:
        balance = await ObjectClient(ctx, accounts.deposit, "acct-ada").call(Deposit(amount_minor=500))
    """

    @overload
    def __init__(self, ctx: restate.Context, handler: KeyedTarget[I, O], key: str) -> None: ...
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
        key: The workflow's key; its main handler runs once per key.

    Raises:
        InvalidInput: The key is empty.

    Example:
        await WorkflowClient(ctx, trips.book, trip_id).submit(trip)
    """

    @overload
    def __init__(self, ctx: restate.Context, handler: KeyedTarget[I, O], key: str) -> None: ...
    @overload
    def __init__(self, ctx: restate.Context, handler: Callable[[Any, I], Awaitable[O]], key: str) -> None: ...
    @overload
    def __init__(
        self: WorkflowClient[None, R], ctx: restate.Context, handler: Callable[[Any], Awaitable[R]], key: str
    ) -> None: ...
    def __init__(self, ctx: restate.Context, handler: Any, key: str) -> None:
        super().__init__(ctx, target_of(handler), key)
        self._workflow = key

    async def submit(self, request: I = NO_REQUEST, *, delay: timedelta | None = None) -> str:
        """Start the workflow without waiting for it. A workflow starts once per key.

        Args:
            request: The request.
            delay: Durable delay of the start.

        Returns:
            The invocation's ID, for `attach`; that of the existing invocation if the workflow was started before.
        """
        return await (await self.send(request, delay=delay)).invocation_id()

    async def attach(self, invocation_id: str) -> O:
        """Wait for the result of a submitted workflow.

        Args:
            invocation_id: The ID that `submit` returned.

        Raises:
            InvalidInput: The ID is malformed.
            TerminalError: The workflow's terminal error, or the cancel of this invocation.
        """
        return await self.attach_future(invocation_id)

    def attach_future(self, invocation_id: str) -> restate.RestateDurableFuture[O]:
        """Return the future of the result of a submitted workflow.

        Args:
            invocation_id: The ID that `submit` returned.

        Raises:
            InvalidInput: The ID is malformed.
        """
        refuse_inside_run(f"a client of {self.target}")
        return self._ctx.attach_invocation(check_invocation_id(invocation_id), serde=self._output)

    async def output(self, invocation_id: str, *, within: timedelta = timedelta(seconds=1)) -> WorkflowOutput[O]:
        """Return the result of a submitted workflow if it has ended.

        Args:
            invocation_id: The ID that `submit` returned.
            within: Durable timeout of the request. A handler can only attach to an invocation, so the result of an
                ended workflow takes a round trip.

        Raises:
            InvalidInput: The ID is malformed.
            TerminalError: The workflow's terminal error.
            Cancelled: This invocation was cancelled.
        """
        result = self.attach_future(invocation_id)
        limit = self._ctx.sleep(max(scaled(within), timedelta(0)), f"output of {self.target}")
        if not await done_before(result, limit, f"the output of {self.target}"):
            return WorkflowOutput(None, ready=False)
        return WorkflowOutput(await result, ready=True)

    @overload
    async def signal(self, handler: KeyedTarget[SI, SO] | Callable[[Any, SI], Awaitable[SO]], request: SI) -> SO: ...
    @overload
    async def signal(self, handler: KeyedTarget[None, SO] | Callable[[Any], Awaitable[SO]]) -> SO: ...
    async def signal(self, handler: Any, request: Any = NO_REQUEST) -> Any:
        """Call a shared handler of the same workflow, for example one that resolves a promise.

        Other services can complete a workflow's promises only through its handlers.

        Args:
            handler: The shared handler, a target or its function.
            request: The request.

        Returns:
            The handler's response.

        Raises:
            InvalidInput: The handler belongs to another workflow.
            TerminalError: The handler's terminal error, or the cancel of this invocation.
        """
        target = target_of(handler)
        if target.service != self.target.service:
            raise InvalidInput(
                f"a client of {self.target} cannot signal {target}: call a shared handler of the same workflow",
                metadata={"field": "handler"},
            )
        return await client_of(self._ctx, target, self._workflow).call(request)


def client_of(ctx: restate.Context, target: Target[I, O, Any], key: str | None) -> _Client[I, O]:
    """Return the client of a target that belongs to a service, virtual object or workflow.

    Raises:
        InvalidInput: The key of a virtual object or workflow is missing or empty.
    """
    return _Client(ctx, target, key)


@dataclass(frozen=True)
class WorkflowOutput(Generic[O]):
    """The result of a workflow, if it has ended.

    Args:
        value: The result; None before the end.
        ready: True when the workflow has ended.
    """

    value: O | None
    ready: bool
