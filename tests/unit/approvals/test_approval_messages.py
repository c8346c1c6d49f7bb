from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from perdure._runtime.serdes import invalid_input, serde_for
from perdure.approvals.dispatcher import notice_key
from perdure.approvals.links import LinkMinter
from perdure.approvals.messages import DecisionRequest, DelegationRequest
from perdure.approvals.notifications import ApprovalNotice, Recipient
from perdure.approvals.request import ApprovalRequest
from perdure.errors import ConfigurationError
from perdure.idempotency import check_idempotency_key
from perdure.security import PrivateKey, json_digest, read_link


def request(**changes: Any) -> ApprovalRequest:
    fields = {
        "approval_id": "T1",
        "title": "Trip",
        "timeout": timedelta(hours=1),
        "wait": "sign_1",
        "awakeable": "wsign_1",
        **changes,
    }
    return ApprovalRequest(**fields)


def refused_field(**changes: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        request(**changes)
    return (invalid_input(caught.value).metadata or {})["field"]


def nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("approval_id", ""),
        ("approval_id", "x" * 257),
        ("title", ""),
        ("title", "x" * 501),
        ("requester", "x" * 1001),
        ("quorum", 0),
        ("quorum", 101),
        ("timeout", timedelta(0)),
        ("timeout", timedelta(seconds=-1)),
        ("timeout", timedelta(days=4000)),
        ("awakeable", ""),
        ("approvers", [f"p{n}" for n in range(101)]),
        ("payload", object()),
        ("payload", {"scan": "ä" * (128 * 1024)}),
        ("payload", nested(195)),
        ("payload", "half a surrogate: \ud800"),
        ("veto", True),
        ("veto", ["group:"]),
        ("groups", {"finance": []}),
        ("groups", {"group:finance": ["ada"]}),
        ("approvers", ["group:anyone"]),
        ("remind_every", timedelta(0)),
        ("remind_every", timedelta(seconds=1)),  # more than 100 reminders in an hour
        ("escalation", [{"timeout": "PT1H", "approvers": ["ada"], "quorum": 2}]),
        ("escalation", [{"timeout": "PT1H"}] * 10),
    ],
)
def test_bad_request_names_the_field(field: str, value: Any):
    assert refused_field(**{field: value}).split(".")[0] == field


def test_a_bad_approver_is_named_by_position():
    assert refused_field(approvers=["ada", ""]) == "approvers.1"


def test_quorum_must_be_reachable_without_the_requester():
    assert refused_field(approvers=["ada", "bob"], quorum=3) == "quorum"
    assert refused_field(approvers=["ada", "bob"], requester="BOB", quorum=2) == "quorum"
    assert refused_field(approvers=["bob"], requester="bob") == "quorum"
    assert request(approvers=["ada", "bob"], requester="bob", quorum=1).quorum == 1
    assert request(approvers=[], quorum=3).quorum == 3


def test_quorum_must_be_reachable_by_members_of_groups():
    groups = {"finance": ["ada", "bob"]}
    assert refused_field(groups=groups, approvers=["group:finance", "ada"], quorum=3) == "quorum"
    assert request(groups=groups, approvers=["group:finance", "cy"], quorum=3).quorum == 3
    assert request(groups=groups, approvers=["group:finance", "group:legal"], quorum=9).quorum == 9
    assert refused_field(groups=groups, requester="ada", approvers=["group:finance"], quorum=2) == "quorum"


def test_a_stage_that_others_follow_escalates_and_the_last_one_does_not():
    more: list[dict[str, Any]] = [{"timeout": "PT1H"}]
    assert [stage.on_timeout for stage in request(escalation=more).stages] == ["escalate", "error"]
    assert [stage.on_timeout for stage in request(on_timeout="reject").stages] == ["reject"]
    assert request(escalation=more).time_in_all == timedelta(hours=2)
    for wrong in (
        {"on_timeout": "escalate"},
        {"on_timeout": "reject", "escalation": more},
        {"escalation": [{"timeout": "PT1H", "on_timeout": "escalate"}]},
    ):
        with pytest.raises(ValidationError, match="on_timeout"):
            request(**wrong)


def test_names_of_groups_have_one_spelling():
    found = request(groups={" Finance": ["Ada", "ADA"]}, approvers=["Group: FINANCE", "group:finance"], veto=["ANYONE"])
    assert (found.groups, found.approvers, found.veto) == ({"finance": ["ada"]}, ["group:finance"], ["anyone"])


def test_who_is_named_twice_counts_once():
    assert request(approvers=["Ada", "bob", "ADA "]).approvers == ["ada", "bob"]
    assert refused_field(approvers=["ada", "ADA"], quorum=2) == "quorum"


def test_a_request_survives_its_journey():
    sent = request(approvers=["ada"], requester="Bob", payload={"b": [1, 2.5, None], "a": "\u00e9"})
    serde = serde_for(ApprovalRequest)
    assert serde.deserialize(serde.serialize(sent)) == sent


def test_decision_request_bounds():
    serde = serde_for(DecisionRequest)
    assert serde.deserialize(b'{"actor":"Ada","reason":""}') == DecisionRequest(actor="ada")
    assert serde.deserialize(b'{"actor":"ada","reason":"%s"}' % (b"r" * 2000)) is not None
    for body in [
        b'{"reason":"x"}',
        b'{"actor":""}',
        b'{"actor":1}',
        b'{"actor":"%s"}' % (b"a" * 201),
        b'{"actor":"ada","reason":"%s"}' % (b"r" * 2001),
        b'{"actor":"ada","approve":true}',
        b'{"actor":"group:finance"}',
    ]:
        with pytest.raises(ValidationError):
            serde.deserialize(body)


def test_a_delegation_is_to_somebody_else():
    for to in ("ADA", "group:finance", ""):
        with pytest.raises(ValidationError, match="to"):
            DelegationRequest(actor="ada", to=to, until=datetime(2030, 1, 1, tzinfo=UTC))


NOTICE = ApprovalNotice(
    key="approval:k",
    kind="delegated",
    approval_id="T1",
    to="cy",
    title="Trip of ada",
    requester="ada",
    subject="zoe",
    payload_digest=json_digest(None),
    at=datetime(2030, 1, 1, 10, tzinfo=UTC),
    until=datetime(2030, 1, 1, 12, tzinfo=UTC),
    in_place_of="bob",
)


def test_notice_says_what_and_until_when():
    assert NOTICE.text == (
        "bob asks you to decide in their place: Trip of ada, asked by ada (unverified), for zoe.\n"
        "It can be decided until 2030-01-01 12:00 UTC."
    )


def test_notice_link_is_minted_at_delivery():
    key = PrivateKey.generate()
    minter = LinkMinter(key, "https://console.example.com/")
    address = minter.link(NOTICE)
    assert address is not None
    assert address == minter.link(NOTICE), "a notice that is delivered twice has one link"
    assert address.startswith("https://console.example.com/l/")
    link = read_link(address.rpartition("/")[2], [key.public], now=NOTICE.at)
    assert (link.person, link.approval_id, link.issued_at, link.expires_at) == ("cy", "T1", NOTICE.at, NOTICE.until)
    link.check(approval_id="T1", payload_digest=json_digest(None))
    other = minter.link(NOTICE.model_copy(update={"key": "approval:other"}))
    assert other is not None
    assert read_link(other.rpartition("/")[2], [key.public], now=NOTICE.at).nonce != link.nonce
    for name in ("group:finance", "anyone"):
        assert minter.link(NOTICE.model_copy(update={"to": name})) is None
    with pytest.raises(ConfigurationError, match="console_url"):
        LinkMinter(key, "")


def test_a_notice_has_one_key_however_often_it_is_sent():
    ada = Recipient(name="ada", until=datetime(2030, 1, 1, tzinfo=UTC))
    key = notice_key("T1", "reminder", 0, 1, ada)
    assert key == notice_key("T1", "reminder", 0, 1, ada)
    others = [
        notice_key("T2", "reminder", 0, 1, ada),
        notice_key("T1", "asked", 0, 1, ada),
        notice_key("T1", "reminder", 1, 1, ada),
        notice_key("T1", "reminder", 0, 2, ada),
        notice_key("T1", "reminder", 0, 1, ada.model_copy(update={"name": "bob"})),
        notice_key("x" * 256, "reminder", 0, 1, ada.model_copy(update={"name": "y" * 206})),
    ]
    assert len({key, *others}) == 7
    assert all(check_idempotency_key(each) == each for each in others)
