"""Tells the engine which rights people have, so that links and delegations end when rights are withdrawn.

A change of a person is recorded in the console's database together with the change itself. From there it is sent to
`Principals` until the engine has it: across an outage of the engine, and a crash of the console.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Final, cast

from pydantic import BaseModel

from perdure import Target
from perdure.observability.logging import get_logger
from services.console.engine import Engine
from services.console.people.persons import Users
from services.console.problems import ConsoleError
from services.console.signing import Signer

log = get_logger("services.console")

_EVERY: Final = timedelta(seconds=5)
_AFTER_FAILURE: Final = timedelta(seconds=15)


class _Known(BaseModel):
    pass


_put: Target[dict[str, Any], _Known] = Target("Principals", "put", cast("type[dict[str, Any]]", dict[str, Any]), _Known)


class RightsSender:
    """Sends changes of people's rights to the engine.

    Args:
        persons: The people.
        engine: The engine.
        signer: Signs the statements for the console.
        every: How often it looks for changes of another process; its own changes are sent at once.
    """

    def __init__(self, persons: Users, engine: Engine, signer: Signer, every: timedelta = _EVERY) -> None:
        self._persons = persons
        self._engine = engine
        self._signer = signer
        self._every = every

    async def send(self) -> None:
        """Send what the engine does not have yet. A statement that is refused keeps no other one back.

        Raises:
            ConsoleError: The engine does not answer, or refuses a statement.
        """
        failures: list[ConsoleError] = []
        for stated in await self._persons.unsent_rights():
            try:
                await self._engine.call(_put, self._signer.sign_rights(stated), key=stated.person)
            except ConsoleError as error:
                failures.append(error)
            else:
                await self._persons.rights_sent(stated)
        if failures:
            raise failures[0]

    @asynccontextmanager
    async def sending(self) -> AsyncIterator[None]:
        """Send changes as long as the context is entered."""
        task = asyncio.create_task(self._send_all())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _send_all(self) -> None:
        failing = False
        while True:
            try:
                await self.send()
                if failing:
                    log.info("console.rights_sent")
                failing = False
            except ConsoleError as error:
                if not failing:
                    log.warning(
                        "console.rights_not_sent",
                        why=error.message,
                        consequence="links and delegations of people whose rights were withdrawn still decide",
                    )
                failing = True
            except Exception:
                log.exception("console.rights_fault")
                failing = True
            await self._persons.rights_changed(within=_AFTER_FAILURE if failing else self._every)
