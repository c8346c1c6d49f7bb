"""Links of notices, minted where a notice is delivered.

A link is a secret. So it is made when its notice leaves the platform, in the closure that sends the mail, and is kept
nowhere: not in the journal, not in a database, not in a log.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime

from perdure.approvals.notifications import ApprovalNotice
from perdure.errors import ConfigurationError
from perdure.security.keys import PrivateKey
from perdure.security.links import mint_link
from perdure.security.user_names import ANYONE, is_group

__all__ = ["LinkMinter"]


@dataclass(frozen=True)
class LinkMinter:
    """Mints links that decide.

    Args:
        key: Signs the links. `ApprovalsConfig.link_keys` has its public half.
        console_url: Address of the console; a link's address is ``{console_url}/l/{token}``.

    Raises:
        ConfigurationError: The console's address is missing.

    Example:
        async def deliver(notice: ApprovalNotice) -> None:
            await mail(notice.to, notice.text, minter.link(notice))
    """

    key: PrivateKey
    console_url: str

    def __post_init__(self) -> None:
        if not self.console_url:
            raise ConfigurationError("approvals: links need the console's address, console_url")

    def link(self, notice: ApprovalNotice) -> str | None:
        """Return the address by which a notice's recipient decides; None for a group, and for anyone.

        A notice that is delivered twice has the same link both times, which decides once.

        Args:
            notice: The notice.
        """
        if notice.to == ANYONE or is_group(notice.to):
            return None
        return self.mint(
            notice.approval_id,
            notice.to,
            payload_digest=notice.payload_digest,
            issued_at=notice.at,
            expires_at=notice.until,
            nonce=self._nonce(notice.key),
        )

    def mint(
        self,
        approval_id: str,
        person: str,
        *,
        payload_digest: str,
        issued_at: datetime,
        expires_at: datetime,
        nonce: str,
    ) -> str:
        """Return the address of a link. See `perdure.security.links.mint_link` for arguments and errors.

        Args:
            approval_id: The approval.
            person: Decides with it.
            payload_digest: Digest of what the person is shown.
            issued_at: The moment.
            expires_at: Until when.
            nonce: Makes the link differ from each other link.
        """
        token = mint_link(
            self.key,
            approval_id=approval_id,
            person=person,
            payload_digest=payload_digest,
            issued_at=issued_at,
            expires_at=expires_at,
            nonce=nonce,
        )
        return f"{self.console_url.rstrip('/')}/l/{token}"

    def _nonce(self, notice_key: str) -> str:
        # The same for the same notice, and nothing that another party can compute.
        signature = self.key.sign(b"perdure link nonce 1\n" + notice_key.encode())
        return hashlib.sha256(signature).hexdigest()[:32]
