"""The services of the library itself, for the processes of an application: `HostedPlatform`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from perdure import schedules
from perdure._runtime.checks import invalid_settings
from perdure.approvals.reconciler import ApprovalReconciler, ApprovalReconcilerConfig
from perdure.approvals.service import ApprovalsConfig
from perdure.approvals.service import definitions as approval_services
from perdure.handlers import Definition
from perdure.saga import hosting as sagas
from perdure.saga.reconciler import SagaReconciler, SagaReconcilerConfig
from perdure.saga.rollback import RETENTION
from perdure.security.codec import codec_from_environment
from perdure.security.keys import PrivateKey, parse_keys


class HostingSettings(BaseSettings):
    """Settings of `HostedPlatform.from_environment`.

    Args:
        admin_url: The engine's admin API (``PERDURE_ADMIN_URL``).
        ingress_url: The engine's ingress (``PERDURE_INGRESS_URL``).
        link_keys: Public keys of approval links, comma-separated (``PERDURE_LINK_KEYS``); empty refuses links.
        webhook_url: Receiver of alerts (``PERDURE_SAGA_RECONCILER_WEBHOOK_URL``); empty for none.
        webhook_key_file: Private key that signs alerts (``PERDURE_SAGA_RECONCILER_WEBHOOK_KEY_FILE``).
    """

    model_config = SettingsConfigDict(frozen=True, env_ignore_empty=True, populate_by_name=True)

    admin_url: str = Field(default="http://127.0.0.1:9070", validation_alias="PERDURE_ADMIN_URL")
    ingress_url: str = Field(default="http://127.0.0.1:8080", validation_alias="PERDURE_INGRESS_URL")
    link_keys: str = Field(default="", validation_alias="PERDURE_LINK_KEYS")
    webhook_url: str | None = Field(default=None, validation_alias="PERDURE_SAGA_RECONCILER_WEBHOOK_URL")
    webhook_key_file: Path | None = Field(default=None, validation_alias="PERDURE_SAGA_RECONCILER_WEBHOOK_KEY_FILE")


class HostedPlatform:
    """Rollbacks, dead letters, approvals, schedules, alerts and the reconcilers, for sagas of one engine.

    Serve one platform per engine, in the process of an application or in a separate process. The reconcilers run while
    it is served.

    Args:
        sagas_config: Settings of the saga reconciler and of alerts, with the addresses of the engine.
        approvals: Settings of approvals.
        approval_reconciler: Settings of the approval reconciler; by default with the same addresses.
        retention: How long an ended rollback and its audit log are stored; None for ever.
        schedule_targets: Handlers that may be scheduled, see `perdure.schedules.definitions`.

    Raises:
        ConfigurationError: A setting is invalid.

    Example:
        hosted = HostedPlatform(SagaReconcilerConfig(admin_url, ingress_url), approvals=ApprovalsConfig(notify=mail))
        raise SystemExit(serve(orders, hosted, port=9080))
    """

    def __init__(
        self,
        sagas_config: SagaReconcilerConfig,
        *,
        approvals: ApprovalsConfig | None = None,
        approval_reconciler: ApprovalReconcilerConfig | None = None,
        retention: timedelta | None = RETENTION,
        schedule_targets: Sequence[str] = ("*",),
    ) -> None:
        self._sagas = SagaReconciler(sagas_config)
        self._approvals = ApprovalReconciler(
            approval_reconciler
            or ApprovalReconcilerConfig(sagas_config.admin_url, sagas_config.ingress_url, codec=sagas_config.codec)
        )
        self._definitions: list[Definition] = [
            *sagas.definitions(retention=retention),
            *approval_services(approvals),
            *schedules.definitions(targets=schedule_targets),
            *self._sagas.definitions(),
            *self._approvals.definitions(),
        ]

    @classmethod
    def from_environment(cls) -> Self:
        """Return a platform with the settings of the environment, see `HostingSettings`.

        Raises:
            ConfigurationError: A setting is invalid, or a key cannot be read.
        """
        try:
            settings = HostingSettings()
        except ValidationError as error:
            raise invalid_settings("the hosted platform", error) from error
        key_file = settings.webhook_key_file
        reconciler = SagaReconcilerConfig(
            admin_url=settings.admin_url,
            ingress_url=settings.ingress_url,
            webhook_url=settings.webhook_url,
            webhook_key=None if key_file is None else PrivateKey.load(key_file),
            codec=codec_from_environment(),
        )
        return cls(reconciler, approvals=ApprovalsConfig(link_keys=parse_keys(settings.link_keys)))

    def definitions(self) -> list[Definition]:
        """Return the services to serve."""
        return self._definitions

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Run the reconcilers while the context is entered; `perdure.serving.serve` enters it."""
        async with self._sagas.watching(), self._approvals.watching():
            yield
