"""A process that serves handlers, from start to a clean end."""

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
from perdure.serving.app import ReadinessCheck, Servable, ServiceApp, build_app, sdk_definitions
from perdure.serving.server import HttpVersion, Listener, listening

__all__ = ["exit_process", "loop_factory", "serve", "serve_async", "stop_on_signals"]

Lifespan = Callable[[], AbstractAsyncContextManager[Any]]

_GRACE = timedelta(seconds=10)
_NEW_OBJECTS = 20_000
_CLEAN_UP = timedelta(seconds=3)
_LAST_SPANS = timedelta(seconds=1)

log = get_logger(__name__)


def serve(
    *services: Servable,
    host: str = "127.0.0.1",
    port: int,
    http: HttpVersion = "auto",
    readiness: Mapping[str, ReadinessCheck] | None = None,
    lifespan: Lifespan | None = None,
    security: SecurityConfig | None = None,
    identity_keys: Iterable[str] = (),
    drain_grace: timedelta = _GRACE,
    logging: LoggingConfig | None = None,
) -> int:
    """Serve services until SIGTERM or Ctrl-C, then drain and stop. Blocks; call it from the main thread.

    Where spans go is said by OpenTelemetry's own variables, see `perdure.observability.tracing_setup`.

    The process ends within `drain_grace` and 5 seconds of the signal, even when a step takes longer or is stuck in a
    thread; a second signal ends the grace time at once.

    Args:
        services: What to serve: services of perdure's or of the SDK's.
        host: Address to bind. Anyone who reaches it may call handlers unless `security` is given.
        port: Port to bind.
        http: ``auto`` speaks HTTP/1.1 and HTTP/2 (without TLS), ``1`` and ``2`` only the one.
        readiness: Checks behind ``/ready``, by name; a check that raises makes the process unready.
        lifespan: Makes an async context manager that is entered before the first request and left after the last, for
            example one that opens and disposes a database engine.
        security: Who may call, and whether the journal is encrypted; None lets anyone call, and says so in the log.
        identity_keys: Short for security settings that ask for nothing but one of these engines' signature.
        drain_grace: How long running steps may take once the process is asked to stop.
        logging: How to log; what the environment says when left out, see `LoggingConfig.from_environment`.

    Returns:
        The exit code 1 when it could not start; the log has the reason. Otherwise it doesn't return: once stopped, it
        ends the process with code 0, or 1 when the server failed. ``atexit`` hooks don't run; clean up in `lifespan`.
    """
    configure_logging(logging)
    watch_levels()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        try:
            configure_tracing(_process_name(services))
            _tune_collector()
            runner.run(
                serve_async(
                    *services,
                    host=host,
                    port=port,
                    http=http,
                    readiness=readiness,
                    lifespan=lifespan,
                    security=security,
                    identity_keys=identity_keys,
                    drain_grace=drain_grace,
                )
            )
        except ConfigurationError as error:
            # The message says it all; a traceback would only hide it.
            log.error("can't serve", reason=str(error))  # noqa: TRY400
            return 1
        except Exception:
            log.exception("serving failed")
            return exit_process(1)
        return exit_process(0)


def _tune_collector() -> None:
    """Let Python's collector of cycles look less often, and not at what is there for good.

    By default it looks at each 700 new objects, which are a few sagas' worth, and every now and then at everything that
    was ever imported: a tenth of the processor time of a service under load, a third of that with these settings.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS, 20, 20)


async def serve_async(
    *services: Servable,
    host: str = "127.0.0.1",
    port: int,
    http: HttpVersion = "auto",
    readiness: Mapping[str, ReadinessCheck] | None = None,
    lifespan: Lifespan | None = None,
    security: SecurityConfig | None = None,
    identity_keys: Iterable[str] = (),
    drain_grace: timedelta = _GRACE,
    stop: asyncio.Event | None = None,
) -> list[str]:
    """Serve services in the running event loop until asked to stop, then drain and stop.

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
        stop: Stops the process when it's set. When left out, SIGTERM and SIGINT stop it.

    Returns:
        The attempts that had to be abandoned, as ``Service/handler``; the engine retries them.

    Raises:
        ConfigurationError: The services can't be served, or the port is taken.
        PerdureError: The server ended by itself.
    """
    app = build_app(*services, readiness=readiness, security=security, identity_keys=identity_keys)
    ensure_free(host, port, "port")  # before the lifespan: it's the commonest mistake, and nothing is to be undone yet
    stopper = _Stopper(stop)
    stack = AsyncExitStack()
    abandoned: list[str] = []
    with stopper.on_signals() if stop is None else nullcontext():
        try:
            if lifespan is not None:
                await stack.enter_async_context(lifespan())
            listener = await stack.enter_async_context(listening(app, host=host, port=port, http=http))
            stopper.started()
            log.info("serving", url=listener.url, services=list(app.names), pid=os.getpid())
            await wait_for_stop(stopper.asked, listener)
            abandoned = await _drain(app, drain_grace, stopper.hurry)
        except asyncio.CancelledError:
            if not stopper.interrupted_start():
                raise
            log.info("asked to stop while starting")
        finally:
            await _closed(stack)
        log.info("stopped")
    return abandoned


@contextmanager
def stop_on_signals() -> Iterator[asyncio.Event]:
    """Yield an event that SIGTERM and SIGINT set."""
    stopper = _Stopper(None)
    stopper.started()
    with stopper.on_signals():
        yield stopper.asked


class _Stopper:
    """Knows that the process was asked to stop, and if it was asked twice."""

    def __init__(self, asked: asyncio.Event | None) -> None:
        self.asked = asked or asyncio.Event()
        self.hurry = asyncio.Event()
        self._starting = asyncio.current_task()
        self._interrupted = False

    def started(self) -> None:
        """From now on, a signal leads to a drain; before, it cancels the start."""
        self._starting = None

    def interrupted_start(self) -> bool:
        """Tell if a cancellation came from a signal during the start; it's used up then."""
        if self._interrupted and self._starting is not None:
            self._starting.uncancel()
        return self._interrupted

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Listen to SIGTERM and SIGINT."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def _on_signal(self, number: signal.Signals) -> None:
        if self.asked.is_set():
            log.warning("asked to stop again, stopping now", signal=number.name)
            self.hurry.set()
            return
        log.info("asked to stop", signal=number.name)
        self.asked.set()
        if self._starting is not None:
            self._interrupted = True
            self._starting.cancel()


async def wait_for_stop(asked: asyncio.Event, *listeners: Listener) -> None:
    """Wait until the process is asked to stop.

    Args:
        asked: Set when it is.
        listeners: Servers whose failure ends the wait.

    Raises:
        PerdureError: A server ended by itself.
    """
    waits = {asyncio.create_task(asked.wait()), *(asyncio.create_task(each.failed()) for each in listeners)}
    try:
        done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for each in done:
            each.result()
    finally:
        for each in waits:
            each.cancel()


async def _drain(app: ServiceApp, grace: timedelta, hurry: asyncio.Event) -> list[str]:
    log.info("draining", open_attempts=app.drain.open_attempts, grace_seconds=grace.total_seconds())
    abandoned = await app.drain.drain(grace, hurry)
    if abandoned:
        log.warning(
            "attempts didn't end in time and are abandoned; the engine retries them",
            attempts=dict(Counter(abandoned)),
            grace_seconds=grace.total_seconds(),
        )
    return abandoned


async def _closed(stack: AsyncExitStack) -> None:
    """Stop the server and leave the lifespan, within a limit."""
    try:
        async with asyncio.timeout(_CLEAN_UP.total_seconds()):
            await stack.aclose()
    except TimeoutError:
        log.error("cleaning up took too long and is cut off", seconds=_CLEAN_UP.total_seconds())  # noqa: TRY400


def _process_name(services: Iterable[Servable]) -> str:
    """Return what the process is called in traces when nobody has named it: like its first service."""
    names = [definition.name for definition in sdk_definitions(services)]
    return names[0] if names else "perdure"


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's event loop where that's installed: it needs up to a fifth less CPU for an invocation."""
    try:
        return cast("Callable[[], asyncio.AbstractEventLoop]", import_module("uvloop").new_event_loop)
    except ModuleNotFoundError:
        return None


def exit_process(code: int) -> NoReturn:
    """End the process without taking the interpreter down first.

    That would wait for the threads of abandoned steps, which nothing can stop; and granian's threads, which may outlive
    its server for a moment, abort the process when they come back to an interpreter that is going away.
    """
    stop_tracing(_LAST_SPANS)
    shutdown_logging()
    sys.stdout.flush()  # noqa: TID251 - prints nothing
    sys.stderr.flush()  # noqa: TID251 - prints nothing
    os._exit(code)
