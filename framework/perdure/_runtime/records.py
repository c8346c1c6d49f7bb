"""Base of the records that Perdure's own services store, with the version of their layout."""

from __future__ import annotations

from typing import Final, Self

from pydantic import BaseModel, ConfigDict, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

RECORD_VERSION: Final = 1
"""Version of the layout of all stored records; raised with a change that older code would misread."""


class StoredRecord(BaseModel):
    """A stored record. A record of another version is refused when it is read."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    record_version: int = RECORD_VERSION

    @model_validator(mode="after")
    def _check_version(self, info: ValidationInfo) -> Self:
        is_missing = info.mode == "json" and "record_version" not in self.model_fields_set
        if is_missing or self.record_version != RECORD_VERSION:
            raise PydanticCustomError(
                "record_version",
                "the record has version {found}, and this code reads version {known}",
                {"found": 0 if is_missing else self.record_version, "known": RECORD_VERSION},
            )
        return self
