"""Messages of the users API."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from services.console.auth.roles import Role

Password = Annotated[str, Field(max_length=200)]
Roles = Annotated[list[Role], Field(min_length=1, max_length=len(Role))]
Groups = Annotated[list[Annotated[str, Field(max_length=100)]], Field(max_length=50)]


class NewUser(BaseModel):
    """A user to add."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=200)]
    password: Password
    roles: Roles
    groups: Groups = []


class UserChange(BaseModel):
    """A change of a user's rights, which ends the user's sessions. Null keeps a value."""

    model_config = ConfigDict(extra="forbid")

    roles: Roles | None = None
    groups: Groups | None = None
    disabled: bool | None = None


class NewPassword(BaseModel):
    """A new password of a user."""

    model_config = ConfigDict(extra="forbid")

    password: Password
