"""Settings of Notifications: environment variables with the prefix ``PERDURE_NOTIFICATIONS_``."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from perdure.approvals.links import LinkMinter
from perdure.security.keys import PrivateKey
from services.data_plane.notifications.mail import Mail, MailServer
from services.data_plane.settings import DataPlaneSettings, default_database


class NotificationsSettings(DataPlaneSettings):
    """Address, database and mail of Notifications.

    Args:
        smtp_url: Mail server, ``smtp://user:password@host:587``. Secret. Without it, approvers get no mail.
        smtp_from: Sender of mail.
        link_key_file: Private key that signs links in mail; without it, mail has no links.
        console_url: Address of the console for links (``PERDURE_CONSOLE_URL``).
    """

    model_config = SettingsConfigDict(env_prefix="PERDURE_NOTIFICATIONS_", env_ignore_empty=True)

    database_url: SecretStr = default_database("notifications")
    port: int = Field(default=9086, ge=1, le=65535)
    smtp_url: SecretStr | None = None
    smtp_from: str = ""
    link_key_file: Path | None = None
    console_url: str = Field(default="http://127.0.0.1:8088", validation_alias="PERDURE_CONSOLE_URL")

    def mail(self) -> Mail | None:
        """Return the mail delivery; None without a mail server.

        Raises:
            ConfigurationError: The mail server, the sender or the key is invalid.
        """
        minter = (
            None if self.link_key_file is None else LinkMinter(PrivateKey.load(self.link_key_file), self.console_url)
        )
        if self.smtp_url is None:
            return None
        return Mail(MailServer.parse(self.smtp_url), self.smtp_from, minter)
