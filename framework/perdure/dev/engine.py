"""The engine as a managed process."""

from __future__ import annotations

import asyncio
import os
import signal
from datetime import timedelta
from pathlib import Path
from typing import Final

from perdure._runtime.disks import disk_problem, write_failure
from perdure.dev.pidfiles import PidFile
from perdure.dev.processes import STOP_TIMEOUT, ManagedProcess, ProcessError, describe_exit, wait_for_exit
from perdure.engine import EngineConfig, EngineProcess, LocatedEngine

_START_TIMEOUT: Final = timedelta(minutes=2)
"""A server with much data reads it before it answers."""


class ManagedEngine(ManagedProcess):
    """A restate-server with a pid file.

    Args:
        engine: The binary.
        config: Ports, folders and settings of the server.
        pid_file: Holds the process id while the server runs.
    """

    def __init__(self, engine: LocatedEngine, config: EngineConfig, pid_file: Path) -> None:
        self._process = EngineProcess(engine.path, config)
        self._pid_file = PidFile(pid_file)

    @property
    def pid(self) -> int | None:
        """The process id; None while the server does not run."""
        return self._process.pid if self._process.running else None

    async def start(self) -> None:
        """Start the server, and wait until its ingress and admin API answer.

        Raises:
            ConfigurationError: A port is taken.
            EngineError: The server ended, or was not ready in time.
            ProcessError: The pid file cannot be written.
        """
        starting = asyncio.ensure_future(self._process.start(_START_TIMEOUT))
        try:
            # The process exists before the first wait inside `start`. Write its pid file before it is ready.
            await asyncio.sleep(0)
            if (pid := self.pid) is not None:
                self._pid_file.write(pid)
            await asyncio.shield(starting)
        except BaseException as error:
            starting.cancel()  # kills the process; a second cancellation would interrupt that
            await asyncio.wait({starting})
            self._pid_file.remove()
            if isinstance(error, OSError):
                raise ProcessError(
                    f"{self._pid_file.path} cannot be written: {write_failure(error, self._pid_file.path)}"
                ) from error
            raise

    async def stop(self, hurry: asyncio.Event) -> bool:
        """Stop the server with SIGTERM; it flushes its data first. See `ManagedProcess.stop`."""
        if (pid := self.pid) is not None:
            os.kill(pid, signal.SIGTERM)
        in_time = await wait_for_exit(lambda: self.pid is None, STOP_TIMEOUT, hurry)
        await self.kill()
        return in_time

    async def kill(self) -> None:
        """Kill the server with SIGKILL, as a crash would. Does nothing if it has ended."""
        await self._process.kill()
        self._pid_file.remove()

    def exit_reason(self) -> str | None:
        """Describe how the server ended by itself; None if it runs or was stopped here."""
        code = self._process.exit_code
        if code is None:
            return None
        problem = disk_problem(self._process.config.data_dir)
        disk = f"; {problem}" if problem else ""
        return f"process {self._process.pid} {describe_exit(code)}{disk}; its log is {self._process.config.log_path}"

    async def answers(self) -> bool:
        """Return whether the ingress and the admin API answer."""
        return await self._process.answers()
