"""Runs `perdure-platform run` as a separate process, configured by its environment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from perdure._runtime.ports import free_ports
from perdure.engine.watchdog import Watchdog
from services.runtime.topology import SERVICES
from tests.support import until

PROGRAM = Path(sys.executable).with_name("perdure-platform")

PORT_VARIABLES = (
    "PERDURE_INGRESS_PORT",
    "PERDURE_ADMIN_PORT",
    "PERDURE_NODE_PORT",
    "PERDURE_CONSOLE_PORT",
    *(spec.port_setting for spec in SERVICES),
)

UP = "the platform is up"


def environment(home: Path, engine: Path | None) -> dict[str, str]:
    """Return the environment of a platform on free ports, without inherited settings."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PERDURE_", "RESTATE_"))}
    ports = dict(zip(PORT_VARIABLES, map(str, free_ports(len(PORT_VARIABLES))), strict=True))
    chosen = {"RESTATE_SERVER_BIN": str(engine)} if engine else {}
    return {**inherited, **ports, **chosen, "PERDURE_LOCAL_DIR": str(home)}


def command(*arguments: str, env: Mapping[str, str], within: float = 120) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [PROGRAM, *arguments],
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=within,
        check=False,
    )


def processes_of(home: Path) -> list[int]:
    """Return the processes started for a folder and their descendants, which have its path in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if str(home).encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


class Launched:
    """A running `perdure-platform run`; a context manager that ends all its processes.

    Args:
        home: Folder of the platform.
        env: Environment of the command.
    """

    def __init__(self, home: Path, env: Mapping[str, str]) -> None:
        self.home = home
        self.env = env
        self._out = home.with_name(f"{home.name}.out")
        self._err = home.with_name(f"{home.name}.err")
        # The watchdog stops the platform if the test session itself is killed.
        self._watchdog = Watchdog(ending=signal.SIGTERM).start()
        with self._out.open("wb") as out, self._err.open("wb") as err:
            # In a separate session, signals of the tests' terminal do not reach it.
            self.process = subprocess.Popen(
                [PROGRAM, "run"], env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
            )
        self._watchdog.watch(self.process.pid)

    def __enter__(self) -> Launched:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._watchdog.dismiss()
        self.process.kill()
        self.process.wait()
        for pid in processes_of(self.home):
            os.kill(pid, signal.SIGKILL)

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    @property
    def ingress(self) -> str:
        return f"http://127.0.0.1:{self.env['PERDURE_INGRESS_PORT']}"

    def until(self, condition: Callable[[], bool], what: str, within: float = 60) -> Launched:
        """Wait for a condition while the process runs."""

        def holds() -> bool:
            assert self.process.poll() is None, f"the command ended before there was {what}"
            return condition()

        try:
            until(holds, what, within)
        except AssertionError as error:
            error.add_note(f"{self.out}\n{self.err}")
            raise
        return self

    def up(self) -> Launched:
        """Wait until the platform is up. If that fails, end all its processes, since no block is entered yet."""
        try:
            return self.until(lambda: UP in self.out, "platform", within=120)
        except BaseException:
            self.__exit__()
            raise

    def line(self, start: str) -> str:
        (found,) = [line for line in self.out.splitlines() if line.startswith(start)]
        return found

    def confirmation(self) -> dict[str, Any]:
        """Return the confirmation of the first trip, which may end after the platform is up."""
        self.until(lambda: "\n}" in self.out, "first trip")
        document = self.out[self.out.index("{\n") : self.out.index("\n}") + 2]
        return dict(json.loads(document))

    def pids(self) -> dict[str, int]:
        return {path.stem: int(path.read_text()) for path in (self.home / "run").glob("*.pid")}

    def stop(self, number: signal.Signals, within: float = 30) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(within)
