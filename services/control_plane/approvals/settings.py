"""Settings of the approvals service."""

from __future__ import annotations

from datetime import timedelta

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from perdure.approvals.policy import MAX_DELEGATION
from perdure.approvals.reconciler import ApprovalReconcilerConfig
from perdure.approvals.service import RETENTION, ApprovalsConfig
from perdure.security.codec import codec_from_environment
from perdure.security.keys import parse_keys
from services.contracts.notifications import tell_approver
from services.control_plane.settings import ControlPlaneSettings


class ApprovalsSettings(ControlPlaneSettings):
    """Settings from ``PERDURE_APPROVALS_*``, and from variables that several services share.

    Args:
        admin_url: The engine's admin API (``PERDURE_ADMIN_URL``).
        ingress_url: The engine's ingress (``PERDURE_INGRESS_URL``).
        link_keys: Public keys of links, comma-separated (``PERDURE_LINK_KEYS``); without any, links are refused.
        allow_unverified_requester: See `ApprovalsConfig`; a trip over the limit then needs no authenticated caller.
        retention: Retention of an approval after its end.
        max_delegation: Maximum duration of a delegation.
        reconciler_interval: Interval of the reconciler's scans.
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
        """Return the configuration of the approval services.

        Raises:
            ConfigurationError: A key is invalid.
        """
        return ApprovalsConfig(
            link_keys=parse_keys(self.link_keys),
            allow_unverified_requester=self.allow_unverified_requester,
            notify=tell_approver,
            retention=self.retention,
            max_delegation=self.max_delegation,
        )

    def reconciler(self) -> ApprovalReconcilerConfig:
        """Return the configuration of the reconciler.

        Raises:
            ConfigurationError: The keys of the journal are invalid.
        """
        return ApprovalReconcilerConfig(
            admin_url=self.admin_url,
            ingress_url=self.ingress_url,
            interval=self.reconciler_interval,
            codec=codec_from_environment(),
        )
