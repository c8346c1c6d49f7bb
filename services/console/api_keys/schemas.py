"""Messages of the API keys API."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from services.console.auth.api_keys import ApiKey

MAX_DAYS = 3650


class NewApiKey(BaseModel):
    """An API key to create; `days` is its lifetime, unlimited by default."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=100)]
    handlers: Annotated[list[Annotated[str, Field(max_length=300)]], Field(min_length=1, max_length=100)]
    days: Annotated[int, Field(ge=1, le=MAX_DAYS)] | None = None


class CreatedApiKey(BaseModel):
    """A created API key. The secret is shown only once; send it as ``Authorization: Bearer``."""

    secret: str
    key: ApiKey
