"""The handlers of approvals, for callers that need their names and types only."""

from __future__ import annotations

from typing import Final, cast

from perdure.approvals.inbox_messages import InboxItem, InboxPage, InboxQuery, InboxRemoval
from perdure.approvals.messages import (
    ApprovalAnswer,
    ApprovalStatus,
    DecisionReceipt,
    DecisionRequest,
    DelegationReceipt,
    DelegationRequest,
    Leave,
    LinkDecisionRequest,
    LinkRevocationReceipt,
    LinkRevocationRequest,
    Listen,
    PrincipalStatement,
    ReminderDue,
    RetentionEnd,
    RevocationRequest,
    StageEnd,
    WithdrawalReceipt,
    WithdrawalRequest,
)
from perdure.approvals.request import ApprovalRequest
from perdure.approvals.rights import Principal
from perdure.targets import Target

APPROVALS: Final = "Approvals"
INBOX: Final = "ApprovalInbox"
PRINCIPALS: Final = "Principals"

open_approval = Target(APPROVALS, "open", ApprovalRequest, ApprovalAnswer)
"""Open or join an approval; the answer carries the outcome if there is one already. Not public."""

listen_to_approval = Target(APPROVALS, "listen", Listen, ApprovalAnswer)
"""Return the outcome for a waiter that opened or joined the approval before. Not public."""

leave_approval: Target[Leave | None, None] = Target(APPROVALS, "leave", cast("type[Leave | None]", Leave | None), None)
"""No longer wait for an approval; without a `Leave`, for everyone who waits. Not public."""

end_stage = Target(APPROVALS, "end_stage", StageEnd, None)
"""End a stage whose time is over; the approval sends it to itself. Not public."""

remind = Target(APPROVALS, "remind", ReminderDue, None)
"""Remind those whom an approval waits for; the approval sends it to itself. Not public."""

forget = Target(APPROVALS, "forget", RetentionEnd, None)
"""Forget an approval that ended long ago; the approval sends it to itself. Not public."""

mend = Target(APPROVALS, "mend", None, None)
"""Set the timers of an approval again, and its inbox entries; for one whose opening was cut off. Not public."""

approve = Target(APPROVALS, "approve", DecisionRequest, DecisionReceipt)
reject = Target(APPROVALS, "reject", DecisionRequest, DecisionReceipt)
delegate = Target(APPROVALS, "delegate", DelegationRequest, DelegationReceipt)
withdraw = Target(APPROVALS, "withdraw", WithdrawalRequest, WithdrawalReceipt)
revoke_links = Target(APPROVALS, "revoke_links", LinkRevocationRequest, LinkRevocationReceipt)
decide_by_link = Target(APPROVALS, "decide_by_link", LinkDecisionRequest, DecisionReceipt)
approval_status = Target(APPROVALS, "status", None, ApprovalStatus)

list_inbox = Target(INBOX, "list", None, list[InboxItem])
"""The most urgent open approvals that a person may decide; or those that wait for a group (``group:finance``), or for
`perdure.security.user_names.ANYONE`."""

page_inbox = Target(INBOX, "list", InboxQuery, InboxPage)
"""The same, page by page, and with what waits for a person's groups."""

add_to_inbox = Target(INBOX, "add", InboxItem, None)
remove_from_inbox = Target(INBOX, "remove", InboxRemoval, None)

put_principal = Target(PRINCIPALS, "put", PrincipalStatement, Principal)
"""State a person's rights, as a directory does."""

revoke_principal = Target(PRINCIPALS, "revoke", RevocationRequest, Principal)
"""End what a person was given so far."""

principal_status = Target(PRINCIPALS, "status", None, Principal)
"""Return a person's present rights."""
