"""Settings of the saga service."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from perdure.alerts.conditions import HANGING_LIMIT
from perdure.saga.reconciler import SagaReconcilerConfig
from perdure.saga.rollback import RETENTION
from perdure.security.codec import codec_from_environment
from perdure.security.keys import PrivateKey
from services.control_plane.settings import ControlPlaneSettings


class SagaServiceSettings(ControlPlaneSettings):
    """Settings from ``PERDURE_SAGA_*``; the engine's addresses from ``PERDURE_ADMIN_URL`` and ``PERDURE_INGRESS_URL``.

    Args:
        admin_url: The engine's admin API.
        ingress_url: The engine's ingress.
        reconciler_interval: Time between two scans of the reconciler.
        reconciler_grace: How long an ended orchestration is left alone before it is rolled back.
        reconciler_paused_limit: How long an orchestration may be paused before it is killed and rolled back.
        reconciler_hanging_limit: How long an attempt may run without progress before it raises an alert.
        reconciler_webhook_url: Receiver of alerts; empty for none.
        reconciler_webhook_key_file: Private key (`perdure keys new`) that signs alerts; unsigned if not set.
        retention: How long an ended rollback and its audit log are stored.
        schedule_targets: Handlers that may be scheduled, as comma-separated patterns of ``Service/handler``. A schedule
            can start handlers that are private on the ingress. Where actions need no signature, any caller of the
            ingress can create one.
    """

    model_config = SettingsConfigDict(frozen=True, env_prefix="PERDURE_SAGA_", populate_by_name=True)

    port: int = Field(default=9082, ge=1, le=65535)
    admin_url: str = Field(default="http://127.0.0.1:9070", validation_alias="PERDURE_ADMIN_URL")
    ingress_url: str = Field(default="http://127.0.0.1:8080", validation_alias="PERDURE_INGRESS_URL")
    reconciler_interval: timedelta = timedelta(seconds=5)
    reconciler_grace: timedelta = timedelta(seconds=5)
    reconciler_paused_limit: timedelta = timedelta(hours=1)
    reconciler_hanging_limit: timedelta = HANGING_LIMIT
    reconciler_webhook_url: str | None = None
    reconciler_webhook_key_file: Path | None = None
    retention: timedelta = RETENTION
    schedule_targets: Annotated[tuple[str, ...], NoDecode] = ("Trips/run",)

    @field_validator("schedule_targets", mode="before")
    @classmethod
    def _split_at_commas(cls, value: Any) -> Any:
        return tuple(part for each in value.split(",") if (part := each.strip())) if isinstance(value, str) else value

    def reconciler(self) -> SagaReconcilerConfig:
        """Return the reconciler's configuration.

        Raises:
            ConfigurationError: A key of the journal or of the webhook cannot be read.
        """
        return SagaReconcilerConfig(
            admin_url=self.admin_url,
            ingress_url=self.ingress_url,
            interval=self.reconciler_interval,
            grace=self.reconciler_grace,
            paused_limit=self.reconciler_paused_limit,
            hanging_limit=self.reconciler_hanging_limit,
            webhook_url=self.reconciler_webhook_url or None,
            webhook_key=None
            if self.reconciler_webhook_key_file is None
            else PrivateKey.load(self.reconciler_webhook_key_file),
            codec=codec_from_environment(),
        )
