"""Authenticated callers, from the token at the ingress to the approval, with a real engine."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import httpx
import pytest
import pytest_asyncio
import restate as sdk

from perdure import ControlPlaneService, IngressClient, Orchestration, Target, handler
from perdure._runtime.places import OutputSource, Place
from perdure.approvals.messages import ApprovalOutcome, ApprovalStatus
from perdure.approvals.service import ApprovalsConfig
from perdure.approvals.service import definitions as approvals
from perdure.approvals.signatures import sign_action
from perdure.approvals.targets import approval_status
from perdure.callers import PARENT_CALLER_HEADER, Caller, caller
from perdure.engine.admin import AdminClient
from perdure.errors import IngressError
from perdure.saga.hosting import definitions as rollbacks
from perdure.security import (
    CALLER_HEADER,
    ActorKey,
    CallerKind,
    CallTarget,
    PrivateKey,
    Role,
    SecurityConfig,
    SigningMode,
    SigningRules,
    TrustedKeys,
    set_signing_rules,
    sign_call,
)
from perdure.security.callers import issue_call_token
from perdure.security.codec import new_encryption_key
from perdure.testing import Restate, RestateEnvironment
from tests.support import Recording, eventually

ISSUER, LINKS = PrivateKey.generate(), PrivateKey.generate()
SHOP = Caller(name="key:shop", kind=CallerKind.PROGRAM, owner="olga@example.com")
ADA = "ada@example.com"
ADAS_KEY = ActorKey.issue(
    ISSUER, actor="Zoë@example.com", roles=[Role.OPERATOR], lifetime=timedelta(hours=1), now=datetime.now(UTC)
)
TRUSTING = SigningRules(mode=SigningMode.SIGNED, trusted_keys=TrustedKeys(issuers=(ISSUER.public,)))


class Platform:
    """Services that return their caller, and a client that sends given tokens."""

    def __init__(self, env: RestateEnvironment, codec: Any = None) -> None:
        self.env = env
        self.codec = codec
        self.client = IngressClient(env.ingress, codec=codec)
        self.http = httpx.AsyncClient(trust_env=False, timeout=30)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()
        await self.http.aclose()

    async def send(self, path: str, body: bytes, token: str | None = None) -> httpx.Response:
        headers = {"content-type": "application/json"} if body or self.codec is not None else {}
        headers |= {} if token is None else {CALLER_HEADER: token}
        service, *key, handler_name = path.removesuffix("/send").strip("/").split("/")
        place = Place.input(service, key[0] if key else None, handler_name)
        content = body if self.codec is None else self.codec.seal(body, place)
        return await self.http.post(self.env.ingress + path, content=content, headers=headers)

    async def said(self, response: httpx.Response) -> bytes:
        assert response.status_code == 200, response.text
        if self.codec is None:
            return response.content
        source = OutputSource(invocation=response.headers["x-restate-id"])
        opened: bytes = self.codec.open_output(response.content, source)
        return opened

    async def asked(self, key: str) -> ApprovalStatus:
        async def look() -> ApprovalStatus | None:
            try:
                return await self.client.call(approval_status, key=key)
            except IngressError as error:
                if error.status_code != 404:
                    raise
                return None

        return await eventually(look, what=f"approval {key}")


def served(did: Recording) -> list[Any]:
    told, thing, wait = sdk.Service("Told"), sdk.VirtualObject("Thing"), sdk.Workflow("Wait")
    buying, private = ControlPlaneService("Buying"), ControlPlaneService("Quiet")
    parent, child = ControlPlaneService("Parent"), ControlPlaneService("Child", public=False)

    @handler(told)
    async def who(ctx: sdk.Context, text: str) -> Caller | None:
        did.add(f"{text}/who")
        return await caller(ctx)

    @handler(told)
    async def nothing(ctx: sdk.Context) -> Caller | None:
        return await caller(ctx)

    @handler(thing, "exclusive")
    async def touch(ctx: sdk.ObjectContext, text: str) -> Caller | None:
        return await caller(ctx)

    @handler(wait, "main")
    async def run(ctx: sdk.WorkflowContext, text: str) -> list[Caller | None]:
        before = await caller(ctx)
        await ctx.promise("go", type_hint=str).value()
        return [before]

    @handler(wait, "shared")
    async def go(ctx: sdk.WorkflowSharedContext) -> None:
        await ctx.promise("go", type_hint=str).resolve("on")

    @buying.main()
    async def buy(cp: Orchestration, subject: str) -> ApprovalOutcome:
        did.add(f"{cp.key}/begun")
        return await cp.request_approval(cp.key, timedelta(hours=1), subject=subject)

    @private.main()
    async def hush(cp: Orchestration, subject: str) -> Caller | None:
        return cp.caller

    @child.main()
    async def play(cp: Orchestration, subject: str) -> Caller | None:
        return cp.caller

    @parent.main()
    async def raise_(cp: Orchestration, subject: str) -> list[Caller | None]:
        of_private = await cp.child("private", play, subject)
        return [of_private, await cp.child("public", hush, subject, key=f"{cp.key}-public")]

    return [told, thing, wait, buying, private, parent, child, *rollbacks()]


@pytest_asyncio.fixture
async def platform(restate: Restate, did: Recording) -> AsyncIterator[Platform]:
    set_signing_rules(TRUSTING)
    env = await restate.serve(*approvals(ApprovalsConfig()), *served(did))
    async with Platform(env) as platform:
        yield platform
    set_signing_rules(None)


def gateway(target: CallTarget, body: bytes, who: Caller = SHOP, **changes: Any) -> str:
    facts = {"at": datetime.now(UTC), "issuer": ISSUER, **changes}
    return issue_call_token(facts.pop("issuer"), who, target, body, **facts)


def failed(response: httpx.Response) -> tuple[int, str]:
    facts = response.json().get("metadata") or {}
    return response.status_code, facts.get("why") or facts.get("code") or ""


async def test_caller_is_available_in_every_handler(platform: Platform):
    key = str(uuid4())
    for path, target, body in (
        ("/Told/who", CallTarget(service="Told", handler="who"), b'"x"'),
        ("/Told/who", CallTarget(service="Told", handler="who"), ' "zoë 王"'.encode()),
        ("/Told/nothing", CallTarget(service="Told", handler="nothing"), b""),
        (f"/Thing/{key}/touch", CallTarget(service="Thing", handler="touch", key=key), b'"x"'),
        (f"/Quiet/a%20%C3%AB{key}/run", CallTarget(service="Quiet", handler="run", key=f"a ë{key}"), b'"x"'),
    ):
        by_gateway = await platform.said(await platform.send(path, body, gateway(target, body)))
        assert Caller.model_validate_json(by_gateway) == SHOP, path
        if target.service == "Quiet":
            continue
        by_person = sign_call(ADAS_KEY, target, body, at=datetime.now(UTC))
        answer = await platform.said(await platform.send(path, body, by_person))
        assert Caller.model_validate_json(answer) == Caller(name="zoë@example.com")
        assert await platform.said(await platform.send(path, body)) in (b"", b"null")


BODY = b'"ada@example.com"'


def buying(key: str) -> CallTarget:
    return CallTarget(service="Buying", handler="run", key=key)


@pytest.mark.parametrize(
    ("why", "token"),
    [
        ("target", lambda key: gateway(buying(f"{key}x"), BODY)),
        ("target", lambda key: gateway(CallTarget(service="Quiet", handler="run", key=key), BODY)),
        ("body", lambda key: gateway(buying(key), b'"eve@example.com"')),
        ("platform", lambda key: gateway(buying(key), BODY, platform="another")),
        ("issuer", lambda key: gateway(buying(key), BODY, issuer=LINKS)),
        ("expired", lambda key: gateway(buying(key), BODY, at=datetime.now(UTC) - timedelta(days=2))),
        ("caller_token", lambda key: "key:shop"),
    ],
)
@pytest.mark.restate_modes("http2")
async def test_bad_token_stops_a_saga(platform: Platform, did: Recording, why: str, token: Callable[[str], str]):
    key = str(uuid4())
    assert failed(await platform.send(f"/Buying/{key}/run", BODY, token(key))) == (401, why)
    assert did.of(key) == []
    told = CallTarget(service="Told", handler="who")
    assert failed(await platform.send("/Told/who", b'"x"', gateway(told, b'"y"'))) == (401, "body")


async def test_requester_is_the_caller_and_not_the_subject(platform: Platform):
    key = str(uuid4())
    sent = await platform.send(f"/Buying/{key}/run/send", BODY, gateway(buying(key), BODY))
    assert sent.status_code == 202
    found = await platform.asked(key)
    assert (found.requester, found.requester_verified, found.requester_owner, found.subject) == (
        "key:shop",
        True,
        "olga@example.com",
        ADA,
    )
    for person in ("olga@example.com", ADA, "Ada+me@example.com"):
        approver = ActorKey.issue(
            ISSUER, actor=person, roles=[Role.APPROVER], lifetime=timedelta(hours=1), now=datetime.now(UTC)
        )
        body = sign_action(approver, "approve", key, found.payload_digest, {}, at=datetime.now(UTC))
        target: Any = Target("Approvals", "approve", dict[str, Any], dict[str, Any])
        with pytest.raises(IngressError) as refused:
            await platform.client.call(target, body, key=key)
        assert (refused.value.status_code, refused.value.code) == (403, "own_request"), person


async def test_signed_mode_refuses_unauthenticated_requesters(platform: Platform):
    key = str(uuid4())
    status, _ = failed(answer := await platform.send(f"/Buying/{key}/run", BODY))
    assert status == 401
    assert "the requester is not authenticated" in answer.text
    with pytest.raises(IngressError) as unknown:
        await platform.client.call(approval_status, key=key)
    assert unknown.value.status_code == 404


@pytest.mark.restate_modes("http2")
@pytest.mark.parametrize("mode", list(SigningMode))
async def test_unverified_requesters_are_marked(restate: Restate, did: Recording, mode: SigningMode):
    set_signing_rules(SigningRules(mode=mode, trusted_keys=TRUSTING.trusted_keys))
    try:
        allowed = ApprovalsConfig(allow_unverified_requester=mode is SigningMode.SIGNED)
        env, key = await restate.serve(*approvals(allowed), *served(did)), str(uuid4())
        async with Platform(env) as platform:
            await platform.send(f"/Buying/{key}/run/send", BODY)
            found = await platform.asked(key)
        assert (found.requester, found.requester_verified, found.subject) == (ADA, False, ADA)
        assert found.audit_log[0].details["requester"] == "unverified"
    finally:
        set_signing_rules(None)


async def test_caller_survives_key_rotation(platform: Platform):
    key = str(uuid4())
    target = CallTarget(service="Wait", handler="run", key=key)
    sent = await platform.send(f"/Wait/{key}/run/send", b'"x"', gateway(target, b'"x"'))
    assert sent.status_code == 202

    async def known() -> bool:
        async with AdminClient(platform.env.admin) as admin:
            rows = await admin.query(
                "select j.index from sys_journal j join sys_invocation_status i on i.id = j.id "
                f"where i.target_service_key = '{key}' and j.name = 'authenticate-caller'"
            )
            return bool(rows)

    await eventually(known, what="the caller in the journal")
    set_signing_rules(SigningRules(trusted_keys=TrustedKeys(issuers=(LINKS.public,))))
    await platform.send(f"/Wait/{key}/go", b"")
    answer = await platform.http.get(f"{platform.env.ingress}/restate/workflow/Wait/{key}/attach")
    assert [Caller.model_validate(each) for each in answer.json()] == [SHOP]


async def test_service_without_issuers_refuses_tokens(restate: Restate, did: Recording):
    set_signing_rules(SigningRules())
    try:
        target = CallTarget(service="Told", handler="who")
        async with Platform(await restate.serve(*served(did))) as platform:
            assert failed(await platform.send("/Told/who", b'"x"', gateway(target, b'"x"'))) == (401, "no_issuers")
            assert await platform.said(await platform.send("/Told/who", b'"x"')) in (b"", b"null")
    finally:
        set_signing_rules(None)


async def test_caller_is_available_with_encrypted_journal(restate: Restate, did: Recording, tmp_path: Path):
    set_signing_rules(TRUSTING)
    try:
        codec = new_encryption_key(tmp_path / "journal.keys")
        security = SecurityConfig.development(encryption_keys_file=tmp_path / "journal.keys")
        async with Platform(await restate.serve(*served(did), security=security), codec) as platform:
            target = CallTarget(service="Told", handler="who")
            answer = await platform.said(await platform.send("/Told/who", b'"x"', gateway(target, b'"x"')))
            assert Caller.model_validate_json(answer) == SHOP
            assert failed(await platform.send("/Told/who", b'"z"', gateway(target, b'"x"'))) == (401, "body")
            nothing = CallTarget(service="Told", handler="nothing")
            answer = await platform.said(await platform.send("/Told/nothing", b"", gateway(nothing, b"")))
            assert Caller.model_validate_json(answer) == SHOP
    finally:
        set_signing_rules(None)


async def test_private_child_inherits_caller(platform: Platform):
    for who in (SHOP, Caller(name="zoë@example.com"), None):
        key = str(uuid4())
        target = CallTarget(service="Parent", handler="run", key=key)
        token = None if who is None else gateway(target, b'"x"', who)
        answer = await platform.send(f"/Parent/{key}/run", b'"x"', token)
        found = [each and Caller.model_validate(each) for each in answer.json()]
        assert found == [who, None]


@pytest.mark.restate_modes("http2")
async def test_public_saga_ignores_caller_of_parent(platform: Platform):
    claimed = {PARENT_CALLER_HEADER: json.dumps(SHOP.model_dump(mode="json")), "content-type": "application/json"}
    answer = await platform.http.post(f"{platform.env.ingress}/Quiet/{uuid4()}/run", content=b'"x"', headers=claimed)
    assert (answer.status_code, answer.content) in ((200, b""), (200, b"null"))
    refused = await platform.http.post(f"{platform.env.ingress}/Child/{uuid4()}/run", content=b'"x"', headers=claimed)
    assert refused.status_code == 400
    assert "not public" in refused.text
