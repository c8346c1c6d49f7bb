"""Publishes the rights of users to the engine, so that links and delegations end when rights are withdrawn.

A change is recorded in the transaction that makes it. The publisher sends it to `Principals` until the engine has it,
across outages of the engine and crashes of the console.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Final, cast

from pydantic import BaseModel

from perdure import KeyedTarget
from perdure.observability.logging import get_logger
from services.console.auth.users import Users
from services.console.engine import EngineClient
from services.console.problems import ConsoleError
from services.console.signing import Signer
from services.database_outages import DatabaseUnavailable

log = get_logger("services.console")

_INTERVAL: Final = timedelta(seconds=5)
_INTERVAL_AFTER_FAILURE: Final = timedelta(seconds=15)


class _Accepted(BaseModel):
    pass


_put = KeyedTarget("Principals", "put", cast("type[dict[str, Any]]", dict[str, Any]), _Accepted)


class RightsPublisher:
    """Publishes changes of rights: this process's at once, those of other processes at an interval."""

    def __init__(self, users: Users, engine: EngineClient, signer: Signer, interval: timedelta = _INTERVAL) -> None:
        self._users = users
        self._engine = engine
        self._signer = signer
        self._interval = interval

    async def publish(self) -> None:
        """Publish all pending statements. A rejected one does not block the others.

        Raises:
            ConsoleError: The engine is unavailable, or rejects a statement.
        """
        failures: list[ConsoleError] = []
        for statement in await self._users.unpublished_rights():
            try:
                await self._engine.call(_put, self._signer.sign_rights(statement), key=statement.user_name)
            except ConsoleError as error:
                failures.append(error)
            else:
                await self._users.mark_published(statement)
        if failures:
            raise failures[0]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Publish changes in the background for the duration of the block."""
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _run(self) -> None:
        failing = False
        while True:
            try:
                await self.publish()
                if failing:
                    log.info("console.rights_published")
                failing = False
            except (ConsoleError, DatabaseUnavailable) as error:
                if not failing:
                    log.warning(
                        "console.rights_not_published",
                        error=str(error),
                        consequence="links and delegations of users with withdrawn rights still work",
                    )
                failing = True
            except Exception:
                log.exception("console.rights_error")
                failing = True
            await self._users.wait_for_change(_INTERVAL_AFTER_FAILURE if failing else self._interval)
