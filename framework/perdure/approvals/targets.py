"""Typed targets of the approval services."""

from __future__ import annotations

from typing import cast

from perdure.approvals import messages
from perdure.approvals.request import ApprovalRequest
from perdure.approvals.schema import APPROVALS, INBOX, PRINCIPALS, Principal
from perdure.targets import KeyedTarget

approve = KeyedTarget(APPROVALS, "approve", messages.DecisionRequest, messages.DecisionReceipt)
reject = KeyedTarget(APPROVALS, "reject", messages.DecisionRequest, messages.DecisionReceipt)
delegate = KeyedTarget(APPROVALS, "delegate", messages.DelegationRequest, messages.DelegationReceipt)
withdraw = KeyedTarget(APPROVALS, "withdraw", messages.WithdrawalRequest, messages.WithdrawalReceipt)
revoke_links = KeyedTarget(APPROVALS, "revoke_links", messages.LinkRevocationRequest, messages.LinkRevocationReceipt)
decide_by_link = KeyedTarget(APPROVALS, "decide_by_link", messages.LinkDecisionRequest, messages.DecisionReceipt)
approval_status = KeyedTarget(APPROVALS, "status", None, messages.ApprovalStatus)

list_inbox = KeyedTarget(INBOX, "list", None, list[messages.InboxItem])
"""Return the most urgent open approvals of a person, of a group (``group:finance``) or of
`perdure.security.user_names.ANYONE`."""

page_inbox = KeyedTarget(INBOX, "list", messages.InboxQuery, messages.InboxPage)
"""Return a page of open approvals, including those of a person's groups."""

put_principal = KeyedTarget(PRINCIPALS, "put", messages.PrincipalStatement, Principal)
revoke_principal = KeyedTarget(PRINCIPALS, "revoke", messages.RevocationRequest, Principal)
principal_status = KeyedTarget(PRINCIPALS, "status", None, Principal)

# The ingress does not expose the following handlers.

open_approval = KeyedTarget(APPROVALS, "open", ApprovalRequest, messages.ApprovalAnswer)
listen_to_approval = KeyedTarget(APPROVALS, "listen", messages.Listen, messages.ApprovalAnswer)
leave_approval: KeyedTarget[messages.Leave | None, None] = KeyedTarget(
    APPROVALS, "leave", cast("type[messages.Leave | None]", messages.Leave | None), None
)
end_stage = KeyedTarget(APPROVALS, "end_stage", messages.StageEnd, None)
remind = KeyedTarget(APPROVALS, "remind", messages.ReminderDue, None)
purge_approval = KeyedTarget(APPROVALS, "purge", messages.RetentionEnd, None)
repair_approval = KeyedTarget(APPROVALS, "repair", None, None)
add_to_inbox = KeyedTarget(INBOX, "add", messages.InboxItem, None)
remove_from_inbox = KeyedTarget(INBOX, "remove", messages.InboxRemoval, None)
