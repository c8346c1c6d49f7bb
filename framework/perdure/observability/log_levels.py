"""Log levels that change while a process runs: they are read from a file, again whenever it changes.

PERDURE_LOG_LEVELS_FILE names the file. Each of its lines is a level for all loggers, or for one and those below it:

    # while we look into the double charge
    info
    services.data_plane.payments = debug

A file, and neither a signal nor an endpoint: it reaches every process of a service at once where files are mounted, as
in Kubernetes, needs no right of its own, and says afterwards what is set. What a line no longer says is as before.
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

__all__ = ["LEVELS_FILE", "LevelFile", "parse_levels", "watch_levels"]

LEVELS_FILE: Final = "PERDURE_LOG_LEVELS_FILE"
_LOOK: Final = timedelta(seconds=2)

log = get_logger(__name__)


def parse_levels(text: str) -> dict[str, int]:
    """Return the levels that a file names, by logger; the root logger's name is empty.

    Args:
        text: The file's content.

    Raises:
        ConfigurationError: A line that names no level.
    """
    levels: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        said = line.partition("#")[0].strip()
        if said:
            name, _, level = said.rpartition("=")
            levels[name.strip()] = level_number(f"level in line {number}", level.strip())
    return levels


class LevelFile:
    """The levels in a file.

    Args:
        path: The file. One that is not there names no levels.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._text = ""
        self._unreadable = ""
        self._before: dict[str, int] = {}

    def apply(self) -> bool:
        """Read the file and set the levels, if it has changed; one that can't be read changes nothing, and is logged.

        Returns:
            Whether levels were set.
        """
        try:
            text = self._path.read_text() if self._path.exists() else ""
        except (OSError, UnicodeDecodeError) as error:
            if str(error) != self._unreadable:
                log.warning("log levels can't be read", file=str(self._path), reason=str(error))
            self._unreadable = str(error)
            return False
        self._unreadable = ""
        if text == self._text:
            return False
        self._text = text
        try:
            levels = parse_levels(text)
        except ConfigurationError as error:
            log.warning("log levels stay as they are", file=str(self._path), reason=str(error))
            return False
        for name in set(self._before) - set(levels):
            logging.getLogger(name).setLevel(self._before.pop(name))
        for name, level in levels.items():
            logger = logging.getLogger(name)
            self._before.setdefault(name, logger.level)
            logger.setLevel(level)
        shown = {name or "all": logging.getLevelName(level).lower() for name, level in levels.items()}
        log.warning("log levels changed", levels=shown)
        return True


def watch_levels(environment: Mapping[str, str] | None = None, *, look: timedelta = _LOOK) -> threading.Event | None:
    """Follow the file that PERDURE_LOG_LEVELS_FILE names, in a thread, as long as the process lives.

    Args:
        environment: The variables; the process's own by default.
        look: How often to look at it.

    Returns:
        Set it to end that; None when no file is named.
    """
    named = (os.environ if environment is None else environment).get(LEVELS_FILE)
    if not named:
        return None
    file, stop = LevelFile(Path(named)), threading.Event()
    file.apply()

    def follow() -> None:
        while not stop.wait(look.total_seconds()):
            file.apply()

    threading.Thread(target=follow, name="perdure-log-levels", daemon=True).start()
    return stop
