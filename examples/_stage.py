"""What the examples share: an engine, the example's services on it, and a way to say what happened.

An example is what is played (`Example.play`) on what is served (`Example.services`). It runs by itself, with all
others under ``make examples``, and in tests/examples, always the same way.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from perdure import IngressClient
from perdure.errors import IngressError
from perdure.observability.logging import LoggingConfig, configure_logging
from perdure.serving import Servable
from perdure.testing import Mode, Restate, RestateServer

T = TypeVar("T")

FOLDER = Path(__file__).parent
ENGINE = FOLDER.parent / ".local" / "engine"

_PATIENCE = 20.0
_OUTPUT = re.compile(r"```text\n(.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Stage:
    """Where an example is played.

    Args:
        ingress: Calls the example's services.
        say_line: Takes each line of what happened.
        run: Ends each key, so that an example can be played again on the same engine; left out of what is said.
    """

    ingress: IngressClient
    say_line: Callable[[str], None]
    run: str = field(default_factory=lambda: uuid4().hex[:12])

    def key(self, name: str) -> str:
        """Return a key that no other run uses."""
        return f"{name}-{self.run}"

    def say(self, text: str) -> None:
        """Say what happened."""
        self.say_line(text.replace(f"-{self.run}", ""))

    async def refusal(self, call: Awaitable[Any]) -> IngressError:
        """Wait for a call that must fail; return its error."""
        try:
            answer = await call
        except IngressError as error:
            return error
        raise AssertionError(f"the call was to fail, and returned {answer!r}")

    async def until(self, probe: Callable[[], Awaitable[T | None]]) -> T:
        """Ask again and again, until there is an answer."""
        give_up = time.monotonic() + _PATIENCE
        while (answer := await probe()) is None:
            if time.monotonic() > give_up:
                raise TimeoutError(f"nothing came within {_PATIENCE:g} s")
            await asyncio.sleep(0.02)
        return answer


@dataclass(frozen=True)
class Example:
    """One example.

    Args:
        package: Its package, as in ``python -m``.
        play: What is done with the services, and said about it.
        services: What is served.
    """

    package: str
    play: Callable[[Stage], Awaitable[None]]
    services: tuple[Servable, ...]

    @property
    def title(self) -> str:
        """The first line of its README."""
        return self._readme().partition("\n")[0].removeprefix("# ")

    @property
    def printed(self) -> list[str]:
        """What its README says that it prints, line by line."""
        found = _OUTPUT.search(self._readme())
        return [] if found is None else found[1].splitlines()

    async def play_on(self, restate: Restate, say: Callable[[str], None]) -> None:
        """Serve the services, play, and take them back.

        Args:
            restate: Serves to an engine.
            say: Takes each line of what happened.
        """
        try:
            env = await restate.serve(*self.services)
            async with IngressClient(env.ingress) as ingress:
                await self.play(Stage(ingress, say))
        finally:
            await restate.close()

    def main(self) -> int:
        """Start an engine, play, and print what happened; return the exit code."""
        quietly()
        with RestateServer(install_dir=ENGINE) as server:
            asyncio.run(self.play_on(Restate(server, Mode.HTTP2), print))
        return 0

    def _readme(self) -> str:
        return (FOLDER / self.package.rpartition(".")[2] / "README.md").read_text(encoding="utf-8")


def quietly() -> None:
    """Keep what the engine retries out of what an example prints."""
    configure_logging(LoggingConfig(level="critical"), stream=sys.stderr)


def all_examples() -> list[Example]:
    """Return the examples, in the order of their sections."""
    names = sorted(file.parent.name for file in FOLDER.glob("s[0-9][0-9]_*/__main__.py"))
    modules = [import_module(f"examples.{name}.__main__") for name in names]
    return [module.example for module in modules]
