"""State machine that attacks an approval through the ingress without a valid credential.

After any sequence of requests the approval is open, no vote is counted, and the workflow waits. A valid signature then
decides.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from perdure import ControlPlaneService, Orchestration
from perdure._runtime.invocation_ids import signal_id
from perdure.approvals.service import ApprovalsConfig, definitions
from perdure.approvals.signatures import sign_action
from perdure.security import (
    ActorKey,
    PrivateKey,
    Role,
    SigningMode,
    SigningRules,
    TrustedKeys,
    mint_link,
)
from perdure.security.encodings import json_digest
from perdure.testing import Restate, RestateEnvironment

HOUR = timedelta(hours=1)
ISSUER, STRANGER, LINKS = PrivateKey.generate(), PrivateKey.generate(), PrivateKey.generate()
PAYLOAD = {"amount_minor": 900_000}
DIGEST = json_digest(PAYLOAD)

PUBLIC = ("approve", "reject", "delegate", "withdraw", "decide_by_link", "revoke_links")
REFUSALS = range(400, 500)

payments = ControlPlaneService("Payments", idempotency_prefix="payment")


@payments.main()
async def pay(cp: Orchestration, order: dict[str, Any]) -> str:
    outcome = await cp.request_approval(
        cp.key, HOUR, subject="req", approvers=["ada"], payload=PAYLOAD, title="A large payment"
    )
    return ",".join(outcome.decided_by)


def key_of(actor: str, *, issuer: PrivateKey = ISSUER, role: Role = Role.APPROVER) -> ActorKey:
    return ActorKey.issue(issuer, actor=actor, roles=(role,), lifetime=HOUR, now=datetime.now(UTC))


ADA, VIEWER, REQUESTER = key_of("ada"), key_of("ada", role=Role.VIEWER), key_of("req")
UNTRUSTED = key_of("ada", issuer=STRANGER)


def signed(
    key: ActorKey, action: Any, approval: str, digest: str = DIGEST, age: timedelta = timedelta()
) -> dict[str, Any]:
    request: dict[str, Any] = {"reason": "because"}
    if action == "delegate":
        request |= {"to": "eve", "until": (datetime.now(UTC) + HOUR / 2).isoformat()}
    return sign_action(key, action, approval, digest, request, at=datetime.now(UTC) - age)


def completions_of(invocation: str) -> list[str]:
    """Return the IDs of an invocation's first signals, which an attacker can derive."""
    return [signal_id(invocation, number) for number in range(17, 25)]


class Forger(RuleBasedStateMachine):
    """Sends unauthorized requests; the test sets its environment."""

    env: RestateEnvironment

    @initialize()
    def open_approval(self) -> None:
        self.http = httpx.Client(base_url=self.env.ingress, timeout=100)
        self.approval = f"P{uuid4().hex[:12]}"
        started = self.http.post(f"/Payments/{self.approval}/run/send", json={})
        self.invocation = started.json()["invocationId"]
        for _ in range(1000):
            found = self.http.post(f"/Approvals/{self.approval}/status")
            if found.status_code == 200:
                break
        assert found.json()["status"] == "open"

    def refused(self, action: str, body: Any, *, approval: str | None = None) -> None:
        answer = self.http.post(f"/Approvals/{approval or self.approval}/{action}", json=body)
        assert answer.status_code in REFUSALS, (action, body, answer.text)

    @rule(action=st.sampled_from(PUBLIC), actor=st.sampled_from(["ada", "ADA", "req", "eve", "admin", ""]))
    def act_without_signature(self, action: str, actor: str) -> None:
        self.refused(action, {"actor": actor, "reason": "", "to": "eve", "token": "x", "approve": True})
        self.refused(action, {"actor": actor, "reason": ""})

    @rule(
        action=st.sampled_from(PUBLIC[:4]),
        key=st.sampled_from([UNTRUSTED, VIEWER, REQUESTER]),
    )
    def act_with_wrong_key(self, action: str, key: ActorKey) -> None:
        if not (key is REQUESTER and action == "withdraw") and not (key is VIEWER and action == "withdraw"):
            self.refused(action, signed(key, action, self.approval))

    @rule(action=st.sampled_from(PUBLIC[:4]), change=st.sampled_from(["id", "digest", "age", "future", "action"]))
    def act_with_signature_for_something_else(self, action: Any, change: str) -> None:
        other: Any = {"approve": "reject", "reject": "approve", "delegate": "withdraw", "withdraw": "delegate"}[action]
        body = {
            "id": lambda: signed(ADA, action, "another"),
            "digest": lambda: signed(ADA, action, self.approval, "0" * 64),
            "age": lambda: signed(ADA, action, self.approval, age=timedelta(minutes=30)),
            "future": lambda: signed(ADA, action, self.approval, age=-timedelta(minutes=30)),
            "action": lambda: signed(ADA, other, self.approval),
        }[change]()
        self.refused(action, body)

    @rule(data=st.data(), action=st.sampled_from(PUBLIC[:4]))
    def act_with_altered_signature(self, data: st.DataObject, action: Any) -> None:
        text = json.dumps(signed(ADA, action, self.approval)["signed_action"])
        altered: dict[str, Any] = json.loads(text)
        field = data.draw(st.sampled_from(sorted(altered)))
        value = altered[field]
        if isinstance(value, str) and value:
            at = data.draw(st.integers(0, len(value) - 1))
            altered[field] = value[:at] + ("A" if value[at] != "A" else "B") + value[at + 1 :]
        else:
            altered[field] = None
        body = {**signed(ADA, action, self.approval), "signed_action": altered}
        if altered != json.loads(text):
            self.refused(action, body)

    @rule(kind=st.sampled_from(["stranger", "expired", "other", "digest", "garbage"]), approve=st.booleans())
    def decide_by_forged_link(self, kind: str, approve: bool) -> None:
        facts: dict[str, Any] = {
            "approval_id": self.approval,
            "person": "ada",
            "payload_digest": DIGEST,
            "issued_at": datetime.now(UTC),
            "expires_at": datetime.now(UTC) + HOUR,
            "nonce": uuid4().hex,
        }
        change: dict[str, dict[str, Any]] = {
            "expired": {"expires_at": datetime.now(UTC) - HOUR},
            "other": {"approval_id": "another"},
            "digest": {"payload_digest": "0" * 64},
        }
        token = mint_link(STRANGER if kind == "stranger" else LINKS, **facts | change.get(kind, {}))
        self.refused("decide_by_link", {"token": token[5:] if kind == "garbage" else token, "approve": approve})

    @rule(
        handler=st.sampled_from(["open", "leave", "listen", "end_stage", "remind", "purge", "repair"]),
        body=st.sampled_from([None, {}, {"stage": 0}, {"closed_at": None}, {"awakeable": None, "reason": "x"}]),
    )
    def call_internal_handler(self, handler: str, body: Any) -> None:
        for path in (f"/Approvals/{self.approval}/{handler}", f"/Approvals/{self.approval}/{handler}/send"):
            answer = self.http.post(path, json=body)
            assert answer.status_code in REFUSALS, (path, answer.text)

    @rule(
        ending=st.sampled_from(["resolve", "reject"]),
        index=st.integers(0, 7),
        outcome=st.sampled_from(["approved", "rejected", "timed_out", "withdrawn"]),
    )
    def complete_awakeable(self, ending: str, index: int, outcome: str) -> None:
        id_ = completions_of(self.invocation)[index]
        body = {"approval_id": self.approval, "outcome": outcome, "decided_by": ["mallory"], "reason": "forged"}
        answer = self.http.post(f"/restate/awakeables/{id_}/{ending}", json=body)
        assert answer.status_code < 500, answer.text

    @rule(action=st.sampled_from(["put", "revoke"]), key=st.sampled_from([None, UNTRUSTED, VIEWER]))
    def withdraw_rights_of_approver(self, action: str, key: ActorKey | None) -> None:
        moment = datetime.now(UTC)
        body: dict[str, Any] = {"actor": "eve", "reason": "because"}
        if action == "put":
            body |= {"roles": [], "active": False, "as_of": moment.isoformat(), "revoked_before": moment.isoformat()}
        if key is not None:
            body |= {"actor": key.actor, "signed_action": signed(key, "approve", self.approval)["signed_action"]}
        answer = self.http.post(f"/Principals/ada/{action}", json=body)
        assert answer.status_code in REFUSALS, (action, body, answer.text)

    @rule(text=st.text(max_size=20), handler=st.sampled_from(PUBLIC))
    def send_garbage(self, text: str, handler: str) -> None:
        answer = self.http.post(
            f"/Approvals/{self.approval}/{handler}",
            content=text.encode("utf-8", "surrogatepass"),
            headers={"content-type": "application/json"},
        )
        assert answer.status_code in REFUSALS, answer.text

    @invariant()
    def nothing_is_decided(self) -> None:
        status = self.http.post(f"/Approvals/{self.approval}/status").json()
        assert (status["status"], status["decisions"], status["delegations"]) == ("open", [], [])
        ended = self.http.get(f"/restate/workflow/Payments/{self.approval}/output")
        assert ended.status_code == 470, ended.text  # "not ready": it still waits

    def teardown(self) -> None:
        answer = self.http.post(f"/Approvals/{self.approval}/approve", json=signed(ADA, "approve", self.approval))
        assert answer.json()["status"] == "approved", answer.text
        result = self.http.get(f"/restate/workflow/Payments/{self.approval}/attach")
        assert result.json() == "ada", result.text
        self.http.close()


@pytest_asyncio.fixture
async def env(restate: Restate) -> AsyncIterator[RestateEnvironment]:
    rules = SigningRules(mode=SigningMode.SIGNED, trusted_keys=TrustedKeys(issuers=(ISSUER.public,)))
    config = ApprovalsConfig(signing=rules, link_keys=(LINKS.public,), allow_unverified_requester=True)
    yield await restate.serve(*definitions(config), payments)


@pytest.mark.restate_modes("http2", "always_suspending")
@pytest.mark.timeout(400)  # each forged completion doubles the pause before the waiter reads the outcome
async def test_unsigned_requests_never_change_outcome(env: RestateEnvironment):
    machine: type[Forger] = type("ForgerHere", (Forger,), {"env": env})
    bounds = settings(
        max_examples=8,
        stateful_step_count=15,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
        phases=(Phase.generate,),  # shrinking repeats slow requests
    )
    await asyncio.to_thread(run_state_machine_as_test, machine, settings=bounds)
