"""The console's process: ``python -m services.console.main``."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from datetime import timedelta

import uvicorn

from perdure._runtime.plain_text import escape_invisible
from perdure.errors import PerdureError
from perdure.observability.log_levels import watch_levels
from perdure.observability.logging import configure_logging
from perdure.observability.tracing_setup import configure_tracing, stop_tracing
from perdure.security.private_files import set_private_umask
from perdure.serving.watchdog import DEFAULT_HANG_LIMIT, Watchdog, effective_limit
from services.console.app import create_app
from services.console.database import Database
from services.console.http_framing import UnambiguousHttp
from services.console.settings import ConsoleSettings

_SHUTDOWN_SECONDS = 3
_SPAN_FLUSH_TIMEOUT = timedelta(seconds=1)


class _WatchedServer(uvicorn.Server):
    """Server with a watchdog of its event loop."""

    def __init__(self, config: uvicorn.Config, watchdog: Watchdog) -> None:
        super().__init__(config)
        self._watchdog = watchdog

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        with self._watchdog.limiting_stop(), self._watchdog.watching_loop():
            await super().serve(sockets)


def main() -> int:
    """Serve the console until SIGTERM or Ctrl-C, and return the exit code.

    Raises:
        ConfigurationError: A setting is invalid.
        DatabaseUnavailable: The database does not work at the moment.
    """
    settings = ConsoleSettings.read()
    configure_logging()
    watch_levels()
    asyncio.run(_prepare(settings))  # uvicorn would report an outage as a traceback
    app = create_app(settings)
    if configure_tracing("console"):
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor  # noqa: PLC0415 - for traces only

        # Links to approvals are secrets, and spans contain paths.
        FastAPIInstrumentor.instrument_app(app, excluded_urls="/health,/ready,/static/,/l/")
    server = _WatchedServer(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            http=UnambiguousHttp,
            log_config=None,
            access_log=False,  # paths of links are secrets
            server_header=False,
            proxy_headers=False,  # see auth.client_address
            timeout_graceful_shutdown=_SHUTDOWN_SECONDS,  # event streams do not end by themselves
            lifespan="on",
        ),
        Watchdog(effective_limit(DEFAULT_HANG_LIMIT, os.environ), timedelta(seconds=_SHUTDOWN_SECONDS)),
    )
    server.run()
    stop_tracing(_SPAN_FLUSH_TIMEOUT)
    return 0 if server.started else 1


async def _prepare(settings: ConsoleSettings) -> None:
    database = Database(settings.database)
    try:
        await database.prepare()
    finally:
        await database.dispose()


if __name__ == "__main__":
    set_private_umask()
    try:
        sys.exit(main())
    except PerdureError as error:
        sys.exit(f"console: {escape_invisible(str(error))}")
