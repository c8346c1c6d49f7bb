"""Adapter for private parts of the Restate SDK, used by a few modules of `_runtime` only.

An upgrade of the SDK that changes one of them fails the test in the last column (U: tests/unit, I: tests/integration).

| Private part                           | Purpose                               | Test                      |
|----------------------------------------|---------------------------------------|---------------------------|
| `ServerInvocationContext.handler`      | handler and kind of a context         | I/test_sdk_private        |
| `.invocation`, `.attempt_headers`      | ID, key, headers, input               | I/test_callers            |
| `.journal_codec`                       | decrypted input                       | I/test_security_codec     |
| `.vm.vm.is_replaying`                  | logs and metrics once per event       | I/test_sdk_private        |
| `.create_poll_or_cancel_coroutine`     | `Cancelled`, coroutines               | I/test_concurrency_waits  |
| `.receive._http_input_closed`          | cancels that cannot be delivered      | I/test_user_code_cancel   |
| `.request_finished_event`              | waits that the attempt's end cancels  | I/test_user_code          |
| `.run_coros_to_execute`                | errors for use inside a run           | I/test_context_inside_run |
| `.create_run_coroutine`                | errors of the SDK's own runs          | I/test_user_code          |
| `VMWrapper` and its methods            | the same; encryption; sizes; texts    | U/_runtime/test_sdk       |
| `UnresolvedFuture` and its classes     | waits of concurrent coroutines        | U/_runtime/test_branches  |
| `update_restate_context_is_replaying`  | the SDK's logging in coroutines       | I/test_concurrency        |
| `ServerCallDurableFuture`'s ID future  | invocation ID after a cancel          | I/test_sdk_private        |
| `handle`, `is_completed` of futures    | journal index, result without waiting | I/test_runs_together      |
| `RunOptions` read when an attempt ends | limit of concurrent runs              | I/test_runs_together      |
| `handler_from_callable`                | targets of the SDK's own handlers     | I/test_sdk_private        |
| signal handling of the SDK's app       | the server stops on SIGTERM           | I/test_serving_stop       |
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from random import Random
from typing import Any, Final, Literal, cast
from uuid import UUID

import restate
from restate.extensions import current_context
from restate.handler import Handler, handler_from_callable
from restate.server_context import (
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

from perdure._runtime import engine_retries
from perdure._runtime.asgi import ASGIApp, Message
from perdure._runtime.engine_texts import CleanTexts
from perdure._runtime.executions import identify
from perdure._runtime.failures import contained
from perdure._runtime.message_sizes import MeasuredVM, check_message, engine_limits
from perdure._runtime.run_scope import inside_run, refuse_inside_run
from perdure._runtime.serdes import input_bytes
from perdure.errors import (
    Cancelled,
    ConfigurationError,
    PerdureError,
    PerdureTerminalError,
    TerminalError,
)

SAGA_HEADER: Final = "x-perdure-saga"
"""Header of the calls of a saga's steps and compensations: the saga's ID."""

HandlerKind = Literal["service", "exclusive", "shared", "workflow"]


@dataclass(frozen=True)
class HandlerInfo:
    """The handler of a context. The kind ``workflow`` is a workflow's main handler."""

    service: str
    handler: str
    kind: HandlerKind

    @property
    def writes_state(self) -> bool:
        """Return whether the engine accepts writes to state from this handler."""
        return self.kind in ("exclusive", "workflow")

    def __str__(self) -> str:
        return f"{self.service}/{self.handler}"


def handler_info(ctx: restate.Context) -> HandlerInfo:
    """Return the handler of a context."""
    handler = cast("ServerInvocationContext", ctx).handler
    return _handler_info(handler.service_tag.name, handler.name, handler.kind or "service")


@functools.lru_cache(maxsize=1024)
def _handler_info(service: str, handler: str, kind: HandlerKind) -> HandlerInfo:
    return HandlerInfo(service, handler, kind)


def invocation_of(ctx: restate.Context) -> tuple[str, str]:
    """Return the invocation's ID and key; the key of a service is empty."""
    invocation = cast("ServerInvocationContext", ctx).invocation  # `ctx.request()` would copy the whole request
    return invocation.invocation_id, invocation.key


def execution_of(ctx: restate.Context) -> str:
    """Return the ID of a context's execution, unique in this process and equal for its attempts."""
    return identify(invocation_of(ctx)[0], engine_retries.current.get())


def headers_of(ctx: restate.Context) -> Mapping[str, str]:
    """Return the headers of the invocation, overridden by those of this attempt."""
    context: Any = ctx
    return {**dict(context.invocation.headers), **context.attempt_headers}


async def input_of(ctx: restate.Context) -> bytes | None:
    """Return the decrypted body of the request; None for a handler without input."""
    context = cast("ServerInvocationContext", ctx)
    if context.handler.arity < 2:
        return None
    if (body := input_bytes.get()) is not None:
        return body
    body = bytes(context.invocation.input_buffer)  # a handler of the SDK alone, whose input Perdure has not read
    return body if context.journal_codec is None else bytes(await context.journal_codec.decode(body))


def has_body(ctx: restate.Context) -> bool:
    """Return whether the body of the request is a value other than null."""
    return cast("ServerInvocationContext", ctx).invocation.input_buffer not in (b"", b"null")


def initial_header(ctx: restate.Context, name: str) -> str | None:
    """Return a header of the invocation, given in lower case, or None."""
    for header, value in cast("ServerInvocationContext", ctx).invocation.headers:
        if header == name or header.lower() == name:
            return value
    return None


def has_key(ctx: restate.Context) -> bool:
    """Return whether a context belongs to a virtual object or a workflow."""
    return handler_info(ctx).kind != "service"


def is_replaying(ctx: restate.Context) -> bool:
    """Return whether the handler is replaying its journal."""
    context: Any = ctx
    replaying: bool = context.vm.vm.is_replaying()  # called for each event: the SDK's wrapper would be slower
    return replaying


# Operations of the journal that are refused inside a run and in other tasks, and their names for users.
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


_WAITS = ("do_progress", "take_notification")  # the SDK waits in tasks of its own

_NOT_DETERMINISTIC = (
    "A replay could not repeat that. Use perdure's gather, fan_out or race for operations that call_async or run_async "
    "started, and map_concurrent or parallel for several steps at once. Limit a wait by the timeout of a step, race "
    "with ctx.sleep, race_awakeable_with_timeout or race_promise_with_timeout"
)


class WaitEndedByTimeout(PerdureTerminalError):
    """asyncio ended a durable wait. A replay would not end it, so the attempt must end without another wait."""

    code = "not_deterministic"


@dataclass(eq=False)
class Owner:
    """The task that may use a context: that of the handler's code while it runs, otherwise the SDK's."""

    task: asyncio.Task[Any] | None
    invocation_id: str = ""
    waits: bool = False
    """Whether a durable wait would receive a cancel of the invocation."""
    ends: bool = False
    """Whether the server cancels the task, so that the attempt ends."""
    refusal: PerdureTerminalError | None = None
    """The last refusal of another task."""

    def check(self, operation: str) -> None:
        """Raise a terminal error if the current task or thread must not use the context."""
        task = _current_task()
        if isinstance(self.refusal, WaitEndedByTimeout):
            raise self.refusal
        if task is not self.task:
            used_in = "thread" if task is None else "task"
            raise self.refuse(
                f"{operation} was used in another {used_in} than the handler's, for example by asyncio.create_task, "
                "TaskGroup, gather, wait, wait_for, shield or as_completed"
            )

    def check_wait(self) -> None:
        """Do the same for a wait, which may be in the task of an SDK's future that the handler's task awaits."""
        task = _current_task()
        awaits_it = getattr(self.task, "_fut_waiter", None) is task
        if isinstance(self.refusal, WaitEndedByTimeout) or (task is not self.task and not awaits_it):
            self.check("a durable future")

    def refuse(self, problem: str) -> PerdureTerminalError:
        """Return the terminal error for a use of the context that a replay could not repeat."""
        self.refusal = PerdureTerminalError(f"{problem}. {_NOT_DETERMINISTIC}", metadata={"code": "not_deterministic"})
        return self.refusal

    def end_by_timeout(self) -> PerdureTerminalError:
        """Return the terminal error for a durable wait that asyncio ended. It also refuses every further operation."""
        self.refusal = WaitEndedByTimeout(
            f"asyncio.timeout, wait_for or a cancel of the task ended a durable wait. {_NOT_DETERMINISTIC}"
        )
        return self.refusal


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # in a thread
        return None


def _checked(command: Callable[..., Any], operation: str) -> Callable[..., Any]:
    waits = command.__name__ in _WAITS

    @functools.wraps(command)
    def guarded(vm: Any, *args: Any, **kwargs: Any) -> Any:
        refuse_inside_run(operation)
        if not waits:
            vm.perdure_owner.check(operation)
        return command(vm, *args, **kwargs)

    return guarded


_guarded_classes: dict[type[VMWrapper], type[VMWrapper]] = {}


def _guarded(vm: type[VMWrapper]) -> type[VMWrapper]:
    """Return a subclass of a state machine that refuses misplaced operations and texts that it cannot store."""
    if vm not in _guarded_classes:
        clean = type(f"Clean{vm.__name__}", (CleanTexts, vm), {})
        methods = {name: _checked(getattr(clean, name), operation) for name, operation in _COMMANDS.items()}
        _guarded_classes[vm] = type(f"Guarded{vm.__name__}", (clean,), methods)
    return _guarded_classes[vm]


CONTAINED: Final = "perdure_contained"
"""Attribute of an action that raises no exception other than an `Exception`."""


@dataclass(frozen=True)
class Interruption:
    """A timer that interrupts the waits of a handler once.

    Args:
        timer: The durable timer, the first command of the handler.
        interrupts: Returns whether it would interrupt the current wait.
        fired: Returns the error to raise in the wait, or None to let it continue.
    """

    timer: restate.RestateDurableSleepFuture
    interrupts: Callable[[], bool]
    fired: Callable[[], Cancelled | None]


class _GuardedContext(ServerInvocationContext):
    """The SDK's context.

    Refuses use inside a run and in other tasks, and raises `Cancelled` for a cancel of its invocation.
    """

    perdure_owner: Owner
    perdure_interruption: Interruption | None = None
    perdure_cancelled: bool = False

    async def create_poll_or_cancel_coroutine(self, unresolved_future: UnresolvedFuture) -> None:
        # All waits pass here. The terminal error of a future is raised elsewhere, so one raised here is a cancel.
        owner = self.perdure_owner
        refuse_inside_run("a durable future")
        owner.check_wait()
        owner.waits = True
        try:
            await self._wait(unresolved_future)
        except PerdureTerminalError:  # used inside a run, or interrupted
            raise
        except TerminalError as error:
            self.perdure_interruption, self.perdure_cancelled = None, True
            raise Cancelled(error.message) from error
        except asyncio.CancelledError:
            if owner.ends or self.request_finished_event.is_set():
                raise
            raise owner.end_by_timeout() from None
        finally:
            owner.waits = False

    async def _wait(self, wait: UnresolvedFuture) -> None:
        interruption = self.perdure_interruption
        if interruption is not None:
            timer = SingleUnresolvedFuture(cast("Any", interruption.timer).handle)
            await super().create_poll_or_cancel_coroutine(FirstCompletedUnresolvedFuture([wait, timer]))
            # The journal orders the timer and the awaited results, so that a replay decides alike.
            if is_over(cast("restate.Context", self), wait):
                return
            self.perdure_interruption = None
            if (error := interruption.fired()) is not None:
                raise error
        await super().create_poll_or_cancel_coroutine(wait)

    def run(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return self._marked(name, super().run(name, *args, **kwargs))

    def run_typed(self, name: str, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override] # passed on unchanged
        return self._marked(name, super().run_typed(name, *args, **kwargs))

    def _marked(self, name: str, future: Any) -> Any:
        action = self.run_coros_to_execute.get(future.handle)
        if action is not None:  # None when the result was replayed
            context = contextvars.copy_context()
            self.run_coros_to_execute[future.handle] = functools.partial(_inside, name, action, context)
        return future

    async def create_run_coroutine(self, handle: int, action: Any, *args: Any, **kwargs: Any) -> None:
        if not hasattr(getattr(action, "func", action), CONTAINED):
            action = functools.partial(contained, action)
        await super().create_run_coroutine(handle, action, *args, **kwargs)

    def random(self) -> Random:
        refuse_inside_run("ctx.random")
        return super().random()

    def uuid(self) -> UUID:
        refuse_inside_run("ctx.uuid")
        return super().uuid()


async def _inside(name: str, action: Callable[[], Awaitable[None]], context: contextvars.Context) -> None:
    # The SDK starts the action in the context of the code that waits: that of the scheduler, for `map_concurrent`.
    for variable, value in context.items():
        variable.set(value)
    with inside_run(name):
        await action()


def guard(ctx: restate.Context) -> None:
    """Make a context refuse use inside its own runs and in other tasks than the current one.

    It also raises `Cancelled` for a cancel of its invocation.

    Raises:
        PerdureError: The context has an unknown class; the SDK's version is not supported.
    """
    context = cast("ServerInvocationContext", ctx)
    if type(context) is _GuardedContext:
        return
    if type(context) is not ServerInvocationContext or not isinstance(context.vm, VMWrapper):
        raise PerdureError(
            f"cannot guard a context of class {type(context).__qualname__}: this version of restate-sdk is not "
            "supported, see docs/reference/support.md"
        )
    if type(context.vm) is VMWrapper:
        context.vm.__class__ = MeasuredVM
    context.vm.__class__ = _guarded(type(context.vm))
    is_step = initial_header(ctx, SAGA_HEADER) is not None
    _measured(ctx).measure(len(context.invocation.input_buffer), engine_limits().step_result if is_step else None)
    context.__class__ = _GuardedContext
    _set_owner(context, Owner(_current_task()))
    execution_of(ctx)  # of every attempt, since the first one shows that the execution is new


def interrupt_waits(ctx: restate.Context, interruption: Interruption | None) -> None:
    """Let a timer interrupt the next wait of a handler, or the one it is in; None revokes that."""
    guard(ctx)
    cast("_GuardedContext", ctx).perdure_interruption = interruption


def can_be_interrupted(ctx: restate.Context) -> bool:
    """Return whether a timer would interrupt the current wait of a handler."""
    interruption: Interruption | None = getattr(ctx, "perdure_interruption", None)
    return interruption is not None and interruption.interrupts()


def was_cancelled(ctx: restate.Context) -> bool:
    """Return whether a wait of this handler has received a cancel, even if its error was caught."""
    return cast("_GuardedContext", ctx).perdure_cancelled


def _set_owner(context: Any, owner: Owner) -> None:
    context.perdure_owner = context.vm.perdure_owner = owner


@contextmanager
def owned_by(task: asyncio.Task[Any]) -> Iterator[Owner]:
    """Let a task use the context of the current handler, if it is guarded, instead of the current task."""
    owner = Owner(task)
    try:
        context: Any = current_context()
    except LookupError:  # no handler
        context = None
    if type(context) is not _GuardedContext:
        yield owner
        return
    owner.invocation_id = context.invocation.invocation_id
    previous = context.perdure_owner
    _set_owner(context, owner)
    try:
        yield owner
    finally:
        if not owner.ends:  # otherwise the task continues until it is cancelled
            _set_owner(context, previous)
            mark_replaying(context)  # the task has its own context variables


def refuse_other_task(ctx: restate.Context, operation: str) -> None:
    """Raise a terminal error if the current task or thread must not use a guarded context."""
    owner: Owner = cast("Any", ctx).perdure_owner
    owner.check(operation)


def refuse_task(ctx: restate.Context) -> PerdureTerminalError:
    """Return the terminal error for a durable wait in a task that a concurrent coroutine has started."""
    owner: Owner = cast("Any", ctx).perdure_owner
    return owner.refuse("a durable future was awaited in another task than that of the concurrent coroutine")


def check_answer(ctx: restate.Context, answer: bytes) -> None:
    """Raise `TooLarge` if the engine or the saga that called the handler would not accept an answer."""
    vm = _measured(ctx)
    check_message(f"the answer of {handler_info(ctx)}", vm.answer_size(answer), vm.answer_limit)


def _measured(ctx: restate.Context) -> MeasuredVM:
    return cast("MeasuredVM", cast("ServerInvocationContext", ctx).vm)


@contextmanager
def step_budget(ctx: restate.Context, step: str) -> Iterator[None]:
    """Record or start a step in the block, or raise `TooLarge` if its result might not fit into the invocation."""
    guard(ctx)
    vm = _measured(ctx)
    vm.in_step = step
    try:
        yield
    finally:
        vm.in_step = None


def sdk_handler_types(function: Any) -> tuple[str, str, str, Any, Any] | None:
    """Return kind and name of the service, handler, input and output type of a handler of the SDK's decorators.

    None for other callables. The kinds are ``service``, ``object`` and ``workflow``.

    A missing input or output has the type ``NoneType``, a missing annotation means ``Any``.
    """
    handler: Handler[Any, Any]
    try:
        handler = handler_from_callable(function)
    except (ValueError, TypeError):
        return None
    # handler_io would reduce `T | None` to T, and a response of None could not be read.
    signature = inspect.signature(function, eval_str=True)
    parameters = list(signature.parameters.values())
    input_type = type(None) if len(parameters) < 2 else _annotated(parameters[-1].annotation)
    tag = handler.service_tag
    return tag.kind, tag.name, handler.name, input_type, _annotated(signature.return_annotation)


def _annotated(annotation: Any) -> Any:
    if annotation is inspect.Signature.empty:
        return Any
    return type(None) if annotation is None else annotation


def retry_invocation_id(call: restate.RestateDurableCallFuture[Any]) -> None:
    """Permit another wait for a call's invocation ID after a cancel: the SDK caches the failure of the first wait."""
    if isinstance(call, ServerCallDurableFuture):
        call.invocation_id_future.task = None


def input_closed(ctx: restate.Context) -> bool:
    """Return whether the engine can send nothing more to this attempt, such as a cancel."""
    return bool(cast("Any", ctx).receive._http_input_closed.is_set())


def limit_attempts(options: restate.RunOptions[Any], max_attempts: int | None) -> None:
    """Change the attempts of a run that has been started: the SDK reads its options when the run's attempt ends."""
    options.max_attempts = max_attempts


def has_result(future: restate.RestateDurableFuture[Any]) -> bool:
    """Return whether a future has its result, without waiting for it."""
    return bool(cast("Any", future).is_completed())  # not declared by the public class


def journal_handles(futures: Sequence[restate.RestateDurableFuture[Any]]) -> str:
    """Return the journal indexes of futures as text, the same at every replay."""
    return ",".join(str(getattr(future, "handle", "?")) for future in futures)


Wait = UnresolvedFuture
"""A wait for one journal entry, for the first of several, or for all of them."""

# Receives the waits of the running code; None for the SDK itself.
wait_interceptor: ContextVar[Callable[[Wait], Awaitable[None]] | None] = ContextVar("perdure_waits_go_to", default=None)


def intercept_waits(ctx: restate.Context) -> None:
    """Pass every wait on this context to the current `wait_interceptor`."""
    context = cast("ServerInvocationContext", ctx)
    if "create_poll_or_cancel_coroutine" in vars(context):
        return

    async def intercept(wait: Wait) -> None:
        interceptor = wait_interceptor.get()
        if interceptor is None:
            await type(context).create_poll_or_cancel_coroutine(context, wait)
        else:
            await interceptor(wait)

    vars(context)["create_poll_or_cancel_coroutine"] = intercept


async def wait_for_first(ctx: restate.Context, waits: Sequence[Wait]) -> None:
    """Wait until at least one of the waits is over. A TerminalError is the cancel of this invocation."""
    await cast("ServerInvocationContext", ctx).create_poll_or_cancel_coroutine(
        FirstCompletedUnresolvedFuture(list(waits))
    )


def is_over(ctx: restate.Context, wait: Wait) -> bool:
    """Return whether a wait is over. Deterministic, because notifications arrive in the order of the journal."""
    match wait:
        case SingleUnresolvedFuture(handle):
            return cast("ServerInvocationContext", ctx).vm.is_completed(handle)
        case FirstCompletedUnresolvedFuture(children):
            return any(is_over(ctx, child) for child in children)
        case AllCompletedUnresolvedFuture(children):
            return all(is_over(ctx, child) for child in children)


def mark_replaying(ctx: restate.Context) -> None:
    """Set the SDK's replay flag for logging, which exists per `contextvars.Context`."""
    update_restate_context_is_replaying(cast("ServerInvocationContext", ctx).vm)


def build_asgi_app(
    definitions: Sequence[restate.Service | restate.VirtualObject | restate.Workflow],
    codec: restate.JournalValueCodec | None,
) -> ASGIApp:
    """Return the SDK's app, without its handling of SIGTERM.

    The app replaces the server's signal handler in its first call, except in a thread that cannot handle signals. So
    the first call is made here, in another thread.
    """
    app = cast("ASGIApp", restate.app(definitions, journal_value_codec=codec))
    failures: list[BaseException] = []

    def first_call() -> None:
        try:
            asyncio.run(_request_health(app))
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            failures.append(error)

    thread = threading.Thread(target=first_call, name="perdure-first-call")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return app


async def _request_health(app: ASGIApp) -> None:
    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] != 200:
            raise ConfigurationError(f"the SDK's app answers its health check with {message['status']}")

    scope: dict[str, Any] = {"type": "http", "http_version": "2", "method": "GET", "path": "/health", "headers": []}
    await app(scope, receive, send)
