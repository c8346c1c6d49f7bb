"""Typed targets of the approval services."""

from __future__ import annotations

from typing import cast

from perdure.approvals.messages import (
    ApprovalAnswer,
    ApprovalStatus,
    DecisionReceipt,
    DecisionRequest,
    DelegationReceipt,
    DelegationRequest,
    InboxItem,
    InboxPage,
    InboxQuery,
    InboxRemoval,
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
from perdure.approvals.schema import APPROVALS, INBOX, PRINCIPALS, Principal
from perdure.targets import Target

approve = Target(APPROVALS, "approve", DecisionRequest, DecisionReceipt)
reject = Target(APPROVALS, "reject", DecisionRequest, DecisionReceipt)
delegate = Target(APPROVALS, "delegate", DelegationRequest, DelegationReceipt)
withdraw = Target(APPROVALS, "withdraw", WithdrawalRequest, WithdrawalReceipt)
revoke_links = Target(APPROVALS, "revoke_links", LinkRevocationRequest, LinkRevocationReceipt)
decide_by_link = Target(APPROVALS, "decide_by_link", LinkDecisionRequest, DecisionReceipt)
approval_status = Target(APPROVALS, "status", None, ApprovalStatus)

list_inbox = Target(INBOX, "list", None, list[InboxItem])
"""Return the most urgent open approvals of a person, of a group (``group:finance``) or of
`perdure.security.user_names.ANYONE`."""

page_inbox = Target(INBOX, "list", InboxQuery, InboxPage)
"""Return a page of open approvals, including those of a person's groups."""

put_principal = Target(PRINCIPALS, "put", PrincipalStatement, Principal)
revoke_principal = Target(PRINCIPALS, "revoke", RevocationRequest, Principal)
principal_status = Target(PRINCIPALS, "status", None, Principal)

# The ingress does not expose the following handlers.

open_approval = Target(APPROVALS, "open", ApprovalRequest, ApprovalAnswer)
listen_to_approval = Target(APPROVALS, "listen", Listen, ApprovalAnswer)
leave_approval: Target[Leave | None, None] = Target(APPROVALS, "leave", cast("type[Leave | None]", Leave | None), None)
end_stage = Target(APPROVALS, "end_stage", StageEnd, None)
remind = Target(APPROVALS, "remind", ReminderDue, None)
purge_approval = Target(APPROVALS, "purge", RetentionEnd, None)
repair_approval = Target(APPROVALS, "repair", None, None)
add_to_inbox = Target(INBOX, "add", InboxItem, None)
remove_from_inbox = Target(INBOX, "remove", InboxRemoval, None)
