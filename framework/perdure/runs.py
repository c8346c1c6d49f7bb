"""Runs: side effects that are journaled once and retried by the engine.

The backoff is the engine's own and durable: between attempts nothing is held in this process, and a crash does not
start the count again.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Generic, TypeVar, overload

import restate
from restate.exceptions import RetryableError
from restate.serde import Serde

from perdure._runtime import sdk
from perdure._runtime.checks import check_types
from perdure._runtime.run_attempts import Companion, company_of
from perdure._runtime.run_scope import refuse_inside_run
from perdure._runtime.serdes import ENGINE_MESSAGE_LIMIT, TypedSerde, result_type, serde_for
from perdure._runtime.waiting import settle, until_done
from perdure.error_mapping import ErrorMapping, current_mapping, mapped_errors
from perdure.errors import CODE_KEY, Cancelled, ConfigurationError, PerdureTerminalError, RunExhausted, TerminalError
from perdure.observability.activities import current_activity
from perdure.observability.lifecycle import observe_run

T = TypeVar("T")

_ATTEMPT_FAILED = "run attempt failed: "
_SHORTEST = timedelta(milliseconds=1)


@dataclass(frozen=True)
class RunConfig:
    """How a run is named and retried.

    Args:
        name: The run's name in the journal.
        max_retries: Retries after the first attempt; None for no bound.
        initial_delay: Wait before the first retry; at least 1 ms, since the engine counts in milliseconds.
        max_delay: Longest wait between two attempts.
        backoff_factor: Each wait is this many times the one before; 1 or more.
        max_duration: No new attempt after this long since the first one; None for no bound.
        errors: What becomes of the exceptions of other libraries; what the handler's service says by default.

    Raises:
        ConfigurationError: A value out of range, or of another type.
    """

    name: str = ""
    max_retries: int | None = 3
    initial_delay: timedelta = timedelta(milliseconds=100)
    max_delay: timedelta = timedelta(seconds=30)
    backoff_factor: float = 2.0
    max_duration: timedelta | None = None
    errors: ErrorMapping | None = None

    def __post_init__(self) -> None:
        check_types(self)
        if self.max_retries is not None and self.max_retries < 0:
            raise ConfigurationError(f"RunConfig.max_retries must be 0 or more, or None; got {self.max_retries}")
        if not _SHORTEST <= self.initial_delay <= self.max_delay:
            raise ConfigurationError(
                f"RunConfig: 1 ms <= initial_delay <= max_delay; got {self.initial_delay} and {self.max_delay}"
            )
        if not 1 <= self.backoff_factor < math.inf:
            raise ConfigurationError(
                f"RunConfig.backoff_factor must be 1 or more, and finite; got {self.backoff_factor}"
            )
        if self.max_duration is not None and self.max_duration < _SHORTEST:
            raise ConfigurationError(f"RunConfig.max_duration must be 1 ms or more, or None; got {self.max_duration}")

    def named(self, name: str) -> RunConfig:
        """Return the same settings under another name."""
        return replace(self, name=name)

    def exhausted(self, cause: str) -> RunExhausted:
        """Return the error of a run that used up its attempts or its time."""
        spent = [] if self.max_retries is None else [f"{self.max_retries + 1} attempts"]
        if self.max_duration is not None:
            spent.append(f"{self.max_duration.total_seconds():g} s")
        bounds = " or ".join(spent) or "the invocation's own attempts"
        return RunExhausted(f"run exhausted retries ({bounds}) for {self.name}: {cause}", metadata={"run": self.name})

    def delay_after(self, failures: int) -> timedelta:
        """Return how long to wait after so many failures, as the engine does for a run that is alone."""
        try:
            return min(self.max_delay, self.initial_delay * self.backoff_factor ** (failures - 1))
        except OverflowError:
            return self.max_delay


class _AttemptFailedError(Exception):
    """Marks the failure of one attempt.

    It tells running out of attempts from the action's own terminal error: then the SDK keeps only ``repr`` of the last
    exception, under the status 500.
    """

    def __init__(self, cause: Exception) -> None:
        super().__init__(f"{_ATTEMPT_FAILED}{cause!r}")

    def __repr__(self) -> str:
        return str(self)


class _ResultSerde(Serde[T], Generic[T]):
    """Writes a run's result, or refuses one that the engine would not take: it would do the run again, and again."""

    def __init__(self, inner: TypedSerde[T], run: str) -> None:
        self._inner = inner
        self._run = run

    def serialize(self, obj: T | None) -> bytes:
        """Return the value as JSON."""
        written = self._inner.serialize(obj)
        if len(written) > ENGINE_MESSAGE_LIMIT:
            raise PerdureTerminalError(
                f"run '{self._run}': its result has {len(written):,} bytes, and the engine takes "
                f"{ENGINE_MESSAGE_LIMIT:,} in one message. Store it elsewhere inside the run, and return where",
                metadata={CODE_KEY: "too_large", "run": self._run},
            )
        return written

    def deserialize(self, buf: bytes) -> T | None:
        """Return the value."""
        return self._inner.deserialize(buf)


class RunFuture(Awaitable[T], Generic[T]):
    """A run that has been started; await it for its result.

    Args:
        future: The SDK's future, for `restate.select` and `restate.gather`. Take the result from this object: the SDK's
            future raises the SDK's own error when the attempts run out.
        config: The run's settings.
        companion: The run among those that go on at the same time.
    """

    def __init__(self, future: restate.RestateDurableFuture[T], config: RunConfig, companion: Companion) -> None:
        self.future = future
        self._config = config
        self._companion = companion

    async def settle(self) -> None:
        """After a cancel: wait until the action has come to its end, whatever further cancels say."""
        self._companion.hurry()
        await settle(self.future)

    def __await__(self) -> Generator[Any, Any, T]:
        refuse_inside_run(f"the future of run '{self._config.name}'")
        try:
            result = yield from self.future.__await__()
        except TerminalError as error:
            self._companion.leave()
            if error.message.startswith(_ATTEMPT_FAILED):
                self._companion.ended()  # given up by the engine, which tells nobody
                raise self._config.exhausted(error.message.removeprefix(_ATTEMPT_FAILED)) from error
            raise
        self._companion.leave()
        return result


@overload
def run_async(
    ctx: restate.Context,
    config: RunConfig | str,
    action: Callable[..., Awaitable[T]],
    /,
    *args: Any,
    returns: Any = None,
) -> RunFuture[T]: ...
@overload
def run_async(
    ctx: restate.Context, config: RunConfig | str, action: Callable[..., T], /, *args: Any, returns: Any = None
) -> RunFuture[T]: ...
def run_async(
    ctx: restate.Context, config: RunConfig | str, action: Callable[..., Any], /, *args: Any, returns: Any = None
) -> RunFuture[Any]:
    """Start a run that goes on together with others; the side effect happens when it is waited for.

    So wait for several at once, with `gather`, `fan_out` or `race`; awaited one after the other, they are done one
    after the other. One that is never waited for is never done. Each has its own attempts and waits, as its settings
    say. One that fails is tried again when those have ended that are being done meanwhile, so that it never interrupts
    them. A crash loses count; what was going on together then ends after as many attempts as all of it may have.

    Args:
        ctx: The handler's context.
        config: The run's settings, or its name for the default ones.
        action: What to do; a function (run in a thread) or a coroutine function. It must not use the context.
        args: The action's arguments.
        returns: The type of the result, when the action's signature doesn't say it.

    Returns:
        The run's future.

    Raises:
        ConfigurationError: The run has no name.
        PerdureTerminalError: The context was used inside another run.
    """
    settings = RunConfig(config) if isinstance(config, str) else config
    if not settings.name:
        raise ConfigurationError("a run needs a name: RunConfig(name) or RunConfig(...).named(name)")
    refuse_inside_run(f"run '{settings.name}'")
    sdk.guard(ctx)
    serde = _ResultSerde(serde_for(result_type(action) if returns is None else returns), settings.name)
    mapping = settings.errors or current_mapping()
    within = current_activity()

    options: restate.RunOptions[Any] = restate.RunOptions(
        serde=serde,
        max_attempts=None if settings.max_retries is None else settings.max_retries + 1,
        max_duration=settings.max_duration,
        initial_retry_interval=settings.initial_delay,
        max_retry_interval=settings.max_delay,
        retry_interval_factor=settings.backoff_factor,
    )
    companion = company_of(ctx).join(options)

    async def attempt() -> Any:
        try:
            async with companion.attempt():
                with observe_run(ctx, settings.name, within), mapped_errors(mapping):
                    result = await _perform(action, args)
        except TerminalError:
            companion.ended()
            raise
        except Exception as error:
            raise await _failure(settings, companion, error) from error
        companion.ended()
        return result

    future = ctx.run_typed(settings.name, attempt, options)
    companion.has_result = lambda: sdk.has_result(future)
    return RunFuture(future, settings, companion)


async def _failure(settings: RunConfig, companion: Companion, error: Exception) -> Exception:
    """Return what the SDK is to make of an attempt that failed."""
    message = f"{_ATTEMPT_FAILED}{error!r}"
    asked = error.retry_after if isinstance(error, RetryableError) else None
    status = error.status_code if isinstance(error, RetryableError) else 500
    failures = companion.failed()
    if companion.accompanied:
        if companion.spent(failures):
            companion.ended()
            return TerminalError(message, 500)
        again = await companion.wait_for_others(settings.delay_after(failures) if asked is None else asked)
        return RetryableError(message, status, again)
    if asked is not None:
        return RetryableError(message, status, asked)
    # A RetryableError that doesn't say when would lose the settings' delays in the SDK.
    return _AttemptFailedError(error)


async def _perform(action: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    if inspect.iscoroutinefunction(action) or inspect.iscoroutinefunction(
        getattr(action, "__call__", None)  # noqa: B004 - an object with an async __call__ is one too
    ):
        return await action(*args)
    result = await asyncio.to_thread(action, *args)
    return await result if inspect.isawaitable(result) else result  # lambda: coroutine()


@overload
async def run_with_retry(
    ctx: restate.Context,
    config: RunConfig | str,
    action: Callable[..., Awaitable[T]],
    /,
    *args: Any,
    returns: Any = None,
) -> T: ...
@overload
async def run_with_retry(
    ctx: restate.Context, config: RunConfig | str, action: Callable[..., T], /, *args: Any, returns: Any = None
) -> T: ...
async def run_with_retry(
    ctx: restate.Context, config: RunConfig | str, action: Callable[..., Any], /, *args: Any, returns: Any = None
) -> Any:
    """Do a side effect once, durably: retried with the engine's backoff, journaled when it succeeds.

    Args:
        ctx: The handler's context.
        config: The run's settings, or its name for the default ones.
        action: What to do; a function (run in a thread) or a coroutine function. It must not use the context.
        args: The action's arguments.
        returns: The type of the result, when the action's signature doesn't say it.

    Returns:
        What the action returned.

    Raises:
        TerminalError: The action raised it; not retried.
        RunExhausted: The attempts or the time ran out.
        Cancelled: This invocation was cancelled. A running action is let come to its end first, so that whatever undoes
            it can't be overtaken by it.
    """
    is_cancelled = False

    async def guarded() -> Any:
        # After a crash while settling, the replay meets the cancel first and would start the action anew.
        if is_cancelled:
            raise Cancelled("cancelled before the run started")
        return await _perform(action, args)

    future = run_async(ctx, config, guarded, returns=result_type(action) if returns is None else returns)
    try:
        await until_done(future.future, f"run '{config if isinstance(config, str) else config.name}'")
    except Cancelled:
        is_cancelled = True
        await future.settle()
        raise
    return await future
