"""Keys of programs that call handlers through the gateway, for administrators."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field

from services.console.api.errors import OWN
from services.console.guard.access import Administrator
from services.console.parts import PartsOf
from services.console.people.api_keys import ApiKey

router = APIRouter(prefix="/api/keys", tags=["keys"], responses=OWN)


class WantedKey(BaseModel):
    """A key to make."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=100)]
    handlers: Annotated[list[Annotated[str, Field(max_length=300)]], Field(min_length=1, max_length=100)]
    days: Annotated[int, Field(ge=1, le=3650)] | None = None


class MadeKey(BaseModel):
    """A key that was made.

    Args:
        secret: The key itself; it is shown this once. Send it as ``Authorization: Bearer``.
        key: What is known of it.
    """

    secret: str
    key: ApiKey


@router.get("", operation_id="list_keys")
async def list_keys(_: Administrator, found: PartsOf) -> list[ApiKey]:
    """List the keys."""
    return await found.api_keys.all()


@router.post("", status_code=201, operation_id="add_key")
async def add_key(wanted: WantedKey, signed_in: Administrator, found: PartsOf) -> MadeKey:
    """Make a key for a program."""
    lifetime = None if wanted.days is None else timedelta(days=wanted.days)
    secret, key = await found.api_keys.add(wanted.name, wanted.handlers, lifetime=lifetime, by=signed_in.person.name)
    return MadeKey(secret=secret, key=key)


@router.delete("/{name}", status_code=204, operation_id="remove_key")
async def remove_key(name: Annotated[str, Path(max_length=100)], signed_in: Administrator, found: PartsOf) -> None:
    """End a key, at once."""
    await found.api_keys.remove(name, by=signed_in.person.name)
