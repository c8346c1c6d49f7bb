"""What the approvals service can be told by its environment."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from perdure.approvals.config import RETENTION, ApprovalsConfig
from perdure.approvals.sentinel import ApprovalSentinelConfig
from perdure.security.codec import codec_from_environment
from perdure.security.keys import PrivateKey, PublicKey
from services.contracts.notifications import tell_approver
from services.control_plane.settings import ControlPlaneSettings


class ApprovalsSettings(ControlPlaneSettings):
    """Settings from ``PERDURE_APPROVALS_*``; what other services share has no service's name in its variable.

    Args:
        admin_url: The engine's admin API, where the sentinel looks (``PERDURE_ADMIN_URL``).
        ingress_url: The engine's ingress (``PERDURE_INGRESS_URL``).
        link_key_file: Private key that signs links; without it, notices have none.
        old_link_keys: Public keys of links that were sent before the key was changed, separated by commas.
        console_url: Address of the console, for links (``PERDURE_CONSOLE_URL``).
        allow_unverified_requester: See `ApprovalsConfig`; a trip over the limit then needs no authenticated caller.
        retention: How long an approval that ended is kept.
        sentinel_interval: How often the sentinel looks for approvals that nobody looks after.
    """

    model_config = SettingsConfigDict(
        frozen=True, env_prefix="PERDURE_APPROVALS_", populate_by_name=True, env_ignore_empty=True
    )

    port: int = Field(default=9087, ge=1, le=65535)
    admin_url: str = Field(default="http://127.0.0.1:9070", validation_alias="PERDURE_ADMIN_URL")
    ingress_url: str = Field(default="http://127.0.0.1:8080", validation_alias="PERDURE_INGRESS_URL")
    link_key_file: Path | None = None
    old_link_keys: str = ""
    console_url: str = Field(default="http://127.0.0.1:8088", validation_alias="PERDURE_CONSOLE_URL")
    allow_unverified_requester: bool = False
    retention: timedelta = Field(default=RETENTION, gt=timedelta(0))
    sentinel_interval: timedelta = Field(default=timedelta(seconds=10), gt=timedelta(0))

    def approvals(self) -> ApprovalsConfig:
        """Return how approvals are served; whether acts must be signed is said by `perdure.security.rules`.

        Raises:
            ConfigurationError: A key can't be read.
        """
        old = (key for part in self.old_link_keys.split(",") if (key := part.strip()))
        return ApprovalsConfig(
            link_key=None if self.link_key_file is None else PrivateKey.load(self.link_key_file),
            old_link_keys=tuple(PublicKey.parse(key) for key in old),
            console_url=self.console_url,
            allow_unverified_requester=self.allow_unverified_requester,
            notify=tell_approver,
            retention=self.retention,
        )

    def sentinel(self) -> ApprovalSentinelConfig:
        """Return where the sentinel looks.

        Raises:
            ConfigurationError: The keys of the journal can't be read.
        """
        return ApprovalSentinelConfig(
            admin_url=self.admin_url,
            ingress_url=self.ingress_url,
            interval=self.sentinel_interval,
            codec=codec_from_environment(),
        )
