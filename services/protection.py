"""Security profile of the platform's processes."""

from __future__ import annotations

import os
from typing import Final

from perdure.security.config import SecurityConfig

PROFILE: Final = "PERDURE_SECURITY_PROFILE"
"""Environment variable of the profile, ``production`` or ``development``."""


def security() -> SecurityConfig | None:
    """Return the security settings of ``PERDURE_SECURITY_PROFILE``; None if it is unset, which disables protection.

    Raises:
        ConfigurationError: A setting is invalid.
    """
    return SecurityConfig.from_environment() if os.environ.get(PROFILE) else None
