"""How approvals are served: whose word is taken, where people are told, how long things are kept."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from perdure.approvals.notices import ApprovalNotice
from perdure.checking import check_types
from perdure.errors import ConfigurationError
from perdure.security.keys import PrivateKey, PublicKey
from perdure.security.rules import ActRules, get_act_rules
from perdure.targets import Target

RETENTION = timedelta(days=30)
"""How long an approval that ended is kept, unless it is said otherwise."""


@dataclass(frozen=True, kw_only=True)
class ApprovalsConfig:
    """How approvals are served.

    Args:
        acts: Whether acts must be signed, and whose word counts; the process's rules when left out, see
            `perdure.security.rules`.
        link_key: Signs links that decide; None for no links.
        old_link_keys: Keys of links that were sent before the key was changed.
        console_url: Where the console is; a link's address is ``{console_url}/l/{token}``.
        allow_unverified_requester: Open approvals whose requester isn't authenticated although acts have to be signed.
            A caller who may decide can then ask in another name, and decide.
        notify: Who is told of approvals that wait; nobody when None. It is sent an `ApprovalNotice`, at least once,
            with the notice's key as idempotency key.
        retention: How long an approval that ended is kept; early decisions for one that is never opened, too.

    Raises:
        ConfigurationError: Links without an address, or no retention.
    """

    acts: ActRules | None = None
    link_key: PrivateKey | None = None
    old_link_keys: tuple[PublicKey, ...] = ()
    console_url: str = ""
    allow_unverified_requester: bool = False
    notify: Target[ApprovalNotice, Any] | None = None
    retention: timedelta = RETENTION

    def __post_init__(self) -> None:
        check_types(self)
        if self.link_key is not None and not self.console_url:
            raise ConfigurationError("approvals: links need the console's address, console_url")
        if self.retention <= timedelta(0):
            raise ConfigurationError(f"approvals: the retention must be positive; got {self.retention}")

    @property
    def rules(self) -> ActRules:
        """Whether acts must be signed, and whose word counts."""
        return self.acts or get_act_rules()

    @property
    def link_keys(self) -> tuple[PublicKey, ...]:
        """The keys by which links are checked."""
        return self.old_link_keys if self.link_key is None else (self.link_key.public, *self.old_link_keys)
