"""Causes of conditions, and the action that each of them needs. Pure.

The cause follows from the engine's error code where there is one. The errors of a handler have one code, so databases
and disks are recognised by the text. Nothing but the advice to the operator depends on it.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final


class Cause(StrEnum):
    """Cause of a condition."""

    JOURNAL_MISMATCH = "journal_mismatch"
    """The code differs from the code that wrote the journal."""
    DEPLOYMENT_REMOVED = "deployment_removed"
    """The deployment that the invocation needs is not registered any longer."""
    UNREACHABLE = "unreachable"
    """The engine cannot reach the service."""
    HANG = "hang"
    """The handler neither fails nor progresses."""
    DISK = "disk"
    """A disk is full or read-only."""
    DATABASE = "database"
    """A database is unavailable."""
    OTHER = "other"


_BY_CODE: Final = {
    "RT0001": Cause.HANG,  # the engine's abort timeout
    "RT0010": Cause.UNREACHABLE,
    "RT0011": Cause.DEPLOYMENT_REMOVED,
    "RT0016": Cause.JOURNAL_MISMATCH,
}

_DISK: Final = re.compile(
    r"no space left on device|read-only file system|disk is full|could not extend file|readonly database|disk I/O error"
    r"|DiskFull|disk quota exceeded",
    re.IGNORECASE,
)
_DATABASE: Final = re.compile(
    r"\b(Operational|Interface|CannotConnectNow|TooManyConnections|ConnectionDoesNotExist|PostgresConnection"
    r"|(Admin|Crash)Shutdown)Error\b|\bthe database\b|database is locked|database system is (starting|shutting)"
    r"|connection to server at|Connect call failed",
    re.IGNORECASE,
)

_ACTIONS: Final = {
    Cause.JOURNAL_MISMATCH: (
        "The journal does not match the code. Keep the deployment, start the old code beside the new one "
        "(docs/how-to/upgrade.md)"
    ),
    Cause.DEPLOYMENT_REMOVED: (
        "The deployment was removed while it was in use. Register the code that it ran on, and move the invocation to "
        "it (docs/how-to/runbooks/invocations-paused.md)"
    ),
    Cause.UNREACHABLE: "The service does not respond. Its deployment is in use, so do not remove it. Start the service",
    Cause.HANG: "The handler hangs. Read the log of its process, and restart the process if /health does not respond",
    Cause.DISK: "A disk is full or read-only. Free space",
    Cause.DATABASE: "The database is unavailable. Start it, or restore the connection",
    Cause.OTHER: "Fix the cause",
}


def cause_of(*, is_hanging: bool, error_code: str, reason: str) -> Cause:
    """Return the cause of a condition.

    Args:
        is_hanging: Whether the attempt neither fails nor progresses.
        error_code: The engine's code of the last failure, for example ``RT0016``; may be empty.
        reason: The last failure; may be empty.
    """
    if is_hanging:
        return Cause.HANG
    if error_code in _BY_CODE:
        return _BY_CODE[error_code]
    if _DISK.search(reason):
        return Cause.DISK
    return Cause.DATABASE if _DATABASE.search(reason) else Cause.OTHER


def action_for(cause: Cause) -> str:
    """Return what the operator has to do, without a final period."""
    return _ACTIONS[cause]
