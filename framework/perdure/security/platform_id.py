"""The platform's ID: it keeps what belongs to one platform from being used on another."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Final

from perdure.errors import ConfigurationError

__all__ = ["DEFAULT_PLATFORM", "PLATFORM", "check_platform", "platform_from_environment"]

PLATFORM: Final = "PERDURE_PLATFORM"
"""The setting with the platform's ID. All processes of a platform and all of its clients need the same."""

DEFAULT_PLATFORM: Final = "perdure"

_ID: Final = re.compile(r"[\x20-\x7e]{1,64}")


def check_platform(text: str) -> str:
    """Return a platform's ID.

    Args:
        text: The ID.

    Raises:
        ValueError: It is not 1 to 64 printable ASCII characters.
    """
    if not _ID.fullmatch(text):
        raise ValueError(f"the platform ID {text[:80]!r} must have 1 to 64 printable ASCII characters")
    return text


def platform_from_environment(environment: Mapping[str, str] | None = None) -> str:
    """Return the platform's ID that ``PERDURE_PLATFORM`` names, or the default.

    Args:
        environment: Where the variable is; this process's environment by default.

    Raises:
        ConfigurationError: It is no platform ID.
    """
    text = (os.environ if environment is None else environment).get(PLATFORM, DEFAULT_PLATFORM)
    try:
        return check_platform(text)
    except ValueError as error:
        raise ConfigurationError(f"{PLATFORM}: {error}") from error
