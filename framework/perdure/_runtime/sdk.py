"""The only module, with `perdure._runtime.sealing`, that touches parts of the restate SDK that are not public.

When an upgrade of the SDK breaks something, it breaks here, and tests/integration/test_sdk_private.py says what.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from random import Random
from typing import Any, Literal, cast
from uuid import UUID

import restate
from restate.handler import Handler, handler_from_callable
from restate.server_context import (
    DisconnectedException,
    ServerCallDurableFuture,
    ServerInvocationContext,
    update_restate_context_is_replaying,
)
from restate.vm import (
    AllCompletedUnresolvedFuture,
    FirstCompletedUnresolvedFuture,
    SingleUnresolvedFuture,
    UnresolvedFuture,
    VMWrapper,
)

from perdure._runtime.run_scope import inside_run, refuse_inside_run
from perdure._runtime.serdes import input_bytes
from perdure.errors import Cancelled, PerdureTerminalError, TerminalError, causes

HandlerKind = Literal["service", "exclusive", "shared", "workflow"]


@dataclass(frozen=True)
class HandlerInfo:
    """Which handler a context belongs to.

    Args:
        service: The service's name.
        handler: The handler's name.
        kind: ``service``, ``exclusive``, ``shared`` or ``workflow`` (a workflow's main handler).
    """

    service: str
    handler: str
    kind: HandlerKind

    @property
    def writes_state(self) -> bool:
        """Tell if the engine takes writes to state from this handler."""
        return self.kind in ("exclusive", "workflow")

    def __str__(self) -> str:
        return f"{self.service}/{self.handler}"


def handler_info(ctx: restate.Context) -> HandlerInfo:
    """Return which handler a context belongs to; the SDK's runtime class is the same for all of them."""
    handler = cast("ServerInvocationContext", ctx).handler
    return _handler_info(handler.service_tag.name, handler.name, handler.kind or "service")


@functools.lru_cache(maxsize=1024)
def _handler_info(service: str, handler: str, kind: HandlerKind) -> HandlerInfo:
    return HandlerInfo(service, handler, kind)


def invocation_of(ctx: restate.Context) -> tuple[str, str]:
    """Return the id of the invocation, and the key of its object or workflow; the key is empty for a plain service.

    Args:
        ctx: The handler's context.
    """
    invocation = cast("ServerInvocationContext", ctx).invocation  # `ctx.request()` makes a copy of everything else, too
    return invocation.invocation_id, invocation.key


def headers_of(ctx: restate.Context) -> Mapping[str, str]:
    """Return the headers of this attempt, and under them those that the invocation was started with.

    Args:
        ctx: The handler's context.
    """
    context: Any = ctx
    return {**dict(context.invocation.headers), **context.attempt_headers}


async def input_of(ctx: restate.Context) -> bytes | None:
    """Return the body that the invocation was started with, decrypted; None for a handler that takes no input.

    Args:
        ctx: The handler's context.
    """
    context = cast("ServerInvocationContext", ctx)
    if context.handler.arity < 2:
        return None
    if (read := input_bytes.get()) is not None:
        return read
    body = bytes(context.invocation.input_buffer)  # a handler of the SDK alone: perdure has not read its input
    return body if context.journal_codec is None else bytes(await context.journal_codec.decode(body))


def started_with(ctx: restate.Context, name: str) -> str | None:
    """Return a header that the invocation was started with, None when there is none.

    Args:
        ctx: The handler's context.
        name: The header, in lower case.
    """
    for each, value in cast("ServerInvocationContext", ctx).invocation.headers:
        if each == name or each.lower() == name:
            return value
    return None


def has_key(ctx: restate.Context) -> bool:
    """Tell if a context belongs to a virtual object or a workflow."""
    return handler_info(ctx).kind != "service"


def is_replaying(ctx: restate.Context) -> bool:
    """Tell if the handler is running through entries that its journal already has."""
    context: Any = ctx
    replaying: bool = context.vm.vm.is_replaying()  # asked for at each event, so not through the SDK's wrapper
    return replaying


def is_interruption(error: BaseException) -> bool:
    """Tell if an error is the SDK's sign that an attempt stops here, and not a failure of the handler's.

    A lost connection; suspensions and cancelled tasks are no `Exception` in the first place.
    """
    for cause in causes(error):  # a handler that catches everything may have wrapped it
        if isinstance(cause, TerminalError):
            return False
        if isinstance(cause, DisconnectedException) or not isinstance(cause, Exception):
            return True
    return False


# What the journal is asked for, and what a user calls it.
_COMMANDS = {
    "sys_get_state": "ctx.get",
    "sys_get_state_keys": "ctx.state_keys",
    "sys_set_state": "ctx.set",
    "sys_clear_state": "ctx.clear",
    "sys_clear_all_state": "ctx.clear_all",
    "sys_sleep": "ctx.sleep",
    "sys_call": "a call",
    "sys_send": "a send",
    "sys_run": "ctx.run",
    "sys_awakeable": "ctx.awakeable",
    "sys_resolve_awakeable": "ctx.resolve_awakeable",
    "sys_reject_awakeable": "ctx.reject_awakeable",
    "sys_signal": "ctx.signal",
    "sys_resolve_signal": "ctx.resolve_signal",
    "sys_reject_signal": "ctx.reject_signal",
    "sys_get_promise": "ctx.promise",
    "sys_peek_promise": "ctx.promise",
    "sys_complete_promise_success": "ctx.promise",
    "sys_complete_promise_failure": "ctx.promise",
    "sys_cancel": "ctx.cancel_invocation",
    "attach_invocation": "ctx.attach_invocation",
    "do_progress": "a durable future",
    "take_notification": "a durable future",
}


def _closed_inside_run(command: Callable[..., Any], what: str) -> Callable[..., Any]:
    @functools.wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        refuse_inside_run(what)
        return command(*args, **kwargs)

    return guarded


_guarded_classes: dict[type[VMWrapper], type[VMWrapper]] = {}


def _guarded(vm: type[VMWrapper]) -> type[VMWrapper]:
    """Return a class of the SDK's way to the journal that is closed inside a run."""
    if vm not in _guarded_classes:
        closed = {name: _closed_inside_run(getattr(vm, name), what) for name, what in _COMMANDS.items()}
        _guarded_classes[vm] = type(f"Guarded{vm.__name__}", (vm,), closed)
    return _guarded_classes[vm]


class _GuardedContext(ServerInvocationContext):
    """The SDK's context, which knows when it is used inside a run, and tells a cancel from an application's 409."""

    async def create_poll_or_cancel_coroutine(self, unresolved_future: UnresolvedFuture) -> None:
        # Every wait goes through here. What a future itself holds is raised elsewhere, so a terminal error is a cancel.
        try:
            await super().create_poll_or_cancel_coroutine(unresolved_future)
        except PerdureTerminalError:  # a refusal inside a run
            raise
        except TerminalError as error:
            raise Cancelled(error.message) from error

    def run(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return self._marked(name, super().run(name, *args, **kwargs))

    def run_typed(self, name: str, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override] # handed on as they are
        return self._marked(name, super().run_typed(name, *args, **kwargs))

    def _marked(self, name: str, future: Any) -> Any:
        action = self.run_coros_to_execute.get(future.handle)
        if action is not None:  # else it was replayed, and won't be done again
            self.run_coros_to_execute[future.handle] = functools.partial(_inside, name, action)
        return future

    def random(self) -> Random:
        refuse_inside_run("ctx.random")
        return super().random()

    def uuid(self) -> UUID:
        refuse_inside_run("ctx.uuid")
        return super().uuid()


async def _inside(name: str, action: Callable[[], Awaitable[None]]) -> None:
    with inside_run(name):
        await action()


def guard(ctx: restate.Context) -> None:
    """Make a context refuse to be used inside its own runs, and raise `Cancelled` for a cancel of its invocation.

    It costs two assignments: the context and its way to the journal become instances of guarded classes.

    Args:
        ctx: The context of a handler, perdure's or of the SDK alone.
    """
    context = cast("ServerInvocationContext", ctx)
    if type(context) is ServerInvocationContext:
        context.__class__ = _GuardedContext
        context.vm.__class__ = _guarded(type(context.vm))


def sdk_handler_types(function: Any) -> tuple[str, str, Any, Any] | None:
    """Return service, handler, input and output type of a function that the SDK's own decorators registered.

    Args:
        function: Any callable.

    Returns:
        None when the SDK doesn't know the function. A type is ``NoneType`` where the handler has no input or output,
        and ``Any`` where its signature doesn't say.
    """
    handler: Handler[Any, Any]
    try:
        handler = handler_from_callable(function)
    except (ValueError, TypeError):
        return None
    # Not from handler_io: that keeps only T of `T | None`, and an answer of None could not be read.
    signature = inspect.signature(function, eval_str=True)
    parameters = list(signature.parameters.values())
    input_type = type(None) if len(parameters) < 2 else _annotated(parameters[-1].annotation)
    return handler.service_tag.name, handler.name, input_type, _annotated(signature.return_annotation)


def _annotated(annotation: Any) -> Any:
    if annotation is inspect.Signature.empty:
        return Any
    return type(None) if annotation is None else annotation


def ask_again(call: restate.RestateDurableCallFuture[Any]) -> None:
    """Let the invocation id of a call be awaited again, after a cancel of the caller ended that wait.

    The SDK keeps the failure of the first wait, and there is no public way to begin another one.
    """
    if isinstance(call, ServerCallDurableFuture):
        call.invocation_id_future.task = None


def limit_attempts(options: restate.RunOptions[Any], max_attempts: int | None) -> None:
    """Change the attempts of a run that has been started: the SDK reads its options when the run's attempt ends."""
    options.max_attempts = max_attempts


def has_result(future: restate.RestateDurableFuture[Any]) -> bool:
    """Tell if a future has its result, without waiting for it.

    Args:
        future: The SDK's future.
    """
    return bool(cast("Any", future).is_completed())  # of the class that the SDK makes; its public one doesn't say


def entries_of(futures: Sequence[restate.RestateDurableFuture[Any]]) -> str:
    """Return a text for the journal's entries of futures; the same at each replay.

    Args:
        futures: Futures of one context.
    """
    return ",".join(str(getattr(future, "handle", "?")) for future in futures)


Wait = UnresolvedFuture
"""What somebody waits for: one entry of the journal, the first of several, or all of them."""

# Who takes the waits of the code that is running; None for the SDK itself.
waits_go_to: ContextVar[Callable[[Wait], Awaitable[None]] | None] = ContextVar("perdure_waits_go_to", default=None)


def divert_waits(ctx: restate.Context) -> None:
    """Let every wait on this context go to whom `waits_go_to` says. Every wait of the SDK comes through one method."""
    context = cast("ServerInvocationContext", ctx)
    if "create_poll_or_cancel_coroutine" in vars(context):
        return

    async def wait(what: Wait) -> None:
        taker = waits_go_to.get()
        if taker is None:
            await type(context).create_poll_or_cancel_coroutine(context, what)
        else:
            await taker(what)

    vars(context)["create_poll_or_cancel_coroutine"] = wait  # on this one context only


async def wait_for_first(ctx: restate.Context, waits: Sequence[Wait]) -> None:
    """Wait until at least one of the waits is over. A TerminalError that is raised is this invocation's own cancel."""
    await cast("ServerInvocationContext", ctx).create_poll_or_cancel_coroutine(
        FirstCompletedUnresolvedFuture(list(waits))
    )


def is_over(ctx: restate.Context, what: Wait) -> bool:
    """Tell if a wait has what it waits for. The same at each replay: the engine's news are taken in journal order."""
    match what:
        case SingleUnresolvedFuture(handle):
            return cast("ServerInvocationContext", ctx).vm.is_completed(handle)
        case FirstCompletedUnresolvedFuture(children):
            return any(is_over(ctx, child) for child in children)
        case AllCompletedUnresolvedFuture(children):
            return all(is_over(ctx, child) for child in children)


def note_replaying(ctx: restate.Context) -> None:
    """Tell the SDK's logging whether the code that is running replays; it keeps that for each `contextvars.Context`."""
    update_restate_context_is_replaying(cast("ServerInvocationContext", ctx).vm)
