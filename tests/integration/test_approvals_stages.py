"""Approvals on a real engine: groups, veto, delegation, reminders, escalation, what silence means, withdrawal."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import pytest_asyncio
import restate as sdk

from perdure import AdminClient, ObjectClient, Target
from perdure.approvals.config import ApprovalsConfig
from perdure.approvals.inbox_messages import InboxQuery
from perdure.approvals.messages import (
    Decision,
    DecisionReceipt,
    ReminderDue,
    WithdrawalReceipt,
    WithdrawalRequest,
)
from perdure.approvals.notices import ApprovalNotice
from perdure.approvals.policy import Approval, decide
from perdure.approvals.request import OnTimeout, Stage
from perdure.approvals.sentinel import ApprovalSentinel, ApprovalSentinelConfig
from perdure.approvals.service import definitions
from perdure.approvals.targets import page_inbox, remind, withdraw
from perdure.approvals.trail import verify_trail
from perdure.binding import handler
from perdure.determinism import Time
from perdure.errors import IngressError
from perdure.testing import Restate
from tests.integration.approvals_desk import (
    HOUR,
    Desk,
    GateRequest,
    Question,
    asking,
    end,
    gate,
    refused,
    run_asking,
    run_gate,
)
from tests.support import Recording, eventually


def soon(**span: float) -> timedelta:
    return timedelta(**span)


def in_an_hour() -> datetime:
    return datetime.now(UTC) + HOUR


@pytest_asyncio.fixture
async def desk(restate: Restate, did: Recording) -> AsyncIterator[Desk]:
    postbox = sdk.Service("Postbox")

    @handler(postbox)
    async def put(ctx: sdk.Context, notice: ApprovalNotice) -> None:
        did.add(f"{notice.kind} {notice.approval_id}/{notice.to}")

    bell = sdk.VirtualObject("Bell")

    @handler(bell, "exclusive")
    async def ring(ctx: sdk.ObjectContext, due: ReminderDue) -> None:
        await ObjectClient(ctx, remind, ctx.key()).call(due)

    to_postbox: Target[ApprovalNotice, None] = Target("Postbox", "put", ApprovalNotice, type(None))
    sentinel = ApprovalSentinel(
        ApprovalSentinelConfig(restate.server.admin, restate.server.ingress, grace=timedelta(0))
    )
    config = ApprovalsConfig(notify=to_postbox)
    env = await restate.serve(*definitions(config), sentinel, asking, gate, postbox, bell)
    async with Desk(env) as desk:
        yield desk


sweep: Any = Target("ApprovalSentinel", "sweep", type(None), dict[str, Any])


async def told(did: Recording, desk: Desk, *expected: str) -> None:
    async def look() -> bool:
        return set(expected) <= set(did.of(desk.id))

    await eventually(look, what=f"{expected} in the postbox, which has {did.of(desk.id)}")


async def test_left_alone_it_reminds_escalates_reminds_and_times_out(desk: Desk, did: Recording):
    ada, boss = desk.person("ada"), desk.person("boss")
    await desk.ask(
        requester="req",
        approvers=[ada],
        timeout=soon(seconds=1.0),
        remind_every=soon(seconds=0.4),
        escalation=[Stage(approvers=[boss], timeout=soon(seconds=0.8), remind_every=soon(seconds=0.5))],
    )
    assert (await desk.outcome()).outcome == "timed_out"
    status = await desk.status()
    assert [(entry.act, entry.result) for entry in status.trail] == [
        ("open", "opened"),
        ("remind", "reminded"),
        ("remind", "reminded"),
        ("escalate", "escalated"),
        ("remind", "reminded"),
        ("expire", "timed_out"),
    ]
    assert (status.stage, status.approvers, status.reminders) == (1, [boss], 1)
    assert verify_trail(desk.id, status.trail, head=status.head).intact
    await told(did, desk, f"asked {ada}", f"reminder {ada}", f"escalated {boss}", f"reminder {boss}")
    assert sorted(did.of(desk.id)) == sorted(
        [f"asked {ada}", f"reminder {ada}", f"reminder {ada}", f"escalated {boss}", f"reminder {boss}"]
    )
    await desk.inbox_has(ada, 0)
    await desk.inbox_has(boss, 0)


async def test_who_may_decide_follows_the_stage(desk: Desk):
    ada, boss = desk.person("ada"), desk.person("boss")
    await desk.asked(
        approvers=[ada, "bob"], quorum=2, escalation=[Stage(approvers=[boss, ada], quorum=2, timeout=HOUR)]
    )
    await desk.approve(ada, "fine")
    assert (await refused(desk.approve(boss))).code == "not_an_approver"
    await desk.client.call(end, 0, key=desk.id)
    status = await desk.status()
    assert (status.status, status.stage, status.waits_for) == ("open", 1, [boss])
    await desk.client.call(end, 0, key=desk.id)  # the end of the stage before comes late, and does nothing
    assert (await desk.status()).stage == 1
    assert (await refused(desk.approve("bob"))).code == "not_an_approver"
    (item,) = await desk.inbox_has(boss, 1)
    assert (item.stage, item.deadline) == (1, status.deadline)
    await desk.approve(boss)
    assert (await desk.outcome()).decided_by == [ada, boss]  # her earlier decision counts, since she is asked here, too


@pytest.mark.restate_modes("http2")
@pytest.mark.parametrize(("meaning", "outcome"), [(OnTimeout.APPROVE, "approved"), (OnTimeout.REJECT, "rejected")])
async def test_what_silence_means(desk: Desk, meaning: OnTimeout, outcome: str):
    await desk.ask(on_timeout=meaning, timeout=soon(milliseconds=200))
    ended = await desk.outcome()
    assert (ended.outcome, ended.decided_by) == (outcome, [])
    assert "time was over" in ended.reason


@pytest.mark.restate_modes("http2")
async def test_groups_with_and_without_known_members(desk: Desk):
    ada, bob = desk.person("ada"), desk.person("bob")
    finance, legal = desk.person("finance"), desk.person("legal")
    await desk.asked(
        requester=bob, groups={finance: [ada, bob]}, approvers=[f"group:{finance}", f"group:{legal}"], quorum=2
    )
    await desk.inbox_has(ada, 1)
    await desk.inbox_has(f"Group:{legal}", 1)
    assert await desk.inbox(bob) == []  # he asked
    assert (await refused(desk.approve(bob, groups=[legal]))).code == "own_request"
    assert (await refused(desk.approve("eve", groups=[finance]))).code == "not_an_approver"  # its members are named
    await desk.approve(ada)
    await desk.approve("eve", groups=[legal])
    assert (await desk.outcome()).decided_by == [ada, "eve"]
    await desk.inbox_has(f"group:{legal}", 0)


@pytest.mark.restate_modes("http2")
async def test_a_veto_ends_it(desk: Desk):
    cfo = desk.person("cfo")
    await desk.asked(approvers=["ada", "bob", "cy"], quorum=2, veto=[cfo])
    await desk.inbox_has(cfo, 1)
    await desk.approve("ada")
    assert (await refused(desk.approve(cfo))).code == "not_an_approver"  # a veto is no vote
    await desk.reject(cfo, "no money")
    outcome = await desk.outcome()
    assert (outcome.outcome, outcome.decided_by, outcome.reason) == ("rejected", [cfo], "no money")


async def test_a_delegate_decides_once_in_the_place_of_who_delegated(desk: Desk, did: Recording):
    ada, bob, cy = (desk.person(name) for name in ("ada", "bob", "cy"))
    await desk.asked(requester="req", approvers=[ada, bob], quorum=2)
    assert (await refused(desk.delegate(ada, "req", in_an_hour()))).code == "delegation_to_requester"
    assert (await refused(desk.delegate(ada, bob, in_an_hour()))).code == "delegate_may_decide"
    assert (await refused(desk.delegate(cy, "eve", in_an_hour()))).code == "not_an_approver"
    until = in_an_hour() - timedelta(minutes=30)
    receipt = await desk.delegate(ada, cy, until, reason="on holiday")
    assert (receipt.to, receipt.until, receipt.status) == (cy, until, "open")
    assert (await refused(desk.delegate(cy, "eve", until))).code == "not_an_approver"  # it can't be passed on
    (item,) = await desk.inbox_has(cy, 1)
    assert (item.in_place_of, item.deadline) == (ada, until)
    await told(did, desk, f"delegated {cy}")
    decided = await desk.approve(cy)
    assert decided.on_behalf_of == ada
    error = await refused(desk.approve(ada))
    assert (error.status_code, error.code, error.metadata["decided_by"]) == (409, "seat_taken", cy)
    await desk.inbox_has(cy, 0)
    await desk.inbox_has(ada, 0)
    await desk.approve(bob)
    assert (await desk.outcome()).decided_by == [cy, bob]


@pytest.mark.restate_modes("http2")
async def test_a_delegation_ends_with_its_date(desk: Desk):
    ada, cy = desk.person("ada"), desk.person("cy")
    await desk.asked(approvers=[ada])
    assert (await refused(desk.delegate(ada, cy, datetime.now(UTC) - HOUR))).status_code == 400
    await desk.delegate(ada, cy, datetime.now(UTC) + timedelta(seconds=0.6))
    await desk.inbox_has(cy, 1)
    await desk.inbox_has(cy, 0)  # by itself
    assert (await refused(desk.approve(cy))).code == "delegation_over"
    assert (await desk.approve(ada)).status == "approved"


async def test_the_requester_withdraws(desk: Desk):
    person = desk.person("ada")
    await desk.asked(requester="Req", approvers=[person])

    async def leave_as(actor: str) -> WithdrawalReceipt:
        return await desk.client.call(withdraw, WithdrawalRequest(actor=actor, reason="not needed"), key=desk.id)

    assert (await refused(leave_as(person))).code == "not_the_requester"
    receipt = await leave_as("req")
    assert receipt.status == "withdrawn"
    assert await leave_as("req") == receipt  # the same again is no error
    outcome = await desk.outcome()
    assert (outcome.outcome, outcome.decided_by, outcome.reason) == ("withdrawn", ["req"], "not needed")
    error = await refused(desk.approve(person))
    assert (error.code, error.metadata["decided_by"]) == ("too_late", "req")
    await desk.inbox_has(person, 0)


@pytest.mark.restate_modes("http2")
async def test_a_reminder_that_is_not_the_next_does_nothing(desk: Desk):
    await desk.asked(remind_every=timedelta(minutes=10))
    ring: Target[ReminderDue, None] = Target("Bell", "ring", ReminderDue, type(None))
    for stage, number in [(0, 2), (1, 1), (0, 1), (0, 1)]:
        await desk.client.call(ring, ReminderDue(stage=stage, number=number), key=desk.id)
    assert [entry.act for entry in (await desk.status()).trail] == ["open", "remind"]


async def test_many_deciders_at_once_on_many_approvals(desk: Desk):
    """Whatever the order, each approval has one outcome, and no inbox keeps what is decided or loses what is not."""
    people = [desk.person(f"p{number}") for number in range(6)]
    ids = [f"{desk.id}-{number}" for number in range(4)]
    for approval_id in ids:
        question = Question(approval_id=approval_id, approvers=people, quorum=3, requester="req")
        await desk.client.send(run_asking, question, key=approval_id)

    async def open_in(person: str) -> set[str]:
        page = await desk.client.call(page_inbox, InboxQuery(limit=500), key=person)
        assert page.total == len(page.items)
        return {item.approval_id for item in page.items}

    async def settled(expected: dict[str, set[str]]) -> bool:
        return {person: await open_in(person) for person in people} == expected

    await eventually(lambda: settled({person: set(ids) for person in people}), what="all approvals in all inboxes")

    async def decide(approval_id: str, number: int) -> DecisionReceipt | IngressError:
        other = Desk(desk.env)
        other.id, other.client = approval_id, desk.client
        try:
            # The last approval is never decided: only two of six say anything, and they approve.
            approve = approval_id == ids[-1] or number % 2 == 0
            return await (other.approve if approve else other.reject)(people[number])
        except IngressError as error:
            return error

    acts = [(each, number) for each in ids for number in range(6) if each != ids[-1] or number < 2]
    answers = await asyncio.gather(*(decide(each, number) for each, number in acts))
    for approval_id in ids[:-1]:
        desk.id = approval_id
        status = await desk.status()
        mine = [answer for (each, _), answer in zip(acts, answers, strict=True) if each == approval_id]
        won = [answer for answer in mine if isinstance(answer, DecisionReceipt)]
        assert {answer.code for answer in mine if isinstance(answer, IngressError)} <= {"too_late"}
        assert status.status == "approved"  # three of three that approve; three rejections would leave three others
        assert len(status.decisions) == len(won)
        assert verify_trail(approval_id, status.trail, head=status.head).intact
    left = {person: ({ids[-1]} if number >= 2 else set()) for number, person in enumerate(people)}
    await eventually(lambda: settled(left), what="inboxes with what is not decided, and nothing else")


@pytest.mark.restate_modes("http2")
async def test_an_inbox_page_by_page(desk: Desk):
    person = desk.person("ada")
    ids = [f"{desk.id}-{number}" for number in range(5)]
    for number, approval_id in enumerate(ids):
        question = Question(approval_id=approval_id, approvers=[person], timeout=HOUR + timedelta(minutes=number))
        await desk.client.send(run_asking, question, key=approval_id)

    async def all_there() -> bool:
        return (await desk.client.call(page_inbox, InboxQuery(), key=person)).total == len(ids)

    await eventually(all_there, what="five approvals in the inbox")
    seen, after = [], None
    for expected in (2, 2, 1):
        page = await desk.client.call(page_inbox, InboxQuery(limit=2, after=after), key=person.upper())
        assert (len(page.items), page.total) == (expected, 5)
        seen += [item.approval_id for item in page.items]
        after = page.next
    assert (seen, after) == (ids, None)


async def test_an_approval_whose_asker_was_killed_is_withdrawn(desk: Desk):
    person = desk.person("ada")
    invocation = await desk.client.send(run_gate, GateRequest(), key=desk.id)
    await desk.ask(by="other", approvers=[person])
    await desk.inbox_has(person, 1)
    desk.id, other = f"gate-{desk.id}", desk.id
    await desk.status_where(lambda status: status.status == "open")
    assert [each["id"] for each in (await desk.client.call(sweep, key="all"))["done"] if each["id"] == desk.id] == []
    async with AdminClient(desk.env.admin) as admin:
        await admin.act(invocation, "kill")

    async def withdrawn() -> bool:
        await desk.client.call(sweep, key="all")
        return (await desk.status()).status == "withdrawn"

    await eventually(withdrawn, what="a withdrawal by the sentinel")
    assert (await desk.status()).reason == "who asked has ended"
    desk.id = other
    assert (await desk.status()).status == "open"  # what others wait for stays


async def test_an_approval_whose_timers_were_killed_is_mended(desk: Desk):
    person = desk.person("ada")
    await desk.ask(approvers=[person], timeout=timedelta(seconds=2), on_timeout=OnTimeout.REJECT)
    await desk.inbox_has(person, 1)
    async with AdminClient(desk.env.admin) as admin:
        sql = f"""select id from sys_invocation_status where target_service_name = 'Approvals'
            and target_service_key = '{desk.id}' and target_handler_name = 'end_stage'"""
        for row in await admin.query(sql):
            await admin.act(row["id"], "kill")
        assert not await admin.query(sql + " and status != 'completed'")

    async def found() -> bool:
        report = await desk.client.call(sweep, key="all")
        return any((each["kind"], each["id"]) == ("unscheduled", desk.id) for each in report["done"])

    await eventually(found, what="the approval among those whose end is not scheduled")
    assert (await desk.outcome()).outcome == "rejected"
    await desk.inbox_has(person, 0)


async def cut_off(desk: Desk, change: Callable[[dict[str, str]], dict[str, str]]) -> None:
    """Change an approval's state to what a kill of its handler leaves, and take away what is scheduled."""
    mine = f"service_name = 'Approvals' and service_key = '{desk.id}'"
    async with AdminClient(desk.env.admin) as admin, httpx.AsyncClient(base_url=desk.env.admin) as http:
        rows = await admin.query(f"select key, value_utf8 from state where {mine}")
        state = change({row["key"]: row["value_utf8"] for row in rows})
        new_state = {name: list(value.encode()) for name, value in state.items()}
        body = {"object_key": desk.id, "new_state": new_state}
        (await http.post("/services/Approvals/state", json=body)).raise_for_status()
        sql = f"""select id from sys_invocation_status where target_service_name = 'Approvals'
            and target_service_key = '{desk.id}' and target_handler_name = 'end_stage'"""
        for row in await admin.query(sql):
            await admin.act(row["id"], "kill")


async def mended(desk: Desk, *left: str) -> None:
    """Sweep until the approval's state holds what is left, and nothing else."""

    async def look() -> bool:
        await desk.client.call(sweep, key="all")
        async with AdminClient(desk.env.admin) as admin:
            sql = f"select key from state where service_name = 'Approvals' and service_key = '{desk.id}'"
            names = {row["key"] for row in await admin.query(sql)}
        return {name for name in names if not name.startswith("waiter/inv_")} == set(left)

    await eventually(look, what=f"state of {left} only")


async def test_a_kill_between_the_end_and_its_answers_is_mended(desk: Desk):
    """The decision is written, and nobody was told."""
    person = desk.person("ada")
    await desk.ask(approvers=[person])
    await desk.inbox_has(person, 1)

    def decided(state: dict[str, str]) -> dict[str, str]:
        assert [name for name in state if name.startswith("waiter/inv_")]
        decision = Decision(actor=person, approve=True, reason="cut off", at=datetime.now(UTC))
        change = decide(Approval.model_validate_json(state["approval"]), decision)
        trail = {"trail/000002": change.entries[0].model_dump_json()}
        return {**state, **trail, "approval": change.approval.model_dump_json()}

    await cut_off(desk, decided)
    await mended(desk, "approval", "request", "trail/000001", "trail/000002")
    assert (await desk.outcome()).reason == "cut off"
    await desk.inbox_has(person, 0)


async def test_a_kill_while_it_was_opened_is_mended(desk: Desk):
    """The question is written, and nothing else; then not even the question."""
    await desk.asked(payload=1)
    await cut_off(desk, lambda state: {name: state[name] for name in ("open", "request")})
    await mended(desk, "approval", "open", "request", "trail/000001")
    assert (await desk.approve("bob")).status == "approved"
    assert (await desk.outcome()).decided_by == ["bob"]
    desk.id = f"{desk.id}-2"
    await desk.asked()
    await cut_off(desk, lambda state: {"open": state["open"]})
    await mended(desk)
    assert "ask again" in (await refused(desk.outcome())).message


async def test_a_kill_before_it_was_opened_is_mended_even_twice(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    """Nothing is written, and who asked waits."""
    free, held = threading.Event(), desk.id

    class HeldTime(Time):
        async def now(self) -> datetime:
            if isinstance(self._ctx, sdk.ObjectContext) and self._ctx.key() == held:
                await asyncio.to_thread(free.wait, 20)
            return await super().now()

    monkeypatch.setattr("perdure.approvals.service.Time", HeldTime)
    await desk.ask(approvers=["ada"])
    seen: set[str] = set()

    async def opening() -> str | None:
        await desk.client.call(sweep, key="all")
        async with AdminClient(desk.env.admin) as admin:
            sql = f"""select id from sys_invocation_status where target_service_name = 'Approvals'
                and target_service_key = '{desk.id}' and target_handler_name = 'open' and status != 'completed'"""
            return next((row["id"] for row in await admin.query(sql) if row["id"] not in seen), None)

    try:
        for _ in range(2):
            invocation = await eventually(opening, what="an invocation that opens it")
            seen.add(invocation)
            async with AdminClient(desk.env.admin) as admin:
                await admin.act(invocation, "kill")
        await eventually(opening, what="a third invocation that opens it")
    finally:
        free.set()
    opened = await desk.status_where(lambda status: status.status == "open")
    await desk.client.call(sweep, key="all")
    assert (await desk.approve("ada")).status == "approved"
    assert (await desk.outcome()).decided_by == ["ada"]
    report = await desk.client.call(sweep, key="all")
    assert [each for each in report["done"] if each["id"] == desk.id] == []
    assert [entry.act for entry in (await desk.status()).trail] == [*(entry.act for entry in opened.trail), "approve"]


@pytest.mark.restate_modes("http2")
async def test_what_ended_is_forgotten_after_its_retention(restate: Restate):
    env = await restate.serve(*definitions(ApprovalsConfig(retention=timedelta(seconds=0.6))), asking)
    async with Desk(env) as desk:
        await desk.asked(timeout=HOUR)
        await desk.approve("ada")
        assert (await desk.status()).status == "approved"

        async def kept(approval_id: str) -> bool:
            async with AdminClient(env.admin) as admin:
                sql = f"select key from state where service_name = 'Approvals' and service_key = '{approval_id}'"
                return bool(await admin.query(sql))

        async def forgotten(approval_id: str) -> bool:
            return not await kept(approval_id)

        await eventually(lambda: forgotten(desk.id), what="nothing kept of the approval")
        assert (await refused(desk.status())).status_code == 404
        assert (await desk.outcome()).decided_by == ["ada"]
        # Early decisions for what is never opened end likewise; an approval that is open outlives its early ones.
        opened, never = f"{desk.id}-opened", f"{desk.id}-never"
        for desk.id in (opened, never):
            await desk.approve("bob")
        desk.id = opened
        await desk.asked(approvers=["bob", "cy"], quorum=2)
        await eventually(lambda: forgotten(never), what="nothing kept of early decisions")
        assert [decision.actor for decision in (await desk.status()).decisions] == ["bob"]


@pytest.mark.restate_modes("http2")
async def test_notices_to_nowhere_stop_nobody(restate: Restate):
    nowhere: Target[ApprovalNotice, None] = Target("Nowhere", "put", ApprovalNotice, type(None))
    env = await restate.serve(*definitions(ApprovalsConfig(notify=nowhere)), asking)
    async with Desk(env) as desk:
        await desk.asked(approvers=[desk.person("ada")])
        await desk.approve(desk.person("ada"))
        assert (await desk.outcome()).outcome == "approved"

        async def given_up() -> bool:
            async with AdminClient(env.admin) as admin:
                sql = """select completion_result as result from sys_invocation_status
                    where target_service_name = 'ApprovalRelay' and status = 'completed'"""
                return any(row["result"] == "failure" for row in await admin.query(sql))

        await eventually(given_up, what="a relay that gave up")
