"""``perdure approvals``: list, show, decide and verify approvals."""

from __future__ import annotations

import json
import secrets
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer
from pydantic import BaseModel, TypeAdapter, ValidationError
from rich.table import Table
from rich.text import Text

from perdure.approvals.audit_log import check_approval
from perdure.approvals.links import LinkMinter
from perdure.approvals.messages import (
    ApprovalStatus,
    AuditEntry,
    DecisionReceipt,
    DelegationReceipt,
    InboxPage,
    InboxQuery,
    LinkRevocationReceipt,
    WithdrawalReceipt,
)
from perdure.approvals.principals import sign_principal_action
from perdure.approvals.schema import APPROVALS, PRINCIPALS, Principal
from perdure.approvals.signatures import SignableAction, sign_action
from perdure.approvals.targets import approval_status, page_inbox
from perdure.cli.options import (
    DEFAULT_INGRESS,
    IngressOption,
    JsonOption,
    KeyFileOption,
    ReasonOption,
    UsageError,
    call_ingress,
    explained,
    known_keys,
    print_answer,
    print_facts,
    suggesting,
)
from perdure.errors import ConfigurationError
from perdure.security.keys import PrivateKey
from perdure.security.signed_actions import ActorKey, SigningRules, SigningSettings
from perdure.security.user_names import ANYONE, GROUP_PREFIX, canonical_user
from perdure.targets import KeyedTarget
from perdure.terminal import console, multiline_text

R = TypeVar("R", bound=BaseModel)

app = typer.Typer(no_args_is_help=True)

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The approval; for a trip, the trip ID.")]
UnsignedActorOption = Annotated[
    str | None,
    typer.Option("--actor", envvar="PERDURE_ACTOR", help="Actor of an unsigned action, instead of a key file."),
]
GroupsOption = Annotated[
    list[str] | None, typer.Option("--group", help="Group of the --actor; may be given several times.")
]
IssuerKeysOption = Annotated[
    str | None,
    typer.Option(envvar="PERDURE_ISSUER_KEYS", help="Public keys of the issuers of credentials, comma-separated."),
]

_NO_ACTOR = "no actor: pass --key-file, or --actor where unsigned actions are accepted"
_DURATION = TypeAdapter(timedelta)
_TIME = TypeAdapter(datetime)


class ApprovalLink(BaseModel):
    """Link that decides once.

    Args:
        approval_id: The approval.
        person: The person that decides with it.
        url: The link, a secret.
        expires_at: Its expiry.
    """

    approval_id: str
    person: str
    url: str
    expires_at: datetime


@app.command("list")
def list_(
    *,
    person: Annotated[str | None, typer.Option(help="List the approvals that this person may decide.")] = None,
    group: Annotated[
        list[str] | None, typer.Option(help="List the approvals of this group; with --person, of several groups.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=500)] = 50,
    after: Annotated[str | None, typer.Option(help="Cursor of the previous page.")] = None,
    as_json: JsonOption = False,
    ingress: IngressOption = DEFAULT_INGRESS,
) -> None:
    """List open approvals, ordered by deadline.

    Without --person and --group, list those that anyone may decide. The list of a person includes the approvals of
    the given groups and those that anyone may decide.
    """
    groups = [each.removeprefix(GROUP_PREFIX) for each in group or []]
    if person is None and len(groups) > 1:
        raise UsageError("several groups need a --person; pass one --group otherwise")
    inbox = person or (f"{GROUP_PREFIX}{groups[0]}" if groups else ANYONE)
    with explained():
        query = InboxQuery(limit=limit, after=after, groups=groups)
    page: InboxPage = call_ingress(ingress, lambda client: client.call(page_inbox, query, key=inbox))
    if as_json:
        console.print_model(page)
        return
    if not page.items and not page.unreadable and page.next is None:
        console.say(f"No open approvals for {inbox}.")
        return
    table = Table("ID", "Deadline", "Quorum", "Requester", "Title")
    for item in page.items:
        delegator = f" (delegated by {item.delegated_by})" if item.delegated_by else ""
        table.add_row(
            item.approval_id,
            f"{item.deadline:%Y-%m-%d %H:%M:%S}",
            str(item.quorum),
            item.requester_text,
            item.title + delegator,
        )
    console.print(table)
    for unreadable in page.unreadable:
        console.say(f"{unreadable.approval_id}: {unreadable.error}")
    console.say(f"{len(page.items)} of {page.total} open approvals for {inbox}")
    if page.next is not None:
        console.say(f"Next page: --after {page.next}")


@app.command()
def show(approval_id: IdArgument, *, as_json: JsonOption = False, ingress: IngressOption = DEFAULT_INGRESS) -> None:
    """Show an approval with its votes and its audit log."""
    approval = _status(ingress, approval_id)
    if as_json:
        console.print_model(approval)
        return
    print_facts(_facts(approval))
    for entry in approval.audit_log:
        console.say(_entry_line(entry))


def _facts(approval: ApprovalStatus) -> dict[str, str | Text]:
    voters = f" by {', '.join(approval.decided_by)}" if approval.decided_by else ""
    return {
        "ID": approval.approval_id,
        "Status": approval.status + voters,
        "Title": approval.title,
        "Requester": approval.requester_text or "none",
        "Key owner": approval.requester_owner,
        "Stage": f"{approval.stage + 1} of {len(approval.stages)}",
        "Approvers": ", ".join(approval.approvers) or "anyone except requester and subject",
        "Quorum": str(approval.quorum),
        "Veto": ", ".join(approval.veto),
        "Pending": ", ".join(approval.pending_approvers),
        "Deadline": f"{approval.deadline:%Y-%m-%d %H:%M:%S %Z}",
        "Reason": approval.reason,
        "Payload": multiline_text(json.dumps(approval.payload, indent=2, ensure_ascii=False)),
        "Digest": approval.payload_digest,
    }


def _entry_line(entry: AuditEntry) -> str:
    signed = " (signed)" if entry.signed_action is not None else ""
    details = ", ".join(f"{name} {value}" for name, value in entry.details.items() if name != "payload_digest")
    words = [f"{entry.at:%Y-%m-%d %H:%M:%S}", entry.actor or "-", entry.action + signed, entry.result, details]
    return "  ".join(word for word in [*words, entry.reason] if word)


def _add_vote_command(action: Literal["approve", "reject"], description: str) -> None:
    @app.command(action, help=description)
    def vote(
        approval_id: IdArgument,
        *,
        early: Annotated[bool, typer.Option("--early", help="Vote before the approval is opened; unsigned.")] = False,
        key_file: KeyFileOption = None,
        actor: UnsignedActorOption = None,
        group: GroupsOption = None,
        reason: ReasonOption = "",
        as_json: JsonOption = False,
        ingress: IngressOption = DEFAULT_INGRESS,
    ) -> None:
        if early and key_file is not None:
            raise UsageError("--early is for unsigned votes: a signature contains the digest of an open approval")
        client = _Client(ingress, approval_id, key_file, actor, group)
        done = client.act(action, {"reason": reason}, DecisionReceipt, must_be_open=not early)
        delegator = f" on behalf of {done.on_behalf_of}" if done.on_behalf_of else ""
        unsigned = "" if done.signed else " (unsigned)"
        text = f"{done.approval_id}: {done.action} by {done.actor}{delegator}{unsigned}, now {done.status}"
        print_answer(done, as_json, text)


_add_vote_command("approve", "Vote for an approval.")
_add_vote_command("reject", "Vote against an approval.")


@app.command()
def delegate(
    approval_id: IdArgument,
    *,
    to: Annotated[str, typer.Option(help="The delegate.")],
    until: Annotated[str, typer.Option(help="Expiry: a time (2030-01-31T12:00Z) or a duration (PT8H).")],
    key_file: KeyFileOption = None,
    actor: UnsignedActorOption = None,
    group: GroupsOption = None,
    reason: ReasonOption = "",
    as_json: JsonOption = False,
    ingress: IngressOption = DEFAULT_INGRESS,
) -> None:
    """Delegate your vote to another person until an expiry."""
    body = {"to": to, "until": _expiry(until).isoformat(), "reason": reason}
    done = _Client(ingress, approval_id, key_file, actor, group).act("delegate", body, DelegationReceipt)
    right = f"{done.to} may vote on behalf of {done.actor} until {done.until:%Y-%m-%d %H:%M:%S %Z}"
    print_answer(done, as_json, f"{done.approval_id}: {right}, now {done.status}")


@app.command()
def withdraw(
    approval_id: IdArgument,
    *,
    key_file: KeyFileOption = None,
    actor: UnsignedActorOption = None,
    reason: ReasonOption = "",
    as_json: JsonOption = False,
    ingress: IngressOption = DEFAULT_INGRESS,
) -> None:
    """Withdraw an approval that you requested."""
    done = _Client(ingress, approval_id, key_file, actor, None).act("withdraw", {"reason": reason}, WithdrawalReceipt)
    print_answer(done, as_json, f"{done.approval_id}: withdrawn by {done.actor}, now {done.status}")


@app.command("revoke-links")
def revoke_links(
    approval_id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="The approval; by default, all approvals of the --person.")
    ] = None,
    *,
    person: Annotated[
        str | None, typer.Option(help="Owner of the links; by default, all links to the approval.")
    ] = None,
    key_file: KeyFileOption = None,
    actor: UnsignedActorOption = None,
    reason: ReasonOption = "",
    as_json: JsonOption = False,
    ingress: IngressOption = DEFAULT_INGRESS,
) -> None:
    """Revoke issued links. Without ID, revoke the person's links, delegations and keys."""
    if approval_id is None:
        _revoke_person(ingress, person, key_file, actor, reason, as_json=as_json)
        return
    body: dict[str, Any] = {"reason": reason}
    if person is not None:
        body["person"] = canonical_user(person)
    done = _Client(ingress, approval_id, key_file, actor, None).act("revoke_links", body, LinkRevocationReceipt)
    links = "all links" if done.person is None else f"the links of {done.person}"
    before = f"{done.at:%Y-%m-%d %H:%M:%S %Z}"
    print_answer(done, as_json, f"{done.approval_id}: {links} from before {before} are revoked, now {done.status}")


def _revoke_person(
    ingress: str, person: str | None, key_file: Path | None, actor: str | None, reason: str, *, as_json: bool
) -> None:
    if person is None:
        raise UsageError("no links selected: pass the ID of an approval, or --person")
    name = canonical_user(person)
    if key_file is not None:
        body = sign_principal_action(ActorKey.load(key_file), name, {"reason": reason}, at=datetime.now(UTC))
    elif actor is not None:
        body = {"actor": actor, "reason": reason}
    else:
        raise UsageError(_NO_ACTOR)
    target: KeyedTarget[dict[str, Any], Principal] = KeyedTarget(PRINCIPALS, "revoke", dict[str, Any], Principal)
    done = call_ingress(ingress, lambda client: client.call(target, body, key=name))
    before = f"{done.revoked_before:%Y-%m-%d %H:%M:%S %Z}"
    print_answer(done, as_json, f"{name}: links, delegations and keys from before {before} are revoked")


@app.command()
def link(
    approval_id: IdArgument,
    *,
    person: Annotated[str, typer.Option(help="The person that decides with the link.")],
    link_key_file: Annotated[
        Path,
        typer.Option(
            envvar="PERDURE_NOTIFICATIONS_LINK_KEY_FILE",
            help="Private key of links, as used by the service that delivers notifications.",
        ),
    ],
    console_url: Annotated[str, typer.Option(envvar="PERDURE_CONSOLE_URL", help="URL of the console.")],
    as_json: JsonOption = False,
    ingress: IngressOption = DEFAULT_INGRESS,
) -> None:
    """Print a link that decides once for a person. The link is a secret."""
    minter = LinkMinter(PrivateKey.load(link_key_file), console_url)
    approval = _status(ingress, approval_id)
    with explained():
        address = minter.mint(
            approval_id=approval_id,
            person=person,
            payload_digest=approval.payload_digest,
            issued_at=max(datetime.now(UTC), approval.opened_at),  # the local clock may be behind
            expires_at=approval.deadline,
            nonce=secrets.token_hex(16),
        )
    answer = ApprovalLink(approval_id=approval_id, person=person, url=address, expires_at=approval.deadline)
    print_answer(answer, as_json, address)


@app.command()
def verify(
    approval_id: IdArgument,
    *,
    issuer_keys: IssuerKeysOption = None,
    as_json: JsonOption = False,
    ingress: IngressOption = DEFAULT_INGRESS,
) -> None:
    """Verify the hash chain and the signatures of an audit log. Exit with 1 if a check fails.

    With PERDURE_ACTIONS=signed, an action without a signature fails.
    """
    check = check_approval(_status(ingress, approval_id), _signing_rules(issuer_keys))
    print_answer(check, as_json, *check.lines)
    if not check.good:
        raise typer.Exit(1)


def _signing_rules(issuer_keys: str | None) -> SigningRules:
    try:
        settings = SigningSettings() if issuer_keys is None else SigningSettings(issuer_keys=issuer_keys)
    except ValidationError as error:
        raise ConfigurationError("PERDURE_ACTIONS must be 'signed' or 'unsigned'") from error
    return settings.rules()


@dataclass(frozen=True)
class _Client:
    """Actions of one person on one approval."""

    ingress: str
    approval_id: str
    key_file: Path | None
    actor: str | None
    groups: list[str] | None

    def act(self, action: SignableAction, body: dict[str, Any], receipt: type[R], *, must_be_open: bool = False) -> R:
        target: KeyedTarget[dict[str, Any], R] = KeyedTarget(APPROVALS, action, dict[str, Any], receipt)
        if self.key_file is not None:
            request = self._sign(action, self.key_file, body)
        else:
            request = self._name_actor(body)
            if must_be_open:
                _status(self.ingress, self.approval_id, "; to vote before that, pass --early")
        with _suggesting(self.approval_id):
            return call_ingress(self.ingress, lambda client: client.call(target, request, key=self.approval_id))

    def _name_actor(self, body: dict[str, Any]) -> dict[str, Any]:
        if self.actor is None:
            raise UsageError(_NO_ACTOR)
        return {**body, "actor": self.actor} | ({"groups": self.groups} if self.groups else {})

    def _sign(self, action: SignableAction, key_file: Path, body: dict[str, Any]) -> dict[str, Any]:
        if self.groups:
            raise UsageError("--group is for unsigned actions: the credential of a key names its groups")
        key = ActorKey.load(key_file)
        with explained():
            digest = _status(self.ingress, self.approval_id).payload_digest
            return sign_action(key, action, self.approval_id, digest, body, at=datetime.now(UTC))


def _status(ingress: str, approval_id: str, hint: str = "") -> ApprovalStatus:
    with _suggesting(approval_id, hint):
        return call_ingress(ingress, lambda client: client.call(approval_status, key=approval_id))


def _suggesting(approval_id: str, hint: str = "") -> AbstractContextManager[None]:
    return suggesting(approval_id, lambda: known_keys(APPROVALS), hint)


def _expiry(text: str) -> datetime:
    try:
        return datetime.now(UTC) + _DURATION.validate_python(text)
    except (ValidationError, OverflowError):
        pass
    try:
        at = _TIME.validate_python(text)
    except ValidationError as error:
        raise UsageError(f"--until: '{text}' is neither a time (2030-01-31T12:00Z) nor a duration (PT8H)") from error
    return at if at.tzinfo is not None else at.astimezone()
