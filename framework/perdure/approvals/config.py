"""How approvals are served: whose word is taken, where people are told, how long things are kept."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from perdure._runtime.checks import check_types
from perdure.approvals.notifications import ApprovalNotice
from perdure.approvals.policy import MAX_DELEGATION
from perdure.errors import ConfigurationError
from perdure.security.keys import PublicKey
from perdure.security.signed_actions import SigningRules, get_signing_rules
from perdure.targets import Target

RETENTION = timedelta(days=30)
"""How long an approval that ended is kept, unless it is said otherwise."""


@dataclass(frozen=True, kw_only=True)
class ApprovalsConfig:
    """How approvals are served.

    Args:
        acts: Whether acts must be signed, and whose word counts; the process's rules when left out, see
            `perdure.security.signed_actions`.
        link_keys: Public keys by which links that decide are checked; without any, no link decides. The private key
            belongs to the service that delivers notices, see `perdure.approvals.links`.
        allow_unverified_requester: Open approvals whose requester isn't authenticated although acts have to be signed.
            A caller who may decide can then ask in another name, and decide.
        notify: Who is told of approvals that wait; nobody when None. It is sent an `ApprovalNotice`, at least once,
            with the notice's key as idempotency key.
        retention: How long an approval that ended is kept; early decisions for one that is never opened, too.
        max_delegation: How long a delegation may last.

    Raises:
        ConfigurationError: A duration is not positive.
    """

    acts: SigningRules | None = None
    link_keys: tuple[PublicKey, ...] = ()
    allow_unverified_requester: bool = False
    notify: Target[ApprovalNotice, Any] | None = None
    retention: timedelta = RETENTION
    max_delegation: timedelta = MAX_DELEGATION

    def __post_init__(self) -> None:
        check_types(self)
        if self.retention <= timedelta(0):
            raise ConfigurationError(f"approvals: the retention must be positive; got {self.retention}")
        if self.max_delegation <= timedelta(0):
            raise ConfigurationError(f"approvals: max_delegation must be positive; got {self.max_delegation}")

    @property
    def rules(self) -> SigningRules:
        """Whether acts must be signed, and whose word counts."""
        return self.acts or get_signing_rules()
