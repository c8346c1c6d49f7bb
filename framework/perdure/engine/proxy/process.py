"""Process of the engine proxy."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from datetime import timedelta

from perdure._runtime.ports import ensure_free
from perdure.engine.proxy.app import EngineProxy
from perdure.engine.proxy.settings import ProxySettings
from perdure.engine.proxy.upstream import Upstream
from perdure.errors import ConfigurationError
from perdure.observability.log_levels import watch_levels
from perdure.observability.logging import configure_logging, get_logger
from perdure.serving.process import exit_process, loop_factory, stop_on_signals, wait_for_stop
from perdure.serving.server import Listener, listening
from perdure.serving.watchdog import DEFAULT_HANG_LIMIT, Watchdog, effective_limit

log = get_logger(__name__)


def serve_proxy(settings: ProxySettings) -> int:
    """Serve the proxy until SIGTERM or Ctrl-C. Blocks; call it from the main thread.

    Returns:
        The exit code 1 if the start fails. Otherwise it ends the process, with code 0 after a signal.
    """
    configure_logging()
    watch_levels()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        try:
            runner.run(_until_signal(settings))
        except ConfigurationError as error:
            log.error("can't serve", reason=str(error))  # noqa: TRY400 - a traceback adds nothing
            return 1
        except Exception:
            log.exception("serving failed")
            return exit_process(1)
        return exit_process(0)


async def _until_signal(settings: ProxySettings) -> None:
    watchdog = Watchdog(effective_limit(DEFAULT_HANG_LIMIT, os.environ), timedelta(0))
    with stop_on_signals() as stop, watchdog.limiting_stop(), watchdog.watching_loop():
        await serve_proxy_async(settings, stop)


async def serve_proxy_async(settings: ProxySettings, stop: asyncio.Event) -> None:
    """Serve the proxy in the running event loop.

    The stop closes the connections of waiting calls. Their invocations continue, and clients can attach again.

    Args:
        settings: The settings.
        stop: The event that stops the proxy.

    Raises:
        ConfigurationError: A port is taken.
        PerdureError: A server failed.
    """
    proxies = [("ingress", settings.ingress_upstream, settings.ingress_rules(), settings.ingress_port)]
    if settings.admin_upstream is not None:
        proxies.append(("admin", settings.admin_upstream, settings.admin_rules(), settings.admin_port))
    listeners: list[Listener] = []
    async with AsyncExitStack() as stack:
        for name, address, rules, port in proxies:
            setting = f"PERDURE_PROXY_{name.upper()}_PORT"
            ensure_free(settings.host, port, setting)
            upstream = Upstream.parse(address)
            connections = await stack.enter_async_context(upstream.connections())
            proxy = EngineProxy(name, upstream, connections, rules, is_ingress=name == "ingress")
            server = listening(proxy, host=settings.host, port=port, setting=setting)
            listeners.append(await stack.enter_async_context(server))
        log.info(
            "serving", urls=[listener.url for listener in listeners], upstreams=[str(proxy[1]) for proxy in proxies]
        )

        await wait_for_stop(stop, *listeners)
        log.info("stopping")
