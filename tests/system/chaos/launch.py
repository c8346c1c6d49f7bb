"""`perdure-platform run` as a separate process, which a chaos run damages from outside."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Final

from perdure.dev.pidfiles import PidFile, RunningProcess
from perdure.dev.processes import describe_exit, wait_for_exit
from perdure.engine.watchdog import Watchdog
from perdure.errors import PerdureError
from services.runtime.settings import setting_name
from services.runtime.topology import Topology
from tests.support import WaitTimeout, eventually

_PROGRAM: Final = Path(sys.executable).with_name("perdure-platform")
_UP: Final = "the platform is up"
_UP_WITHIN: Final = 120.0
_BACK_WITHIN: Final = 60.0
_STOP_WITHIN: Final = timedelta(seconds=60)


class LaunchError(PerdureError):
    """The platform ended, or did not get up or stop in time."""


class LaunchedPlatform:
    """A platform whose supervisor is a child process of this one.

    Args:
        topology: Ports and folders.
        environment: Environment of the platform, without ports and folders. Its URLs of databases, if any, are those
            of a proxy; the topology has the server's.
    """

    def __init__(self, topology: Topology, environment: Mapping[str, str]) -> None:
        self.topology = topology
        self.environment = {
            **{setting_name(f"{name}_database_url"): url for name, url in topology.databases.items()},
            **environment,
            **{name: str(port) for name, port in topology.port_settings().items()},
            "PERDURE_LOCAL_DIR": str(topology.home),
            # The engine leaves folders for temporary files behind when it is killed.
            "TMPDIR": str(topology.home),
            "PERDURE_ENGINE_CONFIG": str(topology.engine_config_file),
        }
        self._log = topology.home / "platform.log"
        self._log_start = 0
        self._process: subprocess.Popen[bytes] | None = None
        # If this process is killed, the platform stops as if by Ctrl-C.
        self._watchdog = Watchdog(ending=signal.SIGTERM).start()

    async def start(self) -> None:
        """Start the platform and wait until it is up.

        Raises:
            LaunchError: It ended or was not up in time. It has stopped again.
        """
        with self._log.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(  # noqa: ASYNC220 - starts in milliseconds
                [_PROGRAM, "run"],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._watchdog.watch(self._process.pid)
        try:
            await eventually(lambda: _UP in self._said() or self.end(), what=f"'{_UP}'", within=_UP_WITHIN)
        except WaitTimeout as error:
            await self.stop()
            raise LaunchError(f"the platform did not get up: {error}; it said: {self._last_words()}") from error
        if reason := self.end():
            self._process = None
            raise LaunchError(f"the platform {reason}")

    @property
    def is_running(self) -> bool:
        """Whether the supervisor runs."""
        return self._process is not None and self._process.poll() is None

    def end(self) -> str | None:
        """Describe how the supervisor ended by itself; None while it runs."""
        if self._process is None or (code := self._process.poll()) is None:
            return None
        return f"{describe_exit(code)}: {self._last_words()}"

    async def kill_supervisor(self) -> None:
        """Kill the supervisor with SIGKILL. `start` starts the platform again."""
        if self._process is not None:
            process, self._process = self._process, None
            process.kill()
            await wait_for_exit(lambda: process.poll() is not None, _STOP_WITHIN)

    async def stop(self, hurry: asyncio.Event | None = None) -> list[str]:
        """Stop the platform, and kill the processes that it left behind.

        Args:
            hurry: When set, everything is killed without further waiting.

        Returns:
            Names of the processes that were killed.
        """
        process, self._process = self._process, None
        left = []
        if process is not None:
            process.terminate()
            if not await wait_for_exit(lambda: process.poll() is not None, _STOP_WITHIN, hurry):
                process.kill()
                process.wait()
                left.append("supervisor")
        for name, remaining in self.processes().items():
            left.append(name)
            with suppress(ProcessLookupError):
                os.kill(remaining.pid, signal.SIGKILL)
        return left

    def close(self) -> None:
        """End the watchdog. The platform is stopped."""
        self._watchdog.dismiss()

    def processes(self) -> dict[str, RunningProcess]:
        """Return the running processes of the platform by name, without the supervisor."""
        files = map(PidFile, sorted(self.topology.run_dir.glob("*.pid")))
        return {file.name: process for file in files if (process := file.running()) is not None}

    def process(self, name: str) -> RunningProcess:
        """Return a running process.

        Raises:
            LaunchError: It does not run.
        """
        process = PidFile(self.topology.run_dir / f"{name}.pid").running()
        if process is None:
            raise LaunchError(f"{name} does not run")
        return process

    async def until_replaced(self, name: str, before: RunningProcess) -> None:
        """Wait until another process runs under a name.

        Args:
            name: Name of the process.
            before: The process that was killed.

        Raises:
            WaitTimeout: The supervisor did not restart it in time.
        """
        file = PidFile(self.topology.run_dir / f"{name}.pid")
        await eventually(
            lambda: (now := file.running()) is not None and now != before,
            what=f"new process of {name}",
            within=_BACK_WITHIN,
        )

    def _said(self) -> str:
        with self._log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def _last_words(self) -> str:
        """Return the platform's last error message and its last line, which may be the end of a log."""
        lines = [line.strip() for line in self._said().splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith(f"{_PROGRAM.name}: ")]
        return " … ".join(dict.fromkeys([*errors[-1:], *lines[-1:]])) or "nothing"
