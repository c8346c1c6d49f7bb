"""Settings of the service Notifications: variables that start with ``PERDURE_NOTIFICATIONS_``."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from perdure.approvals.links import LinkMinter
from perdure.security.keys import PrivateKey
from services.data_plane.notifications.mail import Mail, MailServer
from services.data_plane.settings import DataPlaneSettings


class NotificationsSettings(DataPlaneSettings):
    """Where Notifications is served, its database, and how mail leaves it.

    Args:
        smtp_url: Where mail is handed over, ``smtp://user:password@host:587``; a secret. Without it, approvers get no
            mail: what waits for them is in their inbox.
        smtp_from: The address that mail comes from.
        link_key_file: Private key that signs the links in mail; without it, mail has none.
        console_url: Address of the console, for links (``PERDURE_CONSOLE_URL``).
    """

    model_config = SettingsConfigDict(env_prefix="PERDURE_NOTIFICATIONS_", env_ignore_empty=True)

    port: int = Field(default=9086, ge=1, le=65535)
    smtp_url: SecretStr | None = None
    smtp_from: str = ""
    link_key_file: Path | None = None
    console_url: str = Field(default="http://127.0.0.1:8088", validation_alias="PERDURE_CONSOLE_URL")

    def mail(self) -> Mail | None:
        """Return how mail leaves; None when it doesn't.

        Raises:
            ConfigurationError: The address of the server or the sender does not fit, or the key can't be read.
        """
        minter = (
            None if self.link_key_file is None else LinkMinter(PrivateKey.load(self.link_key_file), self.console_url)
        )
        if self.smtp_url is None:
            return None
        return Mail(MailServer.parse(self.smtp_url), self.smtp_from, minter)
