"""Sets declared schedules while a service process starts: `ScheduleSetter`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Final

from perdure.engine.ingress import IngressClient
from perdure.errors import IngressError
from perdure.handlers import Definition
from perdure.observability.logging import get_logger
from perdure.retry import RetryPolicy
from perdure.schedules.client import apply_schedules
from perdure.schedules.declaration import Schedule, declared_schedules
from perdure.security.codec import codec_from_environment
from perdure.security.signed_actions import ActorKey

log = get_logger("perdure.schedules")

_RETRY: Final = RetryPolicy(timedelta(milliseconds=500), max_interval=timedelta(seconds=30), max_attempts=None)
_TOLERATED: Final = 8
"""Failures before the first log line. The handlers are registered only after this process has started."""


class ScheduleSetter:
    """Sets the declared schedules of a process, as soon as their handlers are registered.

    Serve it beside the services; it serves no handler itself. `perdure serve` and `perdure dev` do so for the
    schedules of their modules. The settings are environment variables: ``PERDURE_INGRESS_URL``, ``PERDURE_KEY_FILE``
    for the key that signs the actions, and the encryption keys.

    Args:
        sources: Schedules, or modules with schedules at module level.

    Raises:
        ConfigurationError: Two schedules have the same name.

    Example:
        raise SystemExit(serve(reports, ScheduleSetter([nightly]), port=9080))
    """

    def __init__(self, sources: Iterable[Schedule | ModuleType]) -> None:
        self._schedules = declared_schedules(sources)

    def definitions(self) -> list[Definition]:
        """Return no services."""
        return []

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Set the schedules while the context is entered; `perdure.serving.serve` enters it.

        Raises:
            ConfigurationError: A key cannot be read.
        """
        if not self._schedules:
            yield
            return
        key_file = os.environ.get("PERDURE_KEY_FILE")
        key = ActorKey.load(Path(key_file)) if key_file else None
        url = os.environ.get("PERDURE_INGRESS_URL") or "http://127.0.0.1:8080"
        ingress = IngressClient(url, codec=codec_from_environment(), max_attempts=1, registration_timeout=timedelta(0))
        task = asyncio.create_task(self._set(ingress, key), name="schedule setter")
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _set(self, ingress: IngressClient, key: ActorKey | None) -> None:
        failures = 0
        async with ingress:
            while True:
                try:
                    found = await apply_schedules(self._schedules, ingress, key=key)
                except IngressError as error:
                    failures += 1
                    if failures % _TOLERATED == 0:
                        log.warning(
                            "schedules.not_set", error=str(error), names=[each.name for each in self._schedules]
                        )
                    await asyncio.sleep(_RETRY.delay_after(failures).total_seconds())
                else:
                    log.info("schedules.set", names=[each.name for each in found])
                    return
