"""Messages of the account API."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from services.console.auth.sessions import SessionInfo
from services.console.auth.users import User

Text = Annotated[str, Field(max_length=200)]


class Credentials(BaseModel):
    """A user name and a password."""

    model_config = ConfigDict(extra="forbid")

    name: Text
    password: Text


class NewSession(BaseModel):
    """A new session.

    Args:
        token: For programs: send it as ``Authorization: Bearer``. Browsers get it in a cookie.
        csrf: For scripts in a browser: send it as ``X-CSRF-Token`` with each change.
        ends_at: When the session ends at the latest.
    """

    token: str
    csrf: str
    ends_at: datetime


class Account(BaseModel):
    """The authenticated user, with all sessions."""

    user: User
    sessions: list[SessionInfo]


class PasswordChange(BaseModel):
    """The old and the new password of the authenticated user."""

    model_config = ConfigDict(extra="forbid")

    old: Text
    new: Text
