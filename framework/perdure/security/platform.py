"""Platform ID: signatures and encrypted values are valid on one platform only."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Final, TypeAlias

from pydantic import StringConstraints, TypeAdapter, ValidationError

from perdure.errors import ConfigurationError

PLATFORM_SETTING: Final = "PERDURE_PLATFORM"
"""The environment variable with the platform's ID, the same in all processes of a platform."""

DEFAULT_PLATFORM: Final = "perdure"

PlatformId: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]{1,64}$")]
"""Platform ID of 1 to 64 printable ASCII characters without spaces."""

_ID: Final = TypeAdapter(PlatformId)


def platform_from_environment(environment: Mapping[str, str] | None = None) -> str:
    """Return the platform ID of this process.

    Args:
        environment: The environment variables; those of this process by default.

    Raises:
        ConfigurationError: The ID is invalid.
    """
    value = (os.environ if environment is None else environment).get(PLATFORM_SETTING) or DEFAULT_PLATFORM
    try:
        return _ID.validate_python(value)
    except ValidationError as error:
        raise ConfigurationError(
            f"{PLATFORM_SETTING}={value[:80]!r}: use 1 to 64 printable ASCII characters without spaces"
        ) from error
