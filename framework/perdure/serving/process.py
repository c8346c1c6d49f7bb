"""Lifecycle of a process that serves handlers."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager, nullcontext
from datetime import timedelta
from importlib import import_module
from logging import shutdown as shutdown_logging
from typing import Any, NoReturn, cast

from perdure._runtime.ports import ensure_free
from perdure.errors import ConfigurationError
from perdure.observability.log_levels import watch_levels
from perdure.observability.logging import LoggingConfig, configure_logging, get_logger
from perdure.observability.tracing_setup import configure_tracing, stop_tracing
from perdure.security.config import SecurityConfig
from perdure.serving.app import HasBackgroundWork, ReadinessCheck, Servable, ServiceApp, build_app, sdk_definitions
from perdure.serving.server import HttpVersion, Listener, listening
from perdure.serving.watchdog import DEFAULT_HANG_LIMIT, Watchdog, effective_limit

Lifespan = Callable[[], AbstractAsyncContextManager[Any]]

_DRAIN_GRACE = timedelta(seconds=10)
_GC_THRESHOLD = 20_000
_CLEAN_UP_TIMEOUT = timedelta(seconds=3)
_SPAN_EXPORT_TIMEOUT = timedelta(seconds=1)

log = get_logger(__name__)


def serve(
    *services: Servable,
    host: str = "127.0.0.1",
    port: int,
    host_platform: bool = False,
    http: HttpVersion = "auto",
    readiness: Mapping[str, ReadinessCheck] | None = None,
    lifespan: Lifespan | None = None,
    security: SecurityConfig | None = None,
    identity_keys: Iterable[str] = (),
    drain_grace: timedelta = _DRAIN_GRACE,
    hang_limit: timedelta | None = DEFAULT_HANG_LIMIT,
    logging: LoggingConfig | None = None,
) -> int:
    """Serve services until SIGTERM or Ctrl-C, then drain and stop. Blocks; call it from the main thread.

    The process ends within `drain_grace` plus 5 seconds after the signal, even if a side effect takes longer, and 2
    seconds later if the event loop is blocked. A second signal ends the grace time. OpenTelemetry's variables
    configure the export of spans, see `perdure.observability.tracing_setup`.

    Args:
        services: Services of Perdure or of the SDK.
        host: The address to bind. Without `security`, every client that reaches it can call handlers.
        port: The port to bind.
        host_platform: Serve rollbacks, dead letters, approvals, schedules, alerts and the reconcilers as well, with the
            settings of the environment. Sagas need them once per engine. For other settings, pass a
            `perdure.hosting.HostedPlatform` as a service instead.
        http: The HTTP versions without TLS: ``1``, ``2``, or ``auto`` for both.
        readiness: The checks of ``/ready`` by name. A check that raises makes the process unready.
        lifespan: A factory of an async context manager that is entered before the first request and exited after the
            last, for example to open and dispose a database engine.
        security: The security settings. None accepts all callers and logs a warning.
        identity_keys: Short for security settings that only verify request identity with these public keys.
        drain_grace: The time limit of running side effects after the signal.
        hang_limit: How long the event loop may be blocked, for example in a blocking call, before the process logs the
            stacks of its threads and ends with code 70. None turns this off, as debuggers need. The environment
            variable ``PERDURE_HANG_LIMIT`` (seconds, 0 for off) has precedence.
        logging: The logging settings; `LoggingConfig.from_environment` by default.

    Returns:
        The exit code 1 if the start fails; the log contains the reason. Otherwise the function does not return: it ends
        the process with code 0, 1 if the server fails, or 70 after a hang, without ``atexit`` hooks. Clean up in
        `lifespan`.

    Example:
        if __name__ == "__main__":
            raise SystemExit(serve(orders, stock, port=9080, host_platform=True))
    """
    configure_logging(logging)
    watch_levels()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        try:
            if host_platform:
                services = (*services, _platform_from_environment())
            configure_tracing(_process_name(services))
            _tune_garbage_collector()
            watchdog = Watchdog(effective_limit(hang_limit, os.environ), drain_grace)
            app = build_app(*services, readiness=readiness, security=security, identity_keys=identity_keys)
            runner.run(
                _serve(
                    app,
                    host=host,
                    port=port,
                    http=http,
                    lifespan=lifespan,
                    services=services,
                    drain_grace=drain_grace,
                    watchdog=watchdog,
                )
            )
        except ConfigurationError as error:
            log.error("can't serve", reason=str(error))  # noqa: TRY400 - a traceback adds nothing
            return 1
        except Exception:
            log.exception("serving failed")
            return exit_process(1)
        return exit_process(0)


def _platform_from_environment() -> Servable:
    from perdure.hosting import HostedPlatform  # noqa: PLC0415 - loads sagas and approvals, which others do not need

    return HostedPlatform.from_environment()


def _tune_garbage_collector() -> None:
    """Run the garbage collector less often, and never on imported modules.

    By default, it uses a tenth of the CPU of a service under load; with these settings a third of that.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD, 20, 20)


async def serve_async(
    *services: Servable,
    host: str = "127.0.0.1",
    port: int,
    http: HttpVersion = "auto",
    readiness: Mapping[str, ReadinessCheck] | None = None,
    lifespan: Lifespan | None = None,
    security: SecurityConfig | None = None,
    identity_keys: Iterable[str] = (),
    drain_grace: timedelta = _DRAIN_GRACE,
    stop: asyncio.Event | None = None,
) -> list[str]:
    """Serve services in the running event loop until a stop is requested, then drain and stop.

    Args:
        services: What to serve, see `serve`.
        host: See `serve`.
        port: See `serve`.
        http: See `serve`.
        readiness: See `serve`.
        lifespan: See `serve`.
        security: See `serve`.
        identity_keys: See `serve`.
        drain_grace: See `serve`.
        stop: An event that requests the stop. By default, SIGTERM and SIGINT do.

    Returns:
        The abandoned attempts, as ``Service/handler``. The engine retries them.

    Raises:
        ConfigurationError: The services cannot be served, or the port is taken.
        PerdureError: The server failed.
    """
    app = build_app(*services, readiness=readiness, security=security, identity_keys=identity_keys)
    return await _serve(
        app,
        host=host,
        port=port,
        http=http,
        lifespan=lifespan,
        services=services,
        drain_grace=drain_grace,
        watchdog=Watchdog(None, drain_grace),  # the process is the caller's
        stop=stop,
    )


async def _serve(
    app: ServiceApp,
    *,
    host: str,
    port: int,
    http: HttpVersion,
    lifespan: Lifespan | None,
    services: Iterable[object],
    drain_grace: timedelta,
    watchdog: Watchdog,
    stop: asyncio.Event | None = None,
) -> list[str]:
    ensure_free(host, port, "port")  # before the lifespan, which would have to be exited again
    stop_request = _StopRequest(stop)
    stack = AsyncExitStack()
    abandoned: list[str] = []
    with stop_request.on_signals() if stop is None else nullcontext(), watchdog.limiting_stop():
        try:
            if lifespan is not None:
                await stack.enter_async_context(lifespan())
            for service in services:
                if isinstance(service, HasBackgroundWork):
                    await stack.enter_async_context(service.watching())
            listener = await stack.enter_async_context(listening(app, host=host, port=port, http=http))
            stop_request.started()
            log.info("serving", url=listener.url, services=list(app.names), pid=os.getpid())
            with watchdog.watching_loop():
                await wait_for_stop(stop_request.requested, listener)
            abandoned = await _drain(app, drain_grace, stop_request.hurry)
        except asyncio.CancelledError:
            if not stop_request.interrupted_start():
                raise
            log.info("stop requested during the start")
        finally:
            await _close(stack)
        log.info("stopped")
    return abandoned


@contextmanager
def stop_on_signals() -> Iterator[asyncio.Event]:
    """Yield an event that SIGTERM and SIGINT set."""
    stop_request = _StopRequest(None)
    stop_request.started()
    with stop_request.on_signals():
        yield stop_request.requested


class _StopRequest:
    """Stop requested by signals or an event. A second signal sets `hurry`."""

    def __init__(self, requested: asyncio.Event | None) -> None:
        self.requested = requested or asyncio.Event()
        self.hurry = asyncio.Event()
        self._starting = asyncio.current_task()
        self._interrupted = False

    def started(self) -> None:
        """End the start phase, in which a signal cancels the start instead of draining."""
        self._starting = None

    def interrupted_start(self) -> bool:
        """Return whether a signal cancelled the start, and absorb that cancellation."""
        if self._interrupted and self._starting is not None:
            self._starting.uncancel()
        return self._interrupted

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Handle SIGTERM and SIGINT."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def _on_signal(self, number: signal.Signals) -> None:
        if self.requested.is_set():
            log.warning("second stop request: ending the grace time", signal=number.name)
            self.hurry.set()
            return
        log.info("stop requested", signal=number.name)
        self.requested.set()
        if self._starting is not None:
            self._interrupted = True
            self._starting.cancel()


async def wait_for_stop(requested: asyncio.Event, *listeners: Listener) -> None:
    """Wait until the event is set.

    Raises:
        PerdureError: A server failed.
    """
    tasks = {asyncio.create_task(requested.wait()), *(asyncio.create_task(item.failed()) for item in listeners)}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()


async def _drain(app: ServiceApp, grace: timedelta, hurry: asyncio.Event) -> list[str]:
    log.info("draining", open_attempts=app.drain.open_attempts, grace_seconds=grace.total_seconds())
    abandoned = await app.drain.drain(grace, hurry)
    if abandoned:
        log.warning(
            "attempts abandoned after the grace time; the engine retries them",
            attempts=dict(Counter(abandoned)),
            grace_seconds=grace.total_seconds(),
        )
    return abandoned


async def _close(stack: AsyncExitStack) -> None:
    """Stop the server and exit the lifespan, within a time limit."""
    try:
        async with asyncio.timeout(_CLEAN_UP_TIMEOUT.total_seconds()):
            await stack.aclose()
    except TimeoutError:
        log.error("clean-up timed out", seconds=_CLEAN_UP_TIMEOUT.total_seconds())  # noqa: TRY400


def _process_name(services: Iterable[Servable]) -> str:
    """Return the default name of the process in traces: that of its first service."""
    names = [definition.name for definition in sdk_definitions(services)]
    return names[0] if names else "perdure"


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return the factory of uvloop if installed: it uses up to a fifth less CPU per invocation."""
    try:
        return cast("Callable[[], asyncio.AbstractEventLoop]", import_module("uvloop").new_event_loop)
    except ModuleNotFoundError:
        return None


def exit_process(code: int) -> NoReturn:
    """End the process without finalising the interpreter.

    Finalisation would wait for the threads of abandoned side effects, and granian's remaining threads could abort the
    process when they return to a finalised interpreter.
    """
    stop_tracing(_SPAN_EXPORT_TIMEOUT)
    shutdown_logging()
    sys.stdout.flush()  # noqa: TID251 - prints nothing
    sys.stderr.flush()  # noqa: TID251 - prints nothing
    os._exit(code)
