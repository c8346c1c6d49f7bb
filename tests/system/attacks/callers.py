"""Attacks on caller identity: false names, foreign tokens and executions of other callers."""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Final, Literal
from uuid import uuid4

import httpx

from perdure._runtime.places import Place
from perdure.approvals.signatures import delegation_details, sign_action
from perdure.engine.admin import AdminClient, sql_text
from perdure.security import (
    CALLER_HEADER,
    ActorKey,
    Caller,
    CallerKind,
    CallTarget,
    PrivateKey,
    Role,
    mint_link,
    sign_call,
)
from perdure.security.callers import issue_call_token
from services.runtime.booking import new_trip_id
from tests.system.attacks.attack import Attack, Run, at_ingress, status_of
from tests.system.attacks.platform import ADA, GRACE, KIM, MALLORY, VERA, DefendedPlatform
from tests.system.attacks.raw_http import raw_answer
from tests.system.scenarios.orders import order

_COSTLY: Final = json.dumps(order(amount_minor=900_000).model_dump(mode="json")).encode()
_SHOP: Final = Caller(name="key:shop", kind=CallerKind.PROGRAM, owner=KIM)


def _now() -> datetime:
    return datetime.now(UTC)


def _issuer(at: DefendedPlatform) -> PrivateKey:
    return PrivateKey.load(at.topology.keys_dir / "console-issuer.pem")


def _person(at: DefendedPlatform, actor: str, *, platform: str | None = None) -> ActorKey:
    """Return a key for an alias of a person, or for another platform."""
    lifetime = timedelta(hours=1)
    return ActorKey.issue(
        _issuer(at), actor=actor, roles=[Role.APPROVER, Role.OPERATOR], lifetime=lifetime, now=_now(), platform=platform
    )


def _approve(key: Callable[[DefendedPlatform], ActorKey], *, approve: bool = True) -> Run:
    async def run(at: DefendedPlatform) -> str:
        action: Literal["approve", "reject"] = "approve" if approve else "reject"
        digest = (await at.approval()).payload_digest
        body = sign_action(key(at), action, at.waiting, digest, {}, at=_now())
        return await at_ingress(f"/Approvals/{at.waiting}/{action}", body)(at)

    return run


def _delegate(key: Callable[[DefendedPlatform], ActorKey], to: str) -> Run:
    async def run(at: DefendedPlatform) -> str:
        digest = (await at.approval()).payload_digest
        details = delegation_details(to, _now() + timedelta(hours=1))
        body = sign_action(key(at), "delegate", at.waiting, digest, details, at=_now())
        return await at_ingress(f"/Approvals/{at.waiting}/delegate", body)(at)

    return run


async def _own_booking(at: DefendedPlatform) -> str:
    """Approve as mallory the trip that mallory booked in ada's name."""
    digest = (await at.approval(at.disguised)).payload_digest
    body = sign_action(at.keys[MALLORY], "approve", at.disguised, digest, {}, at=_now())
    return await at_ingress(f"/Approvals/{at.disguised}/approve", body)(at)


async def _link_of_the_subject(at: DefendedPlatform) -> str:
    token = mint_link(
        PrivateKey.load(at.topology.keys_dir / "approval-links.pem"),
        approval_id=at.waiting,
        person="Ada+trips@example.com",
        payload_digest=(await at.approval()).payload_digest,
        issued_at=_now(),
        expires_at=_now() + timedelta(hours=1),
        nonce=uuid4().hex,
    )
    return await at_ingress(f"/Approvals/{at.waiting}/decide_by_link", {"token": token, "approve": True})(at)


async def _link_of_another_platform(at: DefendedPlatform) -> str:
    token = mint_link(
        PrivateKey.load(at.topology.keys_dir / "approval-links.pem"),
        approval_id=at.waiting,
        person=GRACE,
        payload_digest=(await at.approval()).payload_digest,
        issued_at=_now(),
        expires_at=_now() + timedelta(hours=1),
        nonce=uuid4().hex,
        platform="another",
    )
    return await at_ingress(f"/Approvals/{at.waiting}/decide_by_link", {"token": token, "approve": True})(at)


Forge = Callable[[DefendedPlatform, CallTarget], Awaitable[str]]


def _book(token: Forge, *, body: bytes = _COSTLY) -> Run:
    """Return an attack that books a trip over the limit with a caller token."""

    async def run(at: DefendedPlatform) -> str:
        target = CallTarget(service="Trips", handler="run", key=new_trip_id())
        headers = {"content-type": "application/json", CALLER_HEADER: await token(at, target)}
        url = f"{at.topology.ingress_url}/Trips/{target.key}/run"
        content = at.seal(body, Place.input(target.service, target.key, target.handler))
        return status_of(await at.http.post(url, content=content, headers=headers))

    return run


def _forged(make: Callable[[DefendedPlatform, CallTarget], str]) -> Forge:
    async def forge(at: DefendedPlatform, target: CallTarget) -> str:
        return make(at, target)

    return forge


async def _of_the_journal(at: DefendedPlatform, _target: CallTarget) -> str:
    """Copy the caller token of the shop's trip from the engine's journal."""
    async with AdminClient(at.topology.admin_url) as admin:
        rows = await admin.query(
            "select j.entry_json from sys_journal j join sys_invocation_status i on i.id = j.id "
            f"where i.target_service_key = {sql_text(at.waiting)} and i.target_handler_name = 'run' and j.index = 0"
        )
    headers = json.loads(rows[0]["entry_json"])["Command"]["Input"]["headers"]
    return next(str(each["value"]) for each in headers if each["name"] == CALLER_HEADER)


def _unsigned(at: DefendedPlatform, target: CallTarget) -> str:
    """Return a gateway token with a signature of zeros."""
    genuine = issue_call_token(_issuer(at), _SHOP, target, _COSTLY, at=_now())
    return f"{genuine.partition('.')[0]}.{base64.urlsafe_b64encode(bytes(64)).decode().rstrip('=')}"


def _genuine(at: DefendedPlatform, target: CallTarget) -> str:
    return issue_call_token(_issuer(at), _SHOP, target, _COSTLY, at=_now())


def _outdated(at: DefendedPlatform, target: CallTarget) -> str:
    return issue_call_token(_issuer(at), _SHOP, target, _COSTLY, at=_now() - timedelta(days=2))


def _read(path: str, token: Callable[[DefendedPlatform], str], *, method: str = "GET") -> Run:
    async def run(at: DefendedPlatform) -> str:
        url = f"{at.topology.console_url}/gateway{path.format(at.waiting)}"
        return status_of(await at.http.request(method, url, headers={"authorization": f"Bearer {token(at)}"}))

    return run


async def _another_idempotency_key(at: DefendedPlatform) -> str:
    """Repeat another caller's request with its idempotency key; return ``own`` or ``shared`` for the result."""

    async def asked(token: str) -> httpx.Response:
        return await at.http.post(
            f"{at.topology.console_url}/gateway/DeadLetters/list",
            json={},
            headers={"authorization": f"Bearer {token}", "idempotency-key": "order-1"},
        )

    first, second, again = [await asked(at.sessions[person]) for person in (VERA, MALLORY, VERA)]
    ids = [each.headers.get("x-restate-id", "") for each in (first, second, again)]
    if not all(each.is_success for each in (first, second, again)) or ids[0] != ids[2]:
        return f"{first.status_code} {ids}"
    return "own" if ids[0] != ids[1] else "shared"


def _raw(*lines: str, body: bytes) -> Run:
    async def run(at: DefendedPlatform) -> str:
        head = ("POST /gateway/Trips/attack/run HTTP/1.1", "host: x", f"authorization: Bearer {at.api_key}", *lines)
        request = "".join(f"{line}\r\n" for line in head).encode() + b"\r\n" + body
        return await raw_answer(at.topology.console_port, request)

    return run


_CHUNKED: Final = "transfer-encoding: chunked"
_CHUNKS: Final = b"2\r\n{}\r\n0\r\n\r\n"

IDENTITY: Final[tuple[Attack, ...]] = (
    Attack("identity", "an operator approves their own booking under a false name", "403", _own_booking),
    Attack("identity", "a caller's name in the header", "401", _book(_forged(lambda *_: "key:shop"))),
    Attack("identity", "a caller's token without a signature", "401", _book(_forged(_unsigned))),
    Attack(
        "identity",
        "a caller's token by an unknown issuer",
        "401",
        _book(_forged(lambda _, target: issue_call_token(PrivateKey.generate(), _SHOP, target, _COSTLY, at=_now()))),
    ),
    Attack(
        "identity",
        "a caller's token of another platform",
        "401",
        _book(_forged(lambda at, to: issue_call_token(_issuer(at), _SHOP, to, _COSTLY, at=_now(), platform="another"))),
    ),
    Attack(
        "identity",
        "a person's call, signed for another platform",
        "401",
        _book(_forged(lambda at, to: sign_call(_person(at, MALLORY, platform="another"), to, _COSTLY, at=_now()))),
    ),
    Attack("identity", "a caller token copied from the journal", "401", _book(_of_the_journal)),
    Attack("identity", "a caller's token for another body", "401", _book(_forged(_genuine), body=_COSTLY + b" ")),
    Attack("identity", "a caller token that is two days old", "401", _book(_forged(_outdated))),
    Attack(
        "identity", "an alias of the subject approves", "403", _approve(lambda at: _person(at, "ada+x@example.com"))
    ),
    Attack("identity", "the subject in capitals approves", "403", _approve(lambda at: _person(at, "ADA@EXAMPLE.COM"))),
    Attack(
        "identity",
        "an alias of the subject rejects",
        "403",
        _approve(lambda at: _person(at, "ada+x@example.com"), approve=False),
    ),
    Attack("identity", "the owner of the requesting key approves", "403", _approve(lambda at: at.keys[KIM])),
    Attack(
        "identity",
        "a delegation to an alias of the subject",
        "403",
        _delegate(lambda at: at.keys[GRACE], "ada+x@example.com"),
    ),
    Attack("identity", "a delegation to the owner of the key", "403", _delegate(lambda at: at.keys[GRACE], KIM)),
    Attack("identity", "the subject delegates", "403", _delegate(lambda at: at.keys[ADA], MALLORY)),
    Attack("identity", "a link of an alias of the subject", "403", _link_of_the_subject),
    Attack("identity", "a link of another platform", "401", _link_of_another_platform),
    Attack(
        "identity",
        "an approver of another platform approves",
        "401",
        _approve(lambda at: _person(at, GRACE, platform="another")),
    ),
    Attack(
        "identity",
        "another key attaches to the shop's trip",
        "404",
        _read("/restate/workflow/Trips/{}/attach", lambda at: at.other_key),
    ),
    Attack(
        "identity",
        "another key reads the shop's result",
        "404",
        _read("/restate/workflow/Trips/{}/output", lambda at: at.other_key),
    ),
    Attack(
        "identity",
        "another key reads the status of the shop's trip",
        "404",
        _read("/Trips/{}/status", lambda at: at.other_key, method="POST"),
    ),
    Attack(
        "identity",
        "a viewer reads the shop's result",
        "404",
        _read("/restate/workflow/Trips/{}/output", lambda at: at.sessions[VERA]),
    ),
    Attack("identity", "a reused idempotency key of another caller", "own", _another_idempotency_key),
    Attack(
        "identity",
        "a body with a length and in chunks",
        "400",
        _raw("content-length: 2", _CHUNKED, "content-type: application/json", body=_CHUNKS),
    ),
    Attack(
        "identity",
        "a body in chunks and with a length",
        "400",
        _raw(_CHUNKED, "content-length: 13", "content-type: application/json", body=_CHUNKS),
    ),
    Attack(
        "identity",
        "a body with two lengths",
        "400",
        _raw("content-length: 2", "content-length: 2", "content-type: application/json", body=b"{}"),
    ),
    Attack(
        "identity",
        "a body with two encodings",
        "400",
        _raw(_CHUNKED, _CHUNKED, "content-type: application/json", body=_CHUNKS),
    ),
)
"""Attacks on caller identity."""
