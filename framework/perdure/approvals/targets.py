"""The handlers of approvals, for callers that need their names and types only."""

from __future__ import annotations

from typing import Final, cast

from perdure.approvals.messages import (
    ApprovalRequest,
    ApprovalStatus,
    DecisionReceipt,
    DecisionRequest,
    Expiry,
    InboxItem,
    Withdrawal,
)
from perdure.targets import Target

APPROVALS: Final = "Approvals"
INBOX: Final = "ApprovalInbox"

open_approval = Target(APPROVALS, "open", ApprovalRequest, type(None))
"""Open an approval, and have its outcome sent to the request's awakeable. Not public."""

withdraw_approval: Target[Withdrawal | None, None] = Target(
    APPROVALS, "withdraw", cast("type[Withdrawal | None]", Withdrawal | None), type(None)
)
"""Withdraw from an approval; without a `Withdrawal`, for everyone who waits. Not public."""

expire_approval = Target(APPROVALS, "expire", Expiry, type(None))
"""End an approval whose time is over; `open` sends it to itself. Not public."""

approve = Target(APPROVALS, "approve", DecisionRequest, DecisionReceipt)
reject = Target(APPROVALS, "reject", DecisionRequest, DecisionReceipt)
approval_status = Target(APPROVALS, "status", type(None), ApprovalStatus)

list_inbox = Target(INBOX, "list", type(None), list[InboxItem])
"""The open approvals that wait for a person, or, under the key `perdure.approvals.people.ANYONE`, for anyone."""

add_to_inbox = Target(INBOX, "add", InboxItem, type(None))
remove_from_inbox = Target(INBOX, "remove", str, type(None))
