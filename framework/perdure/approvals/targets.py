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
from perdure.targets import KeyedTarget

approve = KeyedTarget(APPROVALS, "approve", DecisionRequest, DecisionReceipt)
reject = KeyedTarget(APPROVALS, "reject", DecisionRequest, DecisionReceipt)
delegate = KeyedTarget(APPROVALS, "delegate", DelegationRequest, DelegationReceipt)
withdraw = KeyedTarget(APPROVALS, "withdraw", WithdrawalRequest, WithdrawalReceipt)
revoke_links = KeyedTarget(APPROVALS, "revoke_links", LinkRevocationRequest, LinkRevocationReceipt)
decide_by_link = KeyedTarget(APPROVALS, "decide_by_link", LinkDecisionRequest, DecisionReceipt)
approval_status = KeyedTarget(APPROVALS, "status", None, ApprovalStatus)

list_inbox = KeyedTarget(INBOX, "list", None, list[InboxItem])
"""Return the most urgent open approvals of a person, of a group (``group:finance``) or of
`perdure.security.user_names.ANYONE`."""

page_inbox = KeyedTarget(INBOX, "list", InboxQuery, InboxPage)
"""Return a page of open approvals, including those of a person's groups."""

put_principal = KeyedTarget(PRINCIPALS, "put", PrincipalStatement, Principal)
revoke_principal = KeyedTarget(PRINCIPALS, "revoke", RevocationRequest, Principal)
principal_status = KeyedTarget(PRINCIPALS, "status", None, Principal)

# The ingress does not expose the following handlers.

open_approval = KeyedTarget(APPROVALS, "open", ApprovalRequest, ApprovalAnswer)
listen_to_approval = KeyedTarget(APPROVALS, "listen", Listen, ApprovalAnswer)
leave_approval: KeyedTarget[Leave | None, None] = KeyedTarget(
    APPROVALS, "leave", cast("type[Leave | None]", Leave | None), None
)
end_stage = KeyedTarget(APPROVALS, "end_stage", StageEnd, None)
remind = KeyedTarget(APPROVALS, "remind", ReminderDue, None)
purge_approval = KeyedTarget(APPROVALS, "purge", RetentionEnd, None)
repair_approval = KeyedTarget(APPROVALS, "repair", None, None)
add_to_inbox = KeyedTarget(INBOX, "add", InboxItem, None)
remove_from_inbox = KeyedTarget(INBOX, "remove", InboxRemoval, None)
