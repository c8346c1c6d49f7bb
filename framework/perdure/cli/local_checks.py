"""What `perdure doctor` looks at on this machine: keys and disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from perdure.errors import ConfigurationError
from perdure.security.codec import ENCRYPTION_KEYS_FILE, codec_from_environment
from perdure.security.keys import PrivateKey
from perdure.security.signed_actions import ActorKey

_ACTOR_KEY_FILE: Final = "PERDURE_KEY_FILE"
_LEAST_SPACE: Final = 0.05
_SOON: Final = timedelta(days=7)


@dataclass(frozen=True)
class Finding:
    """What one look found.

    Args:
        about: What was looked at.
        trouble: Something is to be done.
        text: What was found, and what to do.
    """

    about: str
    trouble: bool
    text: str


def key_findings(environment: Mapping[str, str]) -> list[Finding]:
    """Look at the key files that variables name.

    Args:
        environment: The variables.
    """
    looks: list[tuple[str, Callable[[], str]]] = [
        (name, lambda path=Path(path): _said_of_key(path))  # type: ignore[misc] # the default binds the path
        for name, path in sorted(environment.items())
        if name.startswith("PERDURE_") and name.endswith("_KEY_FILE") and name != _ACTOR_KEY_FILE and path
    ]
    if path := environment.get(_ACTOR_KEY_FILE):
        looks.append((_ACTOR_KEY_FILE, lambda: _said_of_actor(Path(path), datetime.now(UTC))))
    if environment.get(ENCRYPTION_KEYS_FILE):
        looks.append((ENCRYPTION_KEYS_FILE, lambda: _said_of_codec(environment)))
    findings = []
    for name, look in looks:
        try:
            findings.append(Finding("keys", False, f"{name} {look()}"))
        except ConfigurationError as error:
            findings.append(Finding("keys", True, f"{name}: {error}"))
    return findings or [Finding("keys", False, "no variable of this shell names one")]


def _said_of_key(path: Path) -> str:
    PrivateKey.load(path)
    return "can be read, and by its owner alone"


def _said_of_codec(environment: Mapping[str, str]) -> str:
    codec_from_environment(environment)
    return "can be read, and by its owner alone"


def _said_of_actor(path: Path, now: datetime) -> str:
    credential = ActorKey.load(path).credential
    left = credential.expires_at - now
    again = f"have another one issued for {credential.actor}: perdure actors issue"
    if left <= timedelta(0):
        raise ConfigurationError(
            f"the credential in {path} expired at {credential.expires_at:%Y-%m-%d %H:%M} UTC: {again}"
        )
    if credential.issued_at > now:
        raise ConfigurationError(
            f"the credential in {path} holds from {credential.issued_at:%Y-%m-%d %H:%M} UTC only: is this clock right?"
        )
    soon = f"; soon, {again}" if left < _SOON else ""
    return f"is the key of {credential.actor}, and holds until {credential.expires_at:%Y-%m-%d %H:%M} UTC{soon}"


def disk_finding(folder: Path) -> Finding:
    """Look at the room on a disk.

    Args:
        folder: A folder on it.
    """
    try:
        usage = shutil.disk_usage(folder)
    except OSError as error:
        return Finding("disk", True, f"{folder} can't be looked at: {error.strerror}; name another --folder")
    left = f"{usage.free / 1e9:.1f} GB of {usage.total / 1e9:.1f} GB are free where {folder.resolve()} is"
    if usage.free < _LEAST_SPACE * usage.total:
        return Finding("disk", True, f"only {left}: make room, or the engine stops taking work")
    return Finding("disk", False, left)
