"""Settings of the service Notifications: variables that start with ``PERDURE_NOTIFICATIONS_``."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.data_plane.settings import DataPlaneSettings


class NotificationsSettings(DataPlaneSettings):
    """Where Notifications is served, and its database."""

    model_config = SettingsConfigDict(env_prefix="PERDURE_NOTIFICATIONS_")

    port: int = Field(default=9086, ge=1, le=65535)
