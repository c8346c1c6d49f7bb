"""Links by which a recipient decides an approval.

A link is a secret. The service that delivers a notification mints the link while it sends the mail, and stores it
nowhere: not in the journal, a database or a log.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Unpack

from perdure.approvals.notifications import ApprovalNotification
from perdure.errors import ConfigurationError
from perdure.security.keys import PrivateKey
from perdure.security.links import LinkFields, mint_link
from perdure.security.user_names import ANYONE, is_group


@dataclass(frozen=True)
class LinkMinter:
    """Mints links.

    Args:
        key: Signs the links. `ApprovalsConfig.link_keys` has its public half.
        console_url: Base URL of the console; a link is ``{console_url}/l/{token}``.

    Raises:
        ConfigurationError: The console's URL is missing.

    Example:
        async def deliver(notification: ApprovalNotification) -> None:
            await mail(notification.to, notification.text, minter.link(notification))
    """

    key: PrivateKey
    console_url: str

    def __post_init__(self) -> None:
        if not self.console_url:
            raise ConfigurationError("approvals: console_url is empty, and links need the console's URL")

    def link(self, notification: ApprovalNotification) -> str | None:
        """Return the link of a notification; None for a group and for ``anyone``.

        Repeated deliveries of a notification have the same link, which decides once.

        Args:
            notification: The notification.
        """
        if notification.to == ANYONE or is_group(notification.to):
            return None
        return self.mint(
            approval_id=notification.approval_id,
            person=notification.to,
            payload_digest=notification.payload_digest,
            issued_at=notification.at,
            expires_at=notification.until,
            nonce=self._nonce(notification.key),
        )

    def mint(self, **fields: Unpack[LinkFields]) -> str:
        """Return a link. See `perdure.security.links.mint_link` for arguments and errors."""
        return f"{self.console_url.rstrip('/')}/l/{mint_link(self.key, **fields)}"

    def _nonce(self, notification_key: str) -> str:
        # Deterministic for the notification, and secret: only the owner of the key can compute it.
        signature = self.key.sign(b"perdure link nonce 1\n" + notification_key.encode())
        return hashlib.sha256(signature).hexdigest()[:32]
