"""The platform that signatures are for: a signature for one platform is refused on every other one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Final, TypeAlias

from pydantic import StringConstraints, TypeAdapter, ValidationError

from perdure.errors import ConfigurationError

__all__ = ["DEFAULT_PLATFORM", "PLATFORM_SETTING", "PlatformId", "platform_from_environment"]

PLATFORM_SETTING: Final = "PERDURE_PLATFORM"
"""The environment variable with the platform's id; every process of a platform has the same."""

DEFAULT_PLATFORM: Final = "perdure"
"""The id of a platform that is given none."""

PlatformId: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]{1,64}$")]
"""A platform's id: 1 to 64 printable ASCII characters without spaces."""

_ID: Final = TypeAdapter(PlatformId)


def platform_from_environment(environment: Mapping[str, str] | None = None) -> str:
    """Return the id of the platform that this process belongs to.

    Args:
        environment: Where the variable is; this process's environment by default.

    Raises:
        ConfigurationError: The id has other characters than printable ASCII, or more than 64.
    """
    given = (os.environ if environment is None else environment).get(PLATFORM_SETTING) or DEFAULT_PLATFORM
    try:
        return _ID.validate_python(given)
    except ValidationError as error:
        raise ConfigurationError(
            f"{PLATFORM_SETTING}={given[:80]!r}: use 1 to 64 printable ASCII characters without spaces"
        ) from error
