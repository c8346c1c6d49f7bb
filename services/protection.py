"""How every process of the platform protects itself: as its environment says."""

from __future__ import annotations

import os
from typing import Final

from perdure.security.config import SecurityConfig

PROFILE: Final = "PERDURE_SECURITY_PROFILE"
"""Names the profile, ``production`` or ``development``."""


def security() -> SecurityConfig | None:
    """Return the settings of the profile that ``PERDURE_SECURITY_PROFILE`` names.

    Returns:
        The settings; None where no profile is named, as for a service that is started by hand: whoever reaches the port
        may call.

    Raises:
        ConfigurationError: A setting can't be read.
    """
    return SecurityConfig.from_environment() if os.environ.get(PROFILE) else None
