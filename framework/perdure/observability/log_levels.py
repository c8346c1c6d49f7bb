"""Log levels from a file that is read again whenever it changes.

PERDURE_LOG_LEVELS_FILE names the file. Each line sets the level of all loggers, or of one logger and its children:

    # investigation of a double charge
    info
    services.data_plane.payments = debug

A mounted file reaches all processes of a service, for example in Kubernetes, without an endpoint to protect. Removing
a line restores the previous level.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Final

from perdure.errors import ConfigurationError
from perdure.observability.logging import get_logger, level_number

LEVELS_FILE: Final = "PERDURE_LOG_LEVELS_FILE"
_POLL_INTERVAL: Final = timedelta(seconds=2)

log = get_logger(__name__)


def parse_levels(text: str) -> dict[str, int]:
    """Return the levels by logger name, which is empty for the root logger.

    Raises:
        ConfigurationError: A line contains no valid level.
    """
    levels: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        setting = line.partition("#")[0].strip()
        if setting:
            name, _, level = setting.rpartition("=")
            levels[name.strip()] = level_number(f"level in line {number}", level.strip())
    return levels


class LevelFile:
    """File with log levels; a missing file sets no levels."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._text = ""
        self._read_error = ""
        self._previous: dict[str, int] = {}

    def apply(self) -> bool:
        """Set the levels if the file has changed, and return whether they were set; log an unreadable file."""
        try:
            text = self._path.read_text() if self._path.exists() else ""
        except (OSError, UnicodeDecodeError) as error:
            if str(error) != self._read_error:
                log.warning("cannot read log levels", file=str(self._path), reason=str(error))
            self._read_error = str(error)
            return False
        self._read_error = ""
        if text == self._text:
            return False
        self._text = text
        try:
            levels = parse_levels(text)
        except ConfigurationError as error:
            log.warning("log levels unchanged", file=str(self._path), reason=str(error))
            return False
        for name in set(self._previous) - set(levels):
            logging.getLogger(name).setLevel(self._previous.pop(name))
        for name, level in levels.items():
            logger = logging.getLogger(name)
            self._previous.setdefault(name, logger.level)
            logger.setLevel(level)
        shown = {name or "all": logging.getLevelName(level).lower() for name, level in levels.items()}
        log.warning("log levels changed", levels=shown)
        return True


def watch_levels(
    environment: Mapping[str, str] | None = None, *, interval: timedelta = _POLL_INTERVAL
) -> threading.Event | None:
    """Apply the file that PERDURE_LOG_LEVELS_FILE names, and its changes, in a background thread.

    Args:
        environment: The environment variables; by default those of the process.
        interval: The polling interval.

    Returns:
        An event that stops the thread; None if the variable is not set.
    """
    path = (os.environ if environment is None else environment).get(LEVELS_FILE)
    if not path:
        return None
    file, stop = LevelFile(Path(path)), threading.Event()
    file.apply()

    def poll() -> None:
        while not stop.wait(interval.total_seconds()):
            file.apply()

    threading.Thread(target=poll, name="perdure-log-levels", daemon=True).start()
    return stop
