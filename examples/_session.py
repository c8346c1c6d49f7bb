"""Runner of the examples: an engine, the example's services, and its output.

An example runs alone, with all others by ``make examples``, and in tests/examples.
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

_TIMEOUT = 20.0
_OUTPUT = re.compile(r"```text\n(.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Session:
    """One run of an example.

    Args:
        ingress: Client of the example's services.
        print_line: Prints a line.
        run: Suffix of each key, so that an example can run again on the same engine; omitted from the output.
    """

    ingress: IngressClient
    print_line: Callable[[str], None]
    run: str = field(default_factory=lambda: uuid4().hex[:12])

    def key(self, name: str) -> str:
        """Return a key of this run."""
        return f"{name}-{self.run}"

    def print(self, text: str) -> None:
        """Print a line."""
        self.print_line(text.replace(f"-{self.run}", ""))

    async def refusal(self, call: Awaitable[Any]) -> IngressError:
        """Wait for a call that must fail and return its error."""
        try:
            answer = await call
        except IngressError as error:
            return error
        raise AssertionError(f"the call must fail, but returned {answer!r}")

    async def until(self, probe: Callable[[], Awaitable[T | None]]) -> T:
        """Repeat a probe until it returns a result."""
        deadline = time.monotonic() + _TIMEOUT
        while (answer := await probe()) is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no result within {_TIMEOUT:g} s")
            await asyncio.sleep(0.02)
        return answer


@dataclass(frozen=True)
class Example:
    """One example.

    Args:
        package: Its package, as in ``python -m``.
        play: Calls the services and prints the results.
        services: The services.
    """

    package: str
    play: Callable[[Session], Awaitable[None]]
    services: tuple[Servable, ...]

    @property
    def title(self) -> str:
        """The first line of its README."""
        return self._readme().partition("\n")[0].removeprefix("# ")

    @property
    def printed(self) -> list[str]:
        """The output in its README, line by line."""
        found = _OUTPUT.search(self._readme())
        return [] if found is None else found[1].splitlines()

    async def play_on(self, restate: Restate, say: Callable[[str], None]) -> None:
        """Serve the services with the hosted platform, and run the example."""
        try:
            env = await restate.serve(*self.services, host_platform=True)
            async with IngressClient(env.ingress) as ingress:
                await self.play(Session(ingress, say))
        finally:
            await restate.close()

    def main(self) -> int:
        """Start an engine, run the example, and return the exit code."""
        silence_logs()
        with RestateServer(install_dir=ENGINE) as server:
            asyncio.run(self.play_on(Restate(server, Mode.HTTP2), print))
        return 0

    def _readme(self) -> str:
        return (FOLDER / self.package.rpartition(".")[2] / "README.md").read_text(encoding="utf-8")


def silence_logs() -> None:
    """Omit log lines about retries from the output."""
    configure_logging(LoggingConfig(level="critical"), stream=sys.stderr)


def all_examples() -> list[Example]:
    """Return the examples, in the order of their sections."""
    names = sorted(file.parent.name for file in FOLDER.glob("s[0-9][0-9]_*/__main__.py"))
    modules = [import_module(f"examples.{name}.__main__") for name in names]
    return [module.example for module in modules]
