"""Signed approvals on a running platform: by command, by link, after timeouts and kills."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
import pytest_asyncio
from sqlalchemy import select, update

from perdure._runtime.invocation_ids import signal_id
from perdure.approvals.messages import ApprovalStatus, LinkDecisionRequest
from perdure.approvals.targets import approval_status, decide_by_link
from perdure.engine import LocatedEngine
from perdure.engine.admin import AdminClient
from perdure.errors import IngressError
from perdure.security import ActorKey, PrivateKey, Role
from perdure.security.encodings import base64url_decode
from services.data_plane.notifications.tables import ApprovalNoticeRow
from services.data_plane.payments.tables import ChargeRow
from services.database import Database
from services.runtime.booking import new_trip_id
from services.runtime.platform import Platform
from services.runtime.settings import PlatformSettings
from services.runtime.topology import Topology
from tests.command_line import run_perdure
from tests.e2e.uncompressed import found_in
from tests.mailbox import Mailbox, mailbox
from tests.support import eventually
from tests.system.scenarios.harness import Harness, harness_environment
from tests.system.scenarios.orders import order

pytestmark = pytest.mark.asyncio(loop_scope="module")

ADA, BOSS = "ada.lead@example.com", "boss@example.com"
COSTLY = order(amount_minor=250_000)


def key_of(actor: str, issuer: PrivateKey) -> ActorKey:
    return ActorKey.issue(
        issuer, actor=actor, roles=[Role.APPROVER], lifetime=timedelta(hours=1), now=datetime.now(UTC)
    )


@dataclass
class ApprovalPlatform:
    """A platform that requires signed actions, and approvers with keys.

    Args:
        harness: The harness.
        folder: The folder of the keys.
        issuer: The public key of the issuer.
        people: The name and issuer of each approver, by key name.
        undecided: A trip whose approval times out.
        box: The mailbox of approvers.
    """

    harness: Harness
    folder: Path
    issuer: str
    people: dict[str, tuple[str, PrivateKey]]
    undecided: str
    box: Mailbox

    async def perdure(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the command line against the platform."""
        topology = self.harness.platform.topology
        settings = {
            "PERDURE_INGRESS_URL": topology.ingress_url,
            "PERDURE_ADMIN_URL": topology.admin_url,
            "PERDURE_ACTIONS": "signed",
            "PERDURE_ISSUER_KEYS": self.issuer,
            "COLUMNS": "200",
        }
        return await asyncio.to_thread(run_perdure, "approvals", *words, **settings)

    def key(self, name: str) -> str:
        """Issue a new key after any revocation, and return its file."""
        path = self.folder / f"{name}-{uuid4().hex}.key"
        key_of(*self.people[name]).save(path)
        return str(path)

    async def waiting_trip(self) -> str:
        """Book a trip over the limit, and return its ID once its approval is open."""
        trip_id = new_trip_id()
        await self.harness.send(trip_id, COSTLY)
        await self.harness.until_step(trip_id, "approval")
        await eventually(lambda: self.open(trip_id), what="an open approval")
        return trip_id

    async def open(self, trip_id: str) -> bool:
        try:
            return (await self.status(trip_id)).status == "open"
        except IngressError as error:
            if error.status_code != 404:
                raise
            return False

    async def status(self, trip_id: str) -> ApprovalStatus:
        return await self.harness.ingress.call(approval_status, key=trip_id)

    async def verified(self, trip_id: str, *acts: str) -> None:
        """Verify the chain and the signatures of an audit log with the command."""
        entries = len((await self.status(trip_id)).audit_log)
        answer = await self.perdure("verify", trip_id)
        chain, *lines = answer.stdout.splitlines()
        assert (answer.returncode, chain) == (0, f"{entries} entries, chain intact")
        assert [line.partition(": ")[2] for line in lines[: len(acts)]] == list(acts)

    async def notices(self, approval_id: str) -> dict[tuple[str, str], str]:
        """Return the notifications about an approval: texts by kind and recipient."""
        database = Database(self.harness.platform.topology.databases["notifications"])
        try:
            async with database.snapshot() as connection:
                query = select(ApprovalNoticeRow.kind, ApprovalNoticeRow.recipient, ApprovalNoticeRow.text)
                rows = await connection.execute(query.where(ApprovalNoticeRow.approval_id == approval_id))
                return {(kind, recipient): text for kind, recipient, text in rows}
        finally:
            await database.dispose()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def box() -> AsyncIterator[Mailbox]:
    async with mailbox() as box:
        yield box


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def approvals(
    engine: LocatedEngine, tmp_path_factory: pytest.TempPathFactory, box: Mailbox
) -> AsyncIterator[ApprovalPlatform]:
    folder = tmp_path_factory.mktemp("approvals")
    issuer, links = PrivateKey.generate(), PrivateKey.generate()
    links.save(folder / "links.pem")
    olga = ("olga@example.com", issuer)
    people = {
        "ada": (ADA, issuer),
        "eve": ("eve@example.com", issuer),
        "olga": olga,
        "mallory": (ADA, PrivateKey.generate()),
    }
    environment = {
        **harness_environment(os.environ),
        "PERDURE_ACTIONS": "signed",
        "PERDURE_ISSUER_KEYS": issuer.public.id,
        "PERDURE_NOTIFICATIONS_LINK_KEY_FILE": str(folder / "links.pem"),
        "PERDURE_NOTIFICATIONS_SMTP_URL": box.url,
        "PERDURE_NOTIFICATIONS_SMTP_FROM": "trips@example.com",
        "PERDURE_CONSOLE_URL": "https://console.example.com",
        "PERDURE_ORCHESTRATOR_APPROVERS": json.dumps([ADA]),
        "PERDURE_ORCHESTRATOR_APPROVAL_ESCALATE_TO": json.dumps([BOSS, ADA]),
        "PERDURE_ORCHESTRATOR_APPROVAL_TIMEOUT": "PT75S",
        "PERDURE_ORCHESTRATOR_APPROVAL_REMIND_EVERY": "PT15S",
        "PERDURE_ORCHESTRATOR_APPROVAL_ESCALATE_AFTER": "PT42S",
    }
    topology = Topology.on_free_ports(folder, PlatformSettings())
    platform = Platform(topology, engine, report=print, environment=environment)
    try:
        await platform.start()
        # Signed actions require an authenticated caller for trips over the limit.
        async with Harness.on(platform, key_of(*olga)) as harness:
            approvals = ApprovalPlatform(harness, folder, issuer.public.id, people, new_trip_id(), box)
            await harness.send(approvals.undecided, COSTLY)
            yield approvals
    finally:
        await platform.stop(asyncio.Event())


async def test_approve_with_key_file(approvals: ApprovalPlatform):
    trip_id = await approvals.waiting_trip()
    listed = json.loads((await approvals.perdure("list", "--person", ADA, "--json")).stdout)
    assert trip_id in [item["approval_id"] for item in listed["items"]]
    approved = await approvals.perdure(
        "approve", trip_id, "--key-file", approvals.key("ada"), "--reason", "within budget"
    )
    assert (approved.returncode, approved.stdout) == (0, f"{trip_id}: approve by {ADA}, now approved\n")
    assert await approvals.harness.result(trip_id) == "confirmed"
    for words, (code, sentence) in {
        ("approve", trip_id, "--actor", ADA): (1, "must be signed"),
        ("approve", trip_id, "-k", approvals.key("mallory")): (1, "issuer that isn't trusted"),
        ("approve", trip_id, "-k", approvals.key("eve")): (1, "not among the approvers"),
        ("approve", trip_id): (2, "no actor: pass"),
        ("approve", "nothing", "-k", approvals.key("ada")): (1, "approval 'nothing' has not been opened"),
        ("delegate", trip_id, "--to", "x", "--until", "soon", "-k", approvals.key("ada")): (2, "neither a time"),
    }.items():
        answer = await approvals.perdure(*words)
        assert answer.returncode == code, words
        assert sentence in answer.stderr
        assert answer.stderr.count("\n") == 1
    stranger = await approvals.perdure("verify", trip_id, "--issuer-keys", PrivateKey.generate().public.id)
    assert stranger.returncode == 1
    assert "BADLY SIGNED: as of" in stranger.stdout
    assert "by an issuer that isn't trusted here" in stranger.stdout
    shown = (await approvals.perdure("show", trip_id)).stdout
    for word in (
        f"olga@example.com, for {COSTLY.traveller}",
        "approved by",
        "within budget",
        "refused:unauthenticated",
        "approve (signed)",
    ):
        assert word in shown
    await approvals.verified(trip_id, f"approve by {ADA}: signed")


async def test_verification_detects_changed_audit_log(approvals: ApprovalPlatform):
    trip_id = await approvals.waiting_trip()
    assert (await approvals.perdure("reject", trip_id, "-k", approvals.key("ada"), "-m", "too much")).returncode == 0
    assert await approvals.harness.result(trip_id) == "403 approval_rejected at approval, rolled_back"
    admin_url = approvals.harness.platform.topology.admin_url
    async with AdminClient(admin_url) as admin, httpx.AsyncClient() as http:
        rows = await admin.query(
            f"select key, value_utf8 from state where service_name = 'Approvals' and service_key = '{trip_id}'"
        )
        state = {row["key"]: row["value_utf8"] for row in rows}
        (name,) = [key for key, value in state.items() if key.startswith("audit_log/") and "too much" in value]
        forged = {**state, name: state[name].replace("too much", "fine with me")}
        body = {"object_key": trip_id, "new_state": {key: list(value.encode()) for key, value in forged.items()}}
        (await http.post(f"{admin_url}/services/Approvals/state", json=body)).raise_for_status()

    async def shows() -> subprocess.CompletedProcess[str] | None:
        answer = await approvals.perdure("verify", trip_id)
        return answer if answer.returncode else None

    found = await eventually(shows, what="a broken chain")
    assert found.returncode == 1
    assert f"entry {int(name.removeprefix('audit_log/'))} of " in found.stdout
    assert "its hash differs" in found.stdout


async def test_approval_survives_kill_of_service(approvals: ApprovalPlatform):
    trip_id, platform = await approvals.waiting_trip(), approvals.harness.platform
    until = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    delegated = await approvals.perdure("delegate", trip_id, "--to", "cy", "--until", until, "-k", approvals.key("ada"))
    assert "cy may vote on behalf of ada.lead@example.com" in delegated.stdout
    await platform.kill("approvals")
    waiting = asyncio.create_task(approvals.perdure("approve", trip_id, "-k", approvals.key("ada")))
    await platform.restart("approvals")
    assert (await waiting).returncode == 0
    assert await approvals.harness.result(trip_id) == "confirmed"
    status = await approvals.status(trip_id)
    assert [(entry.action, entry.actor) for entry in status.audit_log if entry.actor is not None] == [
        ("open", "olga@example.com"),
        ("delegate", ADA),
        ("approve", ADA),
    ]
    await approvals.verified(trip_id, f"delegate by {ADA}: signed", f"approve by {ADA}: signed")


async def test_mailed_link_decides_and_is_not_stored(approvals: ApprovalPlatform):
    trip_id = await approvals.waiting_trip()

    async def asked() -> str | None:
        mails = [mail.get_content() for mail in approvals.box.to(ADA)]
        return next((text for text in mails if token_of(text, trip_id)), None)

    text = await eventually(asked, what="mail to the approver")
    token = token_of(text, trip_id)
    assert token is not None

    async def recorded() -> str | None:
        return (await approvals.notices(trip_id)).get(("asked", ADA))

    assert "/l/" not in await eventually(recorded, what="a record of the notice")
    home = approvals.harness.platform.topology.home
    secrets = {token, token.rpartition(".")[2]}
    assert found_in(home / "data", secrets) == {}, "before it is used"
    request = LinkDecisionRequest(token=token, approve=True, reason="by link")
    receipt = await approvals.harness.ingress.call(decide_by_link, request, key=trip_id)
    assert (receipt.actor, receipt.status) == (ADA, "approved")
    assert await approvals.harness.result(trip_id) == "confirmed"
    await approvals.verified(trip_id, f"approve by {ADA}: by link")
    assert found_in(home / "logs", secrets) == {}


def token_of(text: str, trip_id: str) -> str | None:
    """Return the token of the link in a mail about a trip."""
    token = text.rpartition("https://console.example.com/l/")[2].strip()
    content = base64url_decode(token.partition(".")[0]).decode()
    return token if f'"approval_id":"{trip_id}"' in content else None


async def test_link_command_prints_a_link(approvals: ApprovalPlatform):
    trip_id = await approvals.waiting_trip()
    words = (
        "--person",
        ADA,
        "--link-key-file",
        str(approvals.folder / "links.pem"),
        "--console-url",
        "https://c.example",
    )
    printed = await approvals.perdure("link", trip_id, *words)
    assert printed.returncode == 0, printed.stderr
    token = printed.stdout.strip().removeprefix("https://c.example/l/")
    request = LinkDecisionRequest(token=token, approve=True)
    revoked = await approvals.perdure(
        "revoke-links", trip_id, "--person", ADA, "-k", approvals.key("ada"), "-m", "lost"
    )
    assert (revoked.returncode, revoked.stdout.startswith(f"{trip_id}: the links of {ADA}")) == (0, True), revoked
    with pytest.raises(IngressError, match="this link was revoked at"):
        await approvals.harness.ingress.call(decide_by_link, request, key=trip_id)
    again = (await approvals.perdure("link", trip_id, *words)).stdout.strip().rpartition("/")[2]
    as_old_as_the_link = approvals.key("ada")
    everywhere = await approvals.perdure("revoke-links", "--person", ADA, "-k", approvals.key("ada"))
    assert everywhere.stdout.startswith(f"{ADA}: links, delegations and keys from before"), everywhere
    with pytest.raises(IngressError, match=f"the rights of {ADA} changed or were revoked"):
        await approvals.harness.ingress.call(decide_by_link, request.model_copy(update={"token": again}), key=trip_id)
    refused = await approvals.perdure("approve", trip_id, "-k", as_old_as_the_link)
    assert refused.returncode == 1
    assert "the credential was issued before the rights" in refused.stderr
    for words_, sentence in {("revoke-links",): "no links", ("revoke-links", trip_id): "no actor: pass"}.items():
        answer = await approvals.perdure(*words_)
        assert (answer.returncode, sentence in answer.stderr) == (2, True)
    last = (await approvals.perdure("link", trip_id, *words)).stdout.strip().rpartition("/")[2]
    receipt = await approvals.harness.ingress.call(
        decide_by_link, request.model_copy(update={"token": last}), key=trip_id
    )
    assert receipt.status == "approved"
    await approvals.verified(trip_id, f"revoke_links by {ADA}: signed", f"approve by {ADA}: by link")


async def test_forged_completion_confirms_no_trip(approvals: ApprovalPlatform):
    # The attacker needs only the ID of the trip.
    trip_id, url = await approvals.waiting_trip(), approvals.harness.platform.topology.ingress_url
    async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
        sent = await http.post(f"/Trips/{trip_id}/run/send", json=COSTLY.model_dump(mode="json"))
        outcome = {"approval_id": trip_id, "outcome": "approved", "decided_by": [ADA], "reason": "forged"}
        path = f"/restate/awakeables/{signal_id(sent.json()['invocationId'])}/resolve"
        (await http.post(path, json=outcome)).raise_for_status()

    async def has_read() -> bool:
        async with AdminClient(approvals.harness.platform.topology.admin_url) as admin:
            sql = f"""select id from sys_invocation_status where target_service_key = '{trip_id}'
                and target_handler_name = 'listen' and status = 'completed'"""
            return bool(await admin.query(sql))

    await eventually(has_read, what="reading of the outcome")
    assert (await approvals.harness.status(trip_id)).current_step == "approval"
    assert (await approvals.status(trip_id)).status == "open"
    assert await approvals.harness.charges_ever(trip_id) == 0
    answer = await approvals.perdure("reject", trip_id, "--key-file", approvals.key("ada"), "--reason", "forged")
    assert answer.returncode == 0, answer.stderr
    assert (await approvals.harness.result(trip_id)).startswith("403 approval_rejected")


async def test_audit_finds_a_trip_without_approval(approvals: ApprovalPlatform):
    trip_id = new_trip_id()
    assert await approvals.harness.book(trip_id, order(amount_minor=50_000)) == "confirmed"
    topology = approvals.harness.platform.topology

    async def charge(amount: int) -> None:
        database = Database(topology.databases["payments"])
        try:
            async with database.transaction() as connection:
                await connection.execute(
                    update(ChargeRow).where(ChargeRow.trip_id == trip_id).values(amount_minor=amount)
                )
        finally:
            await database.dispose()

    await charge(900_000)
    try:
        assert "trips-approved" in await approvals.harness.audit()
    finally:
        await charge(50_000)


async def test_undecided_approval_escalates_and_times_out(approvals: ApprovalPlatform):
    assert await approvals.harness.result(approvals.undecided) == "408 approval_timeout, rolled_back"
    acts = [entry.action for entry in (await approvals.status(approvals.undecided)).audit_log]
    assert (acts[0], acts[-1]) == ("open", "expire")
    assert acts[1:-1] == ["remind", "remind", "escalate", "remind", "remind"]
    told = await approvals.notices(approvals.undecided)
    assert set(told) >= {("asked", ADA), ("reminder", ADA), ("escalated", BOSS), ("reminder", BOSS)}
    assert "Approval escalated to you" in told["escalated", BOSS]
    await approvals.verified(approvals.undecided)
    assert await approvals.harness.audit() == "holds"
