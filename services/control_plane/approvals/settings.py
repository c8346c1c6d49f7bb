"""What the approvals service can be told by its environment."""

from __future__ import annotations

from datetime import timedelta

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from perdure.approvals.config import RETENTION, ApprovalsConfig
from perdure.approvals.policy import MAX_DELEGATION
from perdure.approvals.reconciler import ApprovalReconcilerConfig
from perdure.security.codec import codec_from_environment
from perdure.security.keys import parse_keys
from services.contracts.notifications import tell_approver
from services.control_plane.settings import ControlPlaneSettings


class ApprovalsSettings(ControlPlaneSettings):
    """Settings from ``PERDURE_APPROVALS_*``; what other services share has no service's name in its variable.

    Args:
        admin_url: The engine's admin API, where the reconciler looks (``PERDURE_ADMIN_URL``).
        ingress_url: The engine's ingress (``PERDURE_INGRESS_URL``).
        link_keys: Public keys by which links are checked, separated by commas (``PERDURE_LINK_KEYS``); without any, no
            link decides.
        allow_unverified_requester: See `ApprovalsConfig`; a trip over the limit then needs no authenticated caller.
        retention: How long an approval that ended is kept.
        max_delegation: How long a delegation may last.
        reconciler_interval: How often the reconciler looks for approvals that nobody looks after.
    """

    model_config = SettingsConfigDict(
        frozen=True, env_prefix="PERDURE_APPROVALS_", populate_by_name=True, env_ignore_empty=True
    )

    port: int = Field(default=9087, ge=1, le=65535)
    admin_url: str = Field(default="http://127.0.0.1:9070", validation_alias="PERDURE_ADMIN_URL")
    ingress_url: str = Field(default="http://127.0.0.1:8080", validation_alias="PERDURE_INGRESS_URL")
    link_keys: str = Field(default="", validation_alias="PERDURE_LINK_KEYS")
    allow_unverified_requester: bool = False
    retention: timedelta = Field(default=RETENTION, gt=timedelta(0))
    max_delegation: timedelta = Field(default=MAX_DELEGATION, gt=timedelta(0))
    reconciler_interval: timedelta = Field(default=timedelta(seconds=10), gt=timedelta(0))

    def approvals(self) -> ApprovalsConfig:
        """Return how approvals are served; whether acts must be signed is said by `perdure.security.signed_actions`.

        Raises:
            ConfigurationError: A key can't be read.
        """
        return ApprovalsConfig(
            link_keys=parse_keys(self.link_keys),
            allow_unverified_requester=self.allow_unverified_requester,
            notify=tell_approver,
            retention=self.retention,
            max_delegation=self.max_delegation,
        )

    def reconciler(self) -> ApprovalReconcilerConfig:
        """Return where the reconciler looks.

        Raises:
            ConfigurationError: The keys of the journal can't be read.
        """
        return ApprovalReconcilerConfig(
            admin_url=self.admin_url,
            ingress_url=self.ingress_url,
            interval=self.reconciler_interval,
            codec=codec_from_environment(),
        )
