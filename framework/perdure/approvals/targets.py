"""Typed targets of the approval services."""

from __future__ import annotations

from typing import cast

from perdure.approvals import messages
from perdure.approvals.request import ApprovalRequest
from perdure.approvals.schema import APPROVALS, INBOX, PRINCIPALS, Principal
from perdure.targets import Target

approve = Target(APPROVALS, "approve", messages.DecisionRequest, messages.DecisionReceipt)
reject = Target(APPROVALS, "reject", messages.DecisionRequest, messages.DecisionReceipt)
delegate = Target(APPROVALS, "delegate", messages.DelegationRequest, messages.DelegationReceipt)
withdraw = Target(APPROVALS, "withdraw", messages.WithdrawalRequest, messages.WithdrawalReceipt)
revoke_links = Target(APPROVALS, "revoke_links", messages.LinkRevocationRequest, messages.LinkRevocationReceipt)
decide_by_link = Target(APPROVALS, "decide_by_link", messages.LinkDecisionRequest, messages.DecisionReceipt)
approval_status = Target(APPROVALS, "status", None, messages.ApprovalStatus)

list_inbox = Target(INBOX, "list", None, list[messages.InboxItem])
"""Return the most urgent open approvals of a person, of a group (``group:finance``) or of
`perdure.security.user_names.ANYONE`."""

page_inbox = Target(INBOX, "list", messages.InboxQuery, messages.InboxPage)
"""Return a page of open approvals, including those of a person's groups."""

put_principal = Target(PRINCIPALS, "put", messages.PrincipalStatement, Principal)
revoke_principal = Target(PRINCIPALS, "revoke", messages.RevocationRequest, Principal)
principal_status = Target(PRINCIPALS, "status", None, Principal)

# The ingress does not expose the following handlers.

open_approval = Target(APPROVALS, "open", ApprovalRequest, messages.ApprovalAnswer)
listen_to_approval = Target(APPROVALS, "listen", messages.Listen, messages.ApprovalAnswer)
leave_approval: Target[messages.Leave | None, None] = Target(
    APPROVALS, "leave", cast("type[messages.Leave | None]", messages.Leave | None), None
)
end_stage = Target(APPROVALS, "end_stage", messages.StageEnd, None)
remind = Target(APPROVALS, "remind", messages.ReminderDue, None)
purge_approval = Target(APPROVALS, "purge", messages.RetentionEnd, None)
repair_approval = Target(APPROVALS, "repair", None, None)
add_to_inbox = Target(INBOX, "add", messages.InboxItem, None)
remove_from_inbox = Target(INBOX, "remove", messages.InboxRemoval, None)
