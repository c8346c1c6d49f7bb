"""Where the reconciler of sagas looks, and when it acts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from perdure._runtime.checks import check_types
from perdure._runtime.places import ValueCodec
from perdure.errors import ConfigurationError
from perdure.security.keys import PrivateKey

__all__ = ["SagaReconcilerConfig"]


@dataclass(frozen=True)
class SagaReconcilerConfig:
    """Where the reconciler looks, and when it acts.

    Args:
        admin_url: The engine's admin API.
        ingress_url: The engine's ingress.
        interval: How often it looks.
        grace: How long an ended orchestration is left alone, and a call of it that failed: a thread may still commit.
        paused_limit: How long an orchestration may be paused before it is killed, and rolled back after the grace; None
            for ever.
        webhook_url: Told of trouble and of each find with a POST of JSON, see `perdure.alerts.service`.
        webhook_key: Signs what the webhook is told; unsigned when None.
        alert_retries: After how many failed attempts an invocation is trouble.
        codec: What the services' journal is encrypted with; None when it is in clear.

    Raises:
        ConfigurationError: An interval that is not positive, or a webhook that is no address.
    """

    admin_url: str
    ingress_url: str
    interval: timedelta = timedelta(seconds=5)
    grace: timedelta = timedelta(seconds=5)
    paused_limit: timedelta | None = timedelta(hours=1)
    webhook_url: str | None = None
    webhook_key: PrivateKey | None = None
    alert_retries: int = 5
    codec: ValueCodec | None = None

    def __post_init__(self) -> None:
        check_types(self)
        if self.interval <= timedelta(0):
            raise ConfigurationError(f"SagaReconcilerConfig.interval must be positive; got {self.interval}")
        if self.grace < timedelta(0) or (self.paused_limit or timedelta(0)) < timedelta(0):
            raise ConfigurationError("SagaReconcilerConfig.grace and paused_limit must not be negative")
        if self.alert_retries < 1:
            raise ConfigurationError(f"SagaReconcilerConfig.alert_retries must be 1 or more; got {self.alert_retries}")
        if self.webhook_url is not None and not self.webhook_url.startswith(("https://", "http://")):
            host = self.webhook_url.partition("/")[0][:40]  # what comes after it may be a secret
            raise ConfigurationError(
                f"SagaReconcilerConfig.webhook_url: '{host}…' is no address that can be posted to; it would begin with https://"
            )
