"""Durable side effects: journaled once and retried by the engine.

The engine keeps the backoff, so no process holds anything between attempts, and a crash does not restart the count.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property
from typing import Any, Final, Generic, TypeVar, overload

import restate
from restate.exceptions import RetryableError
from restate.serde import Serde

from perdure._runtime import sdk
from perdure._runtime.checks import check_types
from perdure._runtime.concurrent_runs import MAX_ABORTED, GroupedRun, group_of
from perdure._runtime.outcomes import as_exception
from perdure._runtime.plain_text import display_name, text_of
from perdure._runtime.run_scope import refuse_inside_run
from perdure._runtime.serdes import TypedSerde, result_type, serde_for
from perdure._runtime.time_scale import scaled
from perdure._runtime.waiting import settle, until_done
from perdure.error_mapping import ErrorMapping, current_mapping, mapped_errors
from perdure.errors import (
    Aborted,
    Cancelled,
    ConfigurationError,
    InvalidInput,
    PerdureError,
    RunExhausted,
    TerminalError,
    reportable,
)
from perdure.observability.activities import current_activity
from perdure.observability.lifecycle import observe_run
from perdure.retry import SHORTEST, RetryPolicy, check_backoff

T = TypeVar("T")

RUN_DURATION: Final = timedelta(minutes=5)
"""Default time for which a run is retried: long enough for a restart or a failover of a dependency."""

LOST_ATTEMPTS_KEY: Final = "lost_attempts"
"""Metadata of `RunExhausted`: the number of attempts that ended with their process or connection, uncounted."""

_ABORTED_KEY: Final = "aborted_attempts"

_ATTEMPT_FAILED = "run attempt failed: "


@dataclass(frozen=True)
class RunConfig:
    """Name and retries of a run.

    Args:
        name: The run's name in the journal.
        max_retries: Retries after the first attempt; None, the default, for no limit.
        initial_delay: Wait before the first retry; at least 1 ms.
        max_delay: Longest wait between two attempts.
        backoff_factor: Growth of the wait from one attempt to the next; at least 1.
        max_duration: No retry is planned when this time has passed since the first attempt; None for no limit. Five
            minutes by default, or no limit if ``max_retries`` is given.
        errors: Translates exceptions of other libraries; by default as the handler's service does.

    Raises:
        ConfigurationError: A value is out of range or of another type.

    Example:
        RunConfig("charge", max_retries=3, max_delay=timedelta(seconds=5))
    """

    name: str = ""
    max_retries: int | None = None
    initial_delay: timedelta = timedelta(milliseconds=100)
    max_delay: timedelta = timedelta(seconds=10)
    backoff_factor: float = 2.0
    max_duration: timedelta | None = RUN_DURATION
    errors: ErrorMapping | None = None

    def __post_init__(self) -> None:
        check_types(self)
        if self.max_retries is not None and self.max_retries < 0:
            raise ConfigurationError(f"RunConfig.max_retries must be 0 or more, or None; got {self.max_retries}")
        check_backoff(
            "RunConfig",
            initial_delay=self.initial_delay,
            max_delay=self.max_delay,
            backoff_factor=self.backoff_factor,
            max_duration=self.max_duration,
        )
        if self.max_retries is not None and self.max_duration is RUN_DURATION:  # not given: the attempts are the limit
            object.__setattr__(self, "max_duration", None)

    @cached_property
    def retry(self) -> RetryPolicy:
        """The retry policy."""
        return RetryPolicy(
            initial_interval=self.initial_delay,
            factor=self.backoff_factor,
            max_interval=self.max_delay,
            max_attempts=None if self.max_retries is None else self.max_retries + 1,
            max_duration=self.max_duration,
        )

    def named(self, name: str) -> RunConfig:
        """Return the same settings under another name.

        Args:
            name: The name of the run.
        """
        return replace(self, name=name)

    def exhausted(self, cause: str, aborted: str | None = None) -> RunExhausted:
        """Return the error of a run whose attempts or time are used up, or that was aborted too often.

        Args:
            cause: The error of the last attempt.
            aborted: The number of aborted attempts, if these ended the run.
        """
        limits = [f"{aborted} aborted attempts"] if aborted else self._limits()
        limit = " or ".join(limits) or "the invocation's own attempts"
        return RunExhausted(f"run exhausted retries ({limit}) for {self.name}: {cause}", metadata={"run": self.name})

    def _limits(self) -> list[str]:
        limits = [] if self.max_retries is None else [f"{self.max_retries + 1} attempts"]
        if self.max_duration is not None:
            limits.append(f"{self.max_duration.total_seconds():g} s")
        return limits


class _AttemptFailedError(Exception):
    """The failure of one attempt.

    When the attempts are used up, the SDK keeps only ``repr`` of the last exception, with the status 500. The prefix
    distinguishes that case from a terminal error that the action raised.
    """

    def __init__(self, cause: Exception) -> None:
        # Perdure's own errors are sentences. The message of another error often makes no sense without its type.
        super().__init__(f"{_ATTEMPT_FAILED}{text_of(cause, str if isinstance(cause, PerdureError) else repr)}")

    def __repr__(self) -> str:
        return str(self)


class _ResultSerde(Serde[T], Generic[T]):
    """Writes a run's result; an error names the run."""

    def __init__(self, inner: TypedSerde[T], run: str) -> None:
        self._inner = inner
        self._run = run

    def serialize(self, obj: T | None) -> bytes:
        """Return the value as JSON."""
        try:
            return self._inner.write(obj, f"the result of run '{self._run}'")
        except BaseException as error:  # noqa: BLE001 - the SDK would not report it
            raise as_exception(error)  # noqa: B904 - the same error, or its cause is set

    def deserialize(self, buf: bytes) -> T | None:
        """Return the value."""
        return self._inner.deserialize(buf)


class RunFuture(Awaitable[T], Generic[T]):
    """A run that has been started; await it for its result.

    Args:
        future: The SDK's future, for `restate.select` and `restate.gather`. Take the result from this object instead:
            the SDK's future raises the SDK's error when the attempts are used up.
        config: The run's settings.
        member: The run in the group of concurrent runs.
    """

    def __init__(self, future: restate.RestateDurableFuture[T], config: RunConfig, member: GroupedRun) -> None:
        self.future = future
        self._config = config
        self._member = member

    def cancel(self) -> None:
        """Give a running action a few seconds to end, cancel it then, and start no other attempt."""
        self._member.action.cancel()

    async def settle(self, error: TerminalError) -> None:
        """Cancel the action as above and wait for its end, ignoring cancels of the invocation.

        Args:
            error: The error that ended the wait for the run.
        """
        if isinstance(error, sdk.WaitEndedByTimeout):
            await self._member.action.settle()
            return
        self.cancel()
        await settle(self.future)

    def __await__(self) -> Generator[Any, Any, T]:
        return self._result().__await__()

    async def _result(self) -> T:
        refuse_inside_run(f"the future of run '{self._config.name}'")
        try:
            await until_done(self.future, f"run '{self._config.name}'")
        except TerminalError as error:
            await settle_runs([self], error)
            raise
        try:
            result = await self.future
        except TerminalError as error:
            self._member.leave()
            if error.message.startswith(_ATTEMPT_FAILED):
                self._member.finish()  # exhausted in the engine, so no attempt has removed it
                metadata = error.metadata or {}
                cause = error.message.removeprefix(_ATTEMPT_FAILED)
                exhausted = self._config.exhausted(cause, metadata.get(_ABORTED_KEY))
                exhausted.metadata = {**(exhausted.metadata or {}), **metadata}
                raise exhausted from error
            raise
        self._member.leave()
        return result


async def settle_runs(runs: Sequence[RunFuture[Any]], error: TerminalError) -> None:
    """Cancel the actions of runs and wait for their ends, see `RunFuture.settle`.

    Args:
        runs: The runs.
        error: The error that ended the wait for them: a cancel, or the refusal of a wait.
    """
    for run in runs:
        run.cancel()
    for run in runs:
        await run.settle(error)


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
    """Start a run that is concurrent with others. The action starts when its future is awaited.

    Await several futures together, with `gather`, `fan_out` or `race`; awaited one after the other, the actions run one
    after the other. An action whose future is never awaited never runs. Retries are counted per run. A retry starts
    after the actions that are running have ended, so it does not interrupt them. Attempts that end with their process
    are not counted; a crash also resets the counts. A cancel of this invocation ends the actions as `run_with_retry`
    says, whichever of these functions waits for them.

    Args:
        ctx: The handler's context.
        config: The run's settings, or its name for the default settings.
        action: A function, which runs in a thread, or a coroutine function. It must not use the context.
        args: The action's arguments.
        returns: The type of the result, if the action's signature does not declare it.

    Returns:
        The run's future.

    Raises:
        InvalidInput: The run has no name, or an object of another type.
        PerdureTerminalError: The context was used inside another run, or no result of this type can be read back.

    Example:
        prices = [run_async(ctx, f"price of {flight}", fetch_price, flight) for flight in flights]
        cheapest = min(await gather(ctx, *prices))
    """
    settings = RunConfig(config) if isinstance(config, str) else config
    if not isinstance(settings, RunConfig):
        raise InvalidInput(f"a run takes its name or a RunConfig; got {type(settings).__name__}")
    if (name := display_name(settings.name)) != settings.name:
        settings = settings.named(name)
    if not settings.name:
        raise InvalidInput("a run needs a name: RunConfig(name) or RunConfig(...).named(name)")
    refuse_inside_run(f"run '{settings.name}'")
    sdk.guard(ctx)
    inner = serde_for(result_type(action) if returns is None else returns)
    inner.require_writable(f"the result of run '{settings.name}'")
    serde = _ResultSerde(inner, settings.name)
    mapping = settings.errors or current_mapping()
    parent = current_activity()
    options = settings.retry.for_runs(serde)
    member = group_of(ctx).join(settings.name, options)

    async def attempt() -> Any:
        try:
            async with member.attempt():
                with observe_run(ctx, settings.name, parent), mapped_errors(mapping):
                    result = await member.action.run(action, args)
        except Exception as error:
            text = text_of(error, repr)
            if member.action.cancel_is_late:
                # The end of this attempt would cut off the other actions, which end because of the cancel, too.
                delay = await member.wait_for_others(SHORTEST) if member.is_concurrent else SHORTEST
                raise RetryableError(f"{_ATTEMPT_FAILED}{text}", 500, delay) from reportable(error)
            if isinstance(error, TerminalError):
                member.finish()
                if (reported := reportable(error)) is not error:
                    raise reported from None
                raise
            if member.action.is_cancelled:  # the next attempt would be delayed
                member.finish()
                raise Cancelled(f"cancelled; the last attempt failed: {text}") from reportable(error)
            raise await _failure(settings, member, error) from reportable(error)
        member.finish()
        return result

    setattr(attempt, sdk.CONTAINED, True)
    member.is_repeated = sdk.is_replaying(ctx)
    future = ctx.run_typed(settings.name, attempt, options)
    member.has_result = lambda: sdk.has_result(future)
    return RunFuture(future, settings, member)


async def _failure(settings: RunConfig, member: GroupedRun, error: Exception) -> Exception:
    """Return the exception that reports a failed attempt to the SDK."""
    message = f"{_ATTEMPT_FAILED}{text_of(error, repr)}"
    retry_after = error.retry_after if isinstance(error, RetryableError) else None
    status = error.status_code if isinstance(error, RetryableError) else 500
    failures = member.fail(is_aborted=isinstance(error, Aborted))
    if member.is_exhausted(failures):
        facts = {_ABORTED_KEY: str(MAX_ABORTED)} if member.exceeds_aborted else {}
        if lost := member.lost_attempts(failures):
            facts[LOST_ATTEMPTS_KEY] = str(lost)
        member.finish()
        return TerminalError(message, 500, facts or None)
    if member.is_concurrent:
        delay = scaled(settings.retry.delay_after(failures)) if retry_after is None else retry_after
        return RetryableError(message, status, await member.wait_for_others(delay))
    if retry_after is not None:
        return RetryableError(message, status, retry_after)
    # A RetryableError without retry_after would make the SDK ignore the policy's delays.
    return _AttemptFailedError(error)


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
    """Run a side effect durably: the engine retries it and journals its result.

    The action runs at least once; give it an idempotency key that its receiver checks.

    Args:
        ctx: The handler's context.
        config: The run's settings, or its name for the default settings.
        action: A function, which runs in a thread, or a coroutine function. It must not use the context.
        args: The action's arguments.
        returns: The type of the result, if the action's signature does not declare it.

    Returns:
        The action's result.

    Raises:
        TerminalError: The action raised it; it is not retried.
        RunExhausted: The attempts or the time are used up.
        Cancelled: This invocation was cancelled. A running action has five seconds to end before its task is cancelled.
            A thread, or a task that ignores its cancel, may continue, and so overtake a compensation.

    Example:
        quote = await run_with_retry(ctx, RunConfig("quote", max_retries=3), fetch_quote, "PD100")
    """
    return await run_async(ctx, config, action, *args, returns=returns)
