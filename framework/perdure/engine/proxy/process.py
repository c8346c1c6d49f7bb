"""The process of the engine proxy."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from perdure._runtime.ports import ensure_free
from perdure.engine.proxy.app import EngineProxy
from perdure.engine.proxy.settings import ProxySettings
from perdure.engine.proxy.upstream import Upstream
from perdure.errors import ConfigurationError
from perdure.observability.log_levels import watch_levels
from perdure.observability.logging import configure_logging, get_logger
from perdure.serving.process import exit_process, loop_factory, stop_on_signals, wait_for_stop
from perdure.serving.server import Listener, listening

__all__ = ["serve_proxy", "serve_proxy_async"]

log = get_logger(__name__)


def serve_proxy(settings: ProxySettings) -> int:
    """Serve the proxy until SIGTERM or Ctrl-C. Blocks; call it from the main thread.

    Args:
        settings: Ports, upstreams and rules.

    Returns:
        The exit code 1 when it could not start. Otherwise it ends the process, with code 0 after a signal.
    """
    configure_logging()
    watch_levels()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        try:
            runner.run(_until_signal(settings))
        except ConfigurationError as error:
            log.error("can't serve", reason=str(error))  # noqa: TRY400 - the message says it all
            return 1
        except Exception:
            log.exception("serving failed")
            return exit_process(1)
        return exit_process(0)


async def _until_signal(settings: ProxySettings) -> None:
    with stop_on_signals() as asked:
        await serve_proxy_async(settings, asked)


async def serve_proxy_async(settings: ProxySettings, stop: asyncio.Event) -> None:
    """Serve the proxy in the running event loop.

    Calls that wait are cut off at the end. The engine goes on with them, and a client may attach again.

    Args:
        settings: Ports, upstreams and rules.
        stop: Ends it when it's set.

    Raises:
        ConfigurationError: A port is taken.
        PerdureError: A server ended by itself.
    """
    wanted = [("ingress", settings.ingress_upstream, settings.ingress_rules(), settings.ingress_port)]
    if settings.admin_upstream is not None:
        wanted.append(("admin", settings.admin_upstream, settings.admin_rules(), settings.admin_port))
    listeners: list[Listener] = []
    async with AsyncExitStack() as stack:
        for name, upstream, rules, port in wanted:
            setting = f"PERDURE_PROXY_{name.upper()}_PORT"
            ensure_free(settings.host, port, setting)
            place = Upstream.parse(upstream)
            connections = await stack.enter_async_context(place.connections())
            proxy = EngineProxy(name, place, connections, rules, is_ingress=name == "ingress")
            server = listening(proxy, host=settings.host, port=port, setting=setting)
            listeners.append(await stack.enter_async_context(server))
        log.info("serving", urls=[each.url for each in listeners], upstreams=[str(each[1]) for each in wanted])
        await wait_for_stop(stop, *listeners)
        log.info("stopping")
