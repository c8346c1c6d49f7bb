"""`perdure approvals`: what waits for whom, decide it, and check that its audit log is as it was written."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer
from pydantic import TypeAdapter, ValidationError
from rich.table import Table
from rich.text import Text

from perdure._runtime.serdes import invalid_input
from perdure.approvals.inbox_messages import InboxPage, InboxQuery
from perdure.approvals.links import LinkMinter
from perdure.approvals.messages import (
    ApprovalStatus,
    AuditEntry,
    DecisionReceipt,
    DelegationReceipt,
    LinkRevocationReceipt,
    WithdrawalReceipt,
)
from perdure.approvals.principals import sign_principal_action
from perdure.approvals.request import asked_by
from perdure.approvals.rights import Principal
from perdure.approvals.signatures import SignableAction, sign_action
from perdure.approvals.targets import APPROVALS, PRINCIPALS, approval_status, page_inbox
from perdure.approvals.verification import check_approval
from perdure.cli.options import (
    DEFAULT_INGRESS,
    IngressOption,
    JsonOption,
    KeyFileOption,
    ReasonOption,
    call_ingress,
    print_json,
)
from perdure.errors import ConfigurationError, IngressError
from perdure.security.keys import PrivateKey
from perdure.security.signed_actions import ActorKey
from perdure.security.signing_rules import SigningRules, SigningSettings
from perdure.security.user_names import ANYONE, GROUP_PREFIX, canonical_user
from perdure.targets import Target
from perdure.terminal import console, multiline_text

R = TypeVar("R")

app = typer.Typer(no_args_is_help=True)

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The approval; for a trip, the trip's id.")]
UnsignedActorOption = Annotated[
    str | None,
    typer.Option("--actor", envvar="PERDURE_ACTOR", help="Who acts, where unsigned acts are taken; instead of a key."),
]
GroupsOption = Annotated[
    list[str] | None, typer.Option("--group", help="A group of the actor's, with --actor; may be given several times.")
]
IssuerKeysOption = Annotated[
    str | None,
    typer.Option(envvar="PERDURE_ISSUER_KEYS", help="Public keys of those who vouch for people, with commas between."),
]

_DURATION = TypeAdapter(timedelta)
_MOMENT = TypeAdapter(datetime)


@app.command("list")
def list_(
    *,
    person: Annotated[str | None, typer.Option(help="What this person may decide.")] = None,
    group: Annotated[
        list[str] | None, typer.Option(help="What waits for this group; with --person, likewise: one of theirs.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=500)] = 50,
    after: Annotated[str | None, typer.Option(help="Where the page before ended.")] = None,
    as_json: JsonOption = False,
    ingress: IngressOption = DEFAULT_INGRESS,
) -> None:
    """List open approvals, the most urgent first: a person's, a group's, or those that anyone may decide.

    A person's are those that name them, those of the groups that are named here, and those that anyone may decide.
    """
    groups = [each.removeprefix(GROUP_PREFIX) for each in group or []]
    if person is None and len(groups) > 1:
        raise ConfigurationError("name one --group, or the --person who belongs to several")
    inbox = person or (f"{GROUP_PREFIX}{groups[0]}" if groups else ANYONE)
    try:
        query = InboxQuery(limit=limit, after=after, groups=groups)
    except ValidationError as error:
        raise ConfigurationError(invalid_input(error).message) from error
    page: InboxPage = call_ingress(ingress, lambda client: client.call(page_inbox, query, key=inbox))
    if as_json:
        print_json(page)
        return
    whose = "anyone" if inbox == ANYONE else inbox
    if not page.items and page.next is None:
        console.say(f"nothing waits for {whose}")
        return
    table = Table("id", "until", "needed", "asked by", "what")
    for item in page.items:
        place = f" (in the place of {item.in_place_of})" if item.in_place_of else ""
        table.add_row(
            item.approval_id,
            f"{item.deadline:%Y-%m-%d %H:%M:%S}",
            str(item.quorum),
            asked_by(item.requester, verified=item.requester_verified, subject=item.subject),
            item.title + place,
        )
    console.print(table)
    console.say(f"{len(page.items)} of {page.total} that wait for {whose}")
    if page.next is not None:
        console.say(f"more: --after {page.next}")


@app.command()
def show(approval_id: IdArgument, *, as_json: JsonOption = False, ingress: IngressOption = DEFAULT_INGRESS) -> None:
    """Show an approval: what is asked, who decided, and its audit log."""
    found = _status(ingress, approval_id)
    if as_json:
        print_json(found)
        return
    facts = Table(show_header=False, box=None)
    for name, value in _facts(found).items():
        facts.add_row(name, value)
    console.print(facts)
    for entry in found.audit_log:
        console.say(_line(entry))


def _facts(found: ApprovalStatus) -> dict[str, str | Text]:
    facts: dict[str, str | Text] = {
        "id": found.approval_id,
        "status": found.status + (f" by {', '.join(found.decided_by)}" if found.decided_by else ""),
        "what": found.title,
        "asked by": asked_by(found.requester, verified=found.requester_verified, subject=found.subject)
        or "nobody in particular",
        "owner": found.requester_owner,
        "stage": f"{found.stage + 1} of {len(found.stages)}",
        "approvers": ", ".join(found.approvers) or "anyone but requester and subject",
        "needed": str(found.quorum),
        "veto": ", ".join(found.veto),
        "waits for": ", ".join(found.waits_for),
        "until": f"{found.deadline:%Y-%m-%d %H:%M:%S %Z}",
        "reason": found.reason,
        "payload": multiline_text(json.dumps(found.payload, indent=2, ensure_ascii=False)),
        "digest": found.payload_digest,
    }
    return {name: value for name, value in facts.items() if value}


def _line(entry: AuditEntry) -> str:
    signed = " (signed)" if entry.proof is not None else ""
    details = ", ".join(f"{name} {value}" for name, value in entry.details.items() if name != "payload_digest")
    words = [f"{entry.at:%Y-%m-%d %H:%M:%S}", entry.actor or "-", entry.act + signed, entry.result, details]
    return "  ".join(word for word in [*words, entry.reason] if word)


@app.command()
def approve(
    approval_id: IdArgument,
    *,
    key_file: KeyFileOption = None,
    actor: UnsignedActorOption = None,
    group: GroupsOption = None,
    reason: ReasonOption = "",
    ingress: IngressOption = DEFAULT_INGRESS,
) -> None:
    """Approve, as one person."""
    _Desk(ingress, approval_id, key_file, actor, group).decide("approve", reason)


@app.command()
def reject(
    approval_id: IdArgument,
    *,
    key_file: KeyFileOption = None,
    actor: UnsignedActorOption = None,
    group: GroupsOption = None,
    reason: ReasonOption = "",
    ingress: IngressOption = DEFAULT_INGRESS,
) -> None:
    """Reject, as one person."""
    _Desk(ingress, approval_id, key_file, actor, group).decide("reject", reason)


@app.command()
def delegate(
    approval_id: IdArgument,
    *,
    to: Annotated[str, typer.Option(help="Who may decide in your place, once.")],
    until: Annotated[str, typer.Option(help="Until when: a moment (2030-01-31T12:00Z), or a duration (PT8H).")],
    key_file: KeyFileOption = None,
    actor: UnsignedActorOption = None,
    group: GroupsOption = None,
    reason: ReasonOption = "",
    ingress: IngressOption = DEFAULT_INGRESS,
) -> None:
    """Delegate your vote to another person, once, until an end."""
    body = {"to": to, "until": _end(until).isoformat(), "reason": reason}
    done = _Desk(ingress, approval_id, key_file, actor, group).act("delegate", body, DelegationReceipt)
    console.say(
        f"{done.approval_id}: {done.to} may decide in the place of {done.actor} "
        f"until {done.until:%Y-%m-%d %H:%M:%S %Z}",
    )


@app.command()
def withdraw(
    approval_id: IdArgument,
    *,
    key_file: KeyFileOption = None,
    actor: UnsignedActorOption = None,
    reason: ReasonOption = "",
    ingress: IngressOption = DEFAULT_INGRESS,
) -> None:
    """Withdraw what you asked for yourself."""
    done = _Desk(ingress, approval_id, key_file, actor, None).act("withdraw", {"reason": reason}, WithdrawalReceipt)
    console.say(f"{done.approval_id}: now {done.status}")


@app.command("revoke-links")
def revoke_links(
    approval_id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="The approval; left out, every approval of the --person.")
    ] = None,
    *,
    person: Annotated[
        str | None, typer.Option(help="Whose links; left out, everybody's links to the approval.")
    ] = None,
    key_file: KeyFileOption = None,
    actor: UnsignedActorOption = None,
    reason: ReasonOption = "",
    ingress: IngressOption = DEFAULT_INGRESS,
) -> None:
    """Revoke the links of notices that were sent so far. Without ID, the person's delegations and keys end, too."""
    if approval_id is None:
        _revoke_person(ingress, person, key_file, actor, reason)
        return
    body: dict[str, Any] = {"reason": reason}
    if person is not None:
        body["person"] = canonical_user(person)
    done = _Desk(ingress, approval_id, key_file, actor, None).act("revoke_links", body, LinkRevocationReceipt)
    whose = "all links" if done.person is None else f"the links of {done.person}"
    console.say(f"{done.approval_id}: {whose} from before {done.at:%Y-%m-%d %H:%M:%S %Z} no longer decide")


def _revoke_person(ingress: str, person: str | None, key_file: Path | None, actor: str | None, reason: str) -> None:
    if person is None:
        raise ConfigurationError("whose links? Name the approval's ID, or a --person")
    name = canonical_user(person)
    if key_file is not None:
        body = sign_principal_action(ActorKey.load(key_file), name, {"reason": reason}, at=datetime.now(UTC))
    elif actor is not None:
        body = {"actor": actor, "reason": reason}
    else:
        raise ConfigurationError("who acts? Name your --key-file, or an --actor where unsigned acts are taken")
    target: Target[dict[str, Any], Principal] = Target(PRINCIPALS, "revoke", dict[str, Any], Principal)
    done = call_ingress(ingress, lambda client: client.call(target, body, key=name))
    console.say(
        f"{name}: links, delegations and keys from before {done.revoked_before:%Y-%m-%d %H:%M:%S %Z} no longer hold"
    )


@app.command()
def link(
    approval_id: IdArgument,
    *,
    person: Annotated[str, typer.Option(help="The person for whom the link decides, once.")],
    link_key_file: Annotated[
        Path,
        typer.Option(
            envvar="PERDURE_NOTIFICATIONS_LINK_KEY_FILE",
            help="The private key of links, as the service has it that delivers notices.",
        ),
    ],
    console_url: Annotated[str, typer.Option(envvar="PERDURE_CONSOLE_URL", help="Address of the console.")],
    ingress: IngressOption = DEFAULT_INGRESS,
) -> None:
    """Print a link by which a person decides, as a notice has it. The link is a secret."""
    minter = LinkMinter(PrivateKey.load(link_key_file), console_url)
    found = _status(ingress, approval_id)
    try:
        address = minter.mint(
            approval_id,
            person,
            payload_digest=found.payload_digest,
            issued_at=max(datetime.now(UTC), found.opened_at),  # this clock may be behind
            expires_at=found.deadline,
            nonce=secrets.token_hex(16),
        )
    except ValidationError as error:
        raise ConfigurationError(invalid_input(error).message) from error
    console.say(address)


@app.command()
def verify(
    approval_id: IdArgument,
    *,
    issuer_keys: IssuerKeysOption = None,
    as_json: JsonOption = False,
    ingress: IngressOption = DEFAULT_INGRESS,
) -> None:
    """Check that an approval's audit log is as it was written, and who signed what in it; exit code 1 when one is bad.

    Where PERDURE_ACTS is signed, as for the services, an act without a signature is bad, too.
    """
    rules = _rules(issuer_keys)
    check = check_approval(_status(ingress, approval_id), rules)
    if as_json:
        print_json(check)
    else:
        for line in check.lines:
            console.say(line)
    if not check.good:
        raise typer.Exit(1)


def _rules(issuer_keys: str | None) -> SigningRules:
    try:
        settings = SigningSettings() if issuer_keys is None else SigningSettings(issuer_keys=issuer_keys)
    except ValidationError as error:
        raise ConfigurationError("PERDURE_ACTS is 'signed' or 'unsigned', and nothing else") from error
    return settings.rules()


@dataclass(frozen=True)
class _Desk:
    """Where one person acts on one approval."""

    ingress: str
    approval_id: str
    key_file: Path | None
    actor: str | None
    groups: list[str] | None

    def decide(self, act: Literal["approve", "reject"], reason: str) -> None:
        done = self.act(act, {"reason": reason}, DecisionReceipt)
        place = f" in the place of {done.on_behalf_of}" if done.on_behalf_of else ""
        signed = "" if done.signed else " (unsigned)"
        console.say(
            f"{done.approval_id}: {done.act} by {done.actor}{place}{signed}, now {done.status}",
        )

    def act(self, act: SignableAction, body: dict[str, Any], receipt: type[R]) -> R:
        target: Target[dict[str, Any], R] = Target(APPROVALS, act, dict[str, Any], receipt)
        whole = self._signed(act, self.key_file, body) if self.key_file is not None else self._unsigned(body)
        return call_ingress(self.ingress, lambda client: client.call(target, whole, key=self.approval_id))

    def _unsigned(self, body: dict[str, Any]) -> dict[str, Any]:
        if self.actor is None:
            raise ConfigurationError("who acts? Name your --key-file, or an --actor where unsigned acts are taken")
        return {**body, "actor": self.actor} | ({"groups": self.groups} if self.groups else {})

    def _signed(self, act: SignableAction, key_file: Path, body: dict[str, Any]) -> dict[str, Any]:
        if self.groups:
            raise ConfigurationError("--group is for unsigned acts: a key's groups are in its credential")
        key = ActorKey.load(key_file)
        try:
            return sign_action(key, act, self.approval_id, self._shown(act), body, at=datetime.now(UTC))
        except ValidationError as error:
            raise ConfigurationError(invalid_input(error).message) from error

    def _shown(self, act: SignableAction) -> str:
        """Return the digest of what the actor decides about: what the approval shows now."""
        try:
            return _status(self.ingress, self.approval_id).payload_digest
        except IngressError as error:
            if error.status_code == 404:
                raise ConfigurationError(
                    f"no approval '{self.approval_id}' has been opened, so there is nothing to {act} yet"
                ) from error
            raise


def _status(ingress: str, approval_id: str) -> ApprovalStatus:
    return call_ingress(ingress, lambda client: client.call(approval_status, key=approval_id))


def _end(text: str) -> datetime:
    try:
        return datetime.now(UTC) + _DURATION.validate_python(text)
    except ValidationError:
        pass
    try:
        moment = _MOMENT.validate_python(text)
    except ValidationError as error:
        raise ConfigurationError(
            f"--until: '{text}' is neither a moment (2030-01-31T12:00Z) nor a duration (PT8H)"
        ) from error
    return moment if moment.tzinfo is not None else moment.astimezone()
