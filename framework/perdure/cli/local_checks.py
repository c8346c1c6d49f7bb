"""Checks of `perdure doctor` on this machine: keys and disk."""

from __future__ import annotations

import os
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
_MIN_FREE_SHARE: Final = 0.05
_EXPIRY_WARNING: Final = timedelta(days=7)


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    Args:
        subject: The checked component.
        is_problem: Whether an action is required.
        text: The state, and the required action.
    """

    subject: str
    is_problem: bool
    text: str


def key_findings(environment: Mapping[str, str]) -> list[Finding]:
    """Check the key files that environment variables name."""
    checks: list[tuple[str, Callable[[], str]]] = [
        (name, lambda path=Path(path): _check_key(path))  # type: ignore[misc] # the default binds the path
        for name, path in sorted(environment.items())
        if name.startswith("PERDURE_") and name.endswith("_KEY_FILE") and name != _ACTOR_KEY_FILE and path
    ]
    if path := environment.get(_ACTOR_KEY_FILE):
        checks.append((_ACTOR_KEY_FILE, lambda: _check_actor_key(Path(path), datetime.now(UTC))))
    if environment.get(ENCRYPTION_KEYS_FILE):
        checks.append((ENCRYPTION_KEYS_FILE, lambda: _check_encryption_keys(environment)))
    findings = []
    for name, check in checks:
        try:
            findings.append(Finding("keys", False, f"{name}: {check()}"))
        except ConfigurationError as error:
            findings.append(Finding("keys", True, f"{name}: {error}"))
    return findings or [Finding("keys", False, "no environment variable names a key file")]


def _check_key(path: Path) -> str:
    PrivateKey.load(path)
    return "readable, by its owner only"


def _check_encryption_keys(environment: Mapping[str, str]) -> str:
    codec_from_environment(environment)
    return "readable, by its owner only"


def _check_actor_key(path: Path, now: datetime) -> str:
    credential = ActorKey.load(path).credential
    left = credential.expires_at - now
    renewal = f"issue a new one for {credential.actor}: perdure actors issue"
    if left <= timedelta(0):
        raise ConfigurationError(
            f"the credential in {path} expired at {credential.expires_at:%Y-%m-%d %H:%M} UTC; {renewal}"
        )
    if credential.issued_at > now:
        raise ConfigurationError(
            f"the credential in {path} is valid from {credential.issued_at:%Y-%m-%d %H:%M} UTC; check the clock"
        )
    warning = f"; {renewal}" if left < _EXPIRY_WARNING else ""
    return f"key of {credential.actor}, valid until {credential.expires_at:%Y-%m-%d %H:%M} UTC{warning}"


def disk_finding(folder: Path) -> Finding:
    """Check the free space of the disk with a folder."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError as error:
        return Finding("disk", True, f"cannot read {folder}: {error.strerror}; pass another --folder")
    if os.statvfs(folder).f_flag & os.ST_RDONLY:
        return Finding("disk", True, f"{folder.resolve()} is read-only; remount it writable, or pass another --folder")
    space = f"{usage.free / 1e9:.1f} GB of {usage.total / 1e9:.1f} GB free at {folder.resolve()}"
    if usage.free < _MIN_FREE_SHARE * usage.total:
        return Finding("disk", True, f"only {space}; free some, or the engine stops accepting work")
    return Finding("disk", False, space)
