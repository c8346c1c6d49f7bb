"""The engine as one of the launcher's processes: with a pid file, and ended by deadline."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping
from dataclasses import replace

from perdure.dev.pidfiles import PidFile
from perdure.dev.processes import STOP_WITHIN, ManagedProcess, ended
from perdure.engine import EngineProcess, LocatedEngine
from services.runtime.topology import ENGINE, Topology


class ManagedEngine(ManagedProcess):
    """The engine of a platform.

    Args:
        engine: The binary.
        topology: Its ports and folders.
        settings: More of the server's own settings, as its environment variables.
    """

    def __init__(self, engine: LocatedEngine, topology: Topology, settings: Mapping[str, str] | None = None) -> None:
        config = topology.engine_config()
        config = replace(config, extra={**config.extra, **(settings or {})})
        self._process = EngineProcess(engine.path, config)
        self._pid_file = PidFile(topology.run_dir / f"{ENGINE}.pid")

    @property
    def pid(self) -> int | None:
        """Its id, None when it isn't running."""
        return self._process.pid if self._process.running else None

    async def start(self) -> None:
        """Start it, and wait until its ingress and admin API answer.

        Raises:
            ConfigurationError: One of its ports is taken.
            EngineError: It ended, or wasn't ready in time.
        """
        starting = asyncio.ensure_future(self._process.start())
        try:
            # The process is there before the start's first wait. Its pid file is not to wait until it's ready.
            await asyncio.sleep(0)
            if (pid := self.pid) is not None:
                self._pid_file.write(pid)
            await asyncio.shield(starting)
        except BaseException:
            starting.cancel()  # then it kills what it started, which a second cancel would cut off
            await asyncio.wait({starting})
            self._pid_file.remove()
            raise

    async def stop(self, hurry: asyncio.Event) -> bool:
        """Stop it; it flushes first. See `ManagedProcess.stop`."""
        if (pid := self.pid) is not None:
            os.kill(pid, signal.SIGTERM)
        in_time = await ended(lambda: self.pid is None, STOP_WITHIN, hurry)
        await self.kill()
        return in_time

    async def kill(self) -> None:
        """End it at once (SIGKILL), as a crash would. Does nothing when it has ended."""
        await self._process.kill()
        self._pid_file.remove()

    def how_it_ended(self) -> str | None:
        """Say that it ended by itself; None as long as it runs, or when it was stopped from here."""
        if self._process.pid is None or self._process.running:
            return None
        return f"process {self._process.pid} ended; its log is {self._process.config.log_path}"
