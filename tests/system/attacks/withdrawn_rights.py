"""Attacks with withdrawn rights, and on the platform's files."""

from __future__ import annotations

import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import uuid4

from perdure.approvals.principals import sign_principal_action
from perdure.approvals.signatures import SignableAction, sign_action
from perdure.security import ActorKey, PrivateKey, Role, mint_link
from perdure.targets import Target
from tests.system.attacks.attack import Attack, Run, at_ingress
from tests.system.attacks.platform import GRACE, OLGA, VERA, DefendedPlatform

_Body = dict[str, Any]


def _new_person() -> str:
    return f"{uuid4().hex[:8]}@example.com"


def _now() -> datetime:
    return datetime.now(UTC)


def _key(at: DefendedPlatform, person: str, *roles: Role) -> ActorKey:
    """Issue a key, as the console does."""
    issuer = PrivateKey.load(at.topology.keys_dir / "console-issuer.pem")
    return ActorKey.issue(issuer, actor=person, roles=roles, lifetime=timedelta(hours=1), now=_now())


async def _state(at: DefendedPlatform, person: str, *roles: Role, active: bool = True, revokes: bool = False) -> None:
    """Publish a person's rights, as the console does."""
    now = _now()
    request = {"roles": list(roles), "active": active, "as_of": now, "revoked_before": now if revokes else None}
    body = sign_principal_action(_key(at, "perdure console", Role.ADMINISTRATOR), person, request, at=now, action="put")
    target: Target[_Body, _Body] = Target("Principals", "put", _Body, _Body)
    await at.harness.ingress.call(target, body, key=person)


async def _link(
    at: DefendedPlatform, person: str, *, age: timedelta = timedelta(0), expires: timedelta | None = None
) -> str:
    """Issue a link, as the notification service does."""
    return mint_link(
        PrivateKey.load(at.topology.keys_dir / "approval-links.pem"),
        approval_id=at.waiting,
        person=person,
        payload_digest=(await at.approval()).payload_digest,
        issued_at=_now() - age,
        expires_at=_now() + (expires or timedelta(hours=1)),
        nonce=uuid4().hex,
    )


async def _decide(at: DefendedPlatform, token: str) -> str:
    return await at_ingress(f"/Approvals/{at.waiting}/decide_by_link", {"token": token, "approve": True})(at)


async def _act(at: DefendedPlatform, key: ActorKey, action: SignableAction, **request: Any) -> str:
    digest = (await at.approval()).payload_digest
    body = sign_action(key, action, at.waiting, digest, request, at=_now())
    return await at_ingress(f"/Approvals/{at.waiting}/{action}", body)(at)


def _link_after(*, active: bool = True, roles: tuple[Role, ...] = (Role.APPROVER,), given_back: bool = False) -> Run:
    """Return an attack that decides with a link issued before a change of its owner's rights."""

    async def run(at: DefendedPlatform) -> str:
        person = _new_person()
        token = await _link(at, person)
        await _state(at, person, *roles, active=active, revokes=True)
        if given_back:
            await _state(at, person, Role.APPROVER)
        return await _decide(at, token)

    return run


async def _viewers_link(at: DefendedPlatform) -> str:
    person = _new_person()
    await _state(at, person, Role.VIEWER)
    return await _decide(at, await _link(at, person))


async def _revoked_link(at: DefendedPlatform) -> str:
    token = await _link(at, GRACE)
    if not (first := await _act(at, at.keys[OLGA], "revoke_links")).startswith("200"):
        return f"{first} for the operator's revocation"
    return await _decide(at, token)


async def _link_from_the_future(at: DefendedPlatform) -> str:
    return await _decide(at, await _link(at, GRACE, age=-timedelta(minutes=30)))


async def _link_of_an_earlier_approval(at: DefendedPlatform) -> str:
    return await _decide(at, await _link(at, GRACE, age=timedelta(days=1)))


async def _old_key_file(at: DefendedPlatform) -> str:
    person = _new_person()
    key = _key(at, person, Role.APPROVER)
    await _state(at, person, Role.APPROVER, revokes=True)
    return await _act(at, key, "approve")


def _states(request: Callable[[DefendedPlatform], tuple[str, _Body]]) -> Run:
    async def run(at: DefendedPlatform) -> str:
        person, body = request(at)
        return await at_ingress(f"/Principals/{person}/put", body)(at)

    return run


def _statement(**changes: Any) -> _Body:
    return {"roles": ["approver"], "active": True, "as_of": _now().isoformat(), **changes}


def _changed_statement(at: DefendedPlatform) -> tuple[str, _Body]:
    """Return a signed demotion of vera, changed to a promotion."""
    admin = _key(at, "perdure console", Role.ADMINISTRATOR)
    body = sign_principal_action(admin, VERA, _statement(roles=["viewer"]), at=_now(), action="put")
    return VERA, {**body, "roles": ["approver"]}


def _own_promotion(at: DefendedPlatform) -> tuple[str, _Body]:
    return VERA, sign_principal_action(at.keys[VERA], VERA, _statement(), at=_now(), action="put")


def _for_another_person(at: DefendedPlatform) -> tuple[str, _Body]:
    admin = _key(at, "perdure console", Role.ADMINISTRATOR)
    return VERA, sign_principal_action(admin, OLGA, _statement(), at=_now(), action="put")


async def _links_of_others(at: DefendedPlatform) -> str:
    return await _act(at, at.keys[VERA], "revoke_links", person=GRACE)


async def _rights_of_others(at: DefendedPlatform) -> str:
    body = sign_principal_action(at.keys[OLGA], GRACE, {}, at=_now())
    return await at_ingress(f"/Principals/{GRACE}/revoke", body)(at)


async def _endless_delegation(at: DefendedPlatform) -> str:
    until = (_now() + timedelta(days=3650)).isoformat()
    return await _act(at, at.keys[GRACE], "delegate", to=_new_person(), until=until)


async def _open_files(at: DefendedPlatform) -> str:
    """Search for files that other local users can read."""
    home = at.topology.home
    found = [
        path.relative_to(home).as_posix()
        for path in (home, *home.rglob("*"))
        if not path.is_symlink() and stat.S_IMODE(path.lstat().st_mode) & 0o077
    ]
    return f"readable: {', '.join(found[:3])}" if found else "none"


async def _links_at_rest(at: DefendedPlatform) -> str:
    """Search the platform's data and logs for approval links."""
    home = at.topology.home
    files = [path for folder in ("data", "logs") for path in (home / folder).rglob("*") if path.is_file()]
    found = [path.name for path in files if b"/l/eyJ" in path.read_bytes()]
    return f"found in {', '.join(found[:3])}" if found else "none"


RIGHTS: Final = (
    Attack("rights", "a link of a disabled user", "403", _link_after(active=False)),
    Attack("rights", "a link of a demoted user", "403", _link_after(roles=(Role.VIEWER,))),
    Attack(
        "rights",
        "an old link of a user who was disabled and enabled again",
        "403",
        _link_after(active=False, given_back=True),
    ),
    Attack("rights", "a viewer's link", "403", _viewers_link),
    Attack("rights", "a revoked link", "403", _revoked_link),
    Attack("rights", "a link with a future issue date", "401", _link_from_the_future),
    Attack("rights", "a link issued before the approval opened", "403", _link_of_an_earlier_approval),
    Attack("rights", "a key file issued before a change of rights", "403", _old_key_file),
    Attack("rights", "an unsigned promotion", "401", _states(lambda _: (VERA, _statement(actor=VERA)))),
    Attack("rights", "a viewer's own promotion", "403", _states(_own_promotion)),
    Attack("rights", "a signed demotion changed to a promotion", "403", _states(_changed_statement)),
    Attack("rights", "a statement about another person", "403", _states(_for_another_person)),
    Attack("rights", "a viewer revokes the links of another person", "403", _links_of_others),
    Attack("rights", "an operator revokes the rights of another person", "403", _rights_of_others),
    Attack("rights", "a delegation for ten years", "400", _endless_delegation),
    Attack("files", "another user reads a file of the platform", "none", _open_files),
    Attack("files", "approval links in data and logs", "none", _links_at_rest),
)
