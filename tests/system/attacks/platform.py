"""A platform with all its defences up, and with people in it whom an attacker would like to be."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self
from uuid import uuid4

import httpx
from argon2 import PasswordHasher
from sqlalchemy import Table as SqlTable
from sqlalchemy import select

from perdure._runtime.places import Place
from perdure.approvals.messages import ApprovalStatus
from perdure.approvals.targets import approval_status
from perdure.errors import IngressError
from perdure.saga.messages import DeadLetter, DeadLetterListRequest, DeadLetterPage
from perdure.saga.status import RollbackState
from perdure.security import ActorKey, PrivateKey, Role, mint_link, new_encryption_key
from perdure.security.codec import ENCRYPTION_KEYS_FILE
from perdure.targets import Target
from services.console.auth.api_keys import ApiKeys
from services.console.auth.passwords import Passwords
from services.console.auth.sessions import Sessions
from services.console.auth.users import Users
from services.console.database import Database as ConsoleDatabase
from services.console.settings import ConsoleSettings
from services.data_plane.database import Database
from services.data_plane.tables import Base
from services.runtime.booking import new_trip_id
from services.runtime.platform import Platform
from services.runtime.topology import Topology
from tests.system.scenarios.dead_letters import HOTEL
from tests.system.scenarios.harness import PASSWORD_MEMORY, HarnessError, Stage, harness_environment
from tests.system.scenarios.orders import order

MAX_BODY: Final = 64 * 1024
"""How much the gateway takes here."""

BODY_WITHIN: Final = timedelta(seconds=1)
"""How long the gateway waits for a body here."""

HASHER: Final = PasswordHasher(memory_cost=PASSWORD_MEMORY)
"""Hashes passwords as the console does here."""

_WITHIN: Final = 20.0
_LETTERS: Target[DeadLetterListRequest, DeadLetterPage] = Target(
    "DeadLetters", "list", DeadLetterListRequest, DeadLetterPage
)

ADA, GRACE, OLGA, VERA = "ada@example.com", "grace@example.com", "olga@example.com", "vera@example.com"
KIM = "kim@example.com"
MALLORY = "mallory@example.com"

PEOPLE: Final[Mapping[str, tuple[Role, ...]]] = {
    ADA: (Role.APPROVER,),  # who travels, and would approve it
    GRACE: (Role.APPROVER,),
    OLGA: (Role.OPERATOR,),
    VERA: (Role.VIEWER,),
    KIM: (Role.ADMINISTRATOR, Role.APPROVER),  # who made the shop's key, and would approve what it books
    MALLORY: (Role.OPERATOR, Role.APPROVER),  # who may book and approve, but not the same trip
}


def defended_environment(
    topology: Topology, environment: Mapping[str, str], *, encrypted: bool = True
) -> dict[str, str]:
    """Return the settings of a defended platform: signed actions, and short limits at the gateway.

    Args:
        topology: Where the platform keeps things; the keys of its journal are made there.
        environment: This process's environment.
        encrypted: Whether its journal is encrypted.

    Raises:
        ConfigurationError: The keys can't be made.
    """
    journal = {}
    if encrypted:
        keys = topology.keys_dir / "journal.keys"
        keys.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        new_encryption_key(keys)
        journal = {ENCRYPTION_KEYS_FILE: str(keys)}
    return {
        **harness_environment(environment),
        "PERDURE_ACTIONS": "signed",
        **journal,
        "PERDURE_CONSOLE_TRUSTED_PROXIES": "127.0.0.0/8",
        "PERDURE_CONSOLE_GATEWAY_MAX_BODY": str(MAX_BODY),
        "PERDURE_CONSOLE_GATEWAY_BODY_WITHIN": f"PT{BODY_WITHIN.total_seconds():g}S",
    }


@dataclass
class DefendedPlatform:
    """A running platform, seen by an attacker who knows a lot. Open it with `on`.

    Args:
        stage: The platform.
        http: Connections of the attacker's.
        waiting: A trip of ada's that the shop booked, and that waits for an approval.
        disguised: A trip that mallory booked in ada's name, and that waits for an approval.
        letter: A dead letter.
        link: A link to decide another approval, which was used already.
        linked: That approval.
        api_key: The shop's key, which may book trips and ask for their status, and nothing else.
        other_key: Another shop's key for the same.
        sessions: Sessions' tokens, by person.
        keys: Keys that sign acts, by person.
        engine_key: What the engine signs its requests with.
    """

    stage: Stage
    http: httpx.AsyncClient
    waiting: str
    disguised: str
    letter: DeadLetter
    link: str
    linked: str
    api_key: str
    other_key: str
    sessions: Mapping[str, str]
    keys: Mapping[str, ActorKey]
    engine_key: PrivateKey
    _database: Database = field(repr=False)

    @classmethod
    @asynccontextmanager
    async def on(cls, platform: Platform) -> AsyncIterator[Self]:
        """Open one on a platform that was started with `defended_environment` and a console.

        Args:
            platform: The running platform.

        Raises:
            PerdureError: A trip didn't come to where it should.
        """
        topology = platform.topology
        issuer = PrivateKey.load(topology.keys_dir / "console-issuer.pem")
        now = datetime.now(UTC)
        keys = {
            person: ActorKey.issue(issuer, actor=person, roles=roles, groups=(), lifetime=timedelta(hours=1), now=now)
            for person, roles in PEOPLE.items()
        }
        api_key, other_key, sessions = await _people(topology)
        database = Database(topology.database_url)
        try:
            async with Stage.on(platform) as stage, httpx.AsyncClient(trust_env=False, timeout=30) as http:
                waiting, linked, disguised = [
                    await _waiting(stage, http, token) for token in (api_key, api_key, sessions[MALLORY])
                ]
                link = await _used_link(stage, topology, linked)
                yield cls(
                    stage=stage,
                    http=http,
                    waiting=waiting,
                    disguised=disguised,
                    letter=await _dead_letter(stage),
                    link=link,
                    linked=linked,
                    api_key=api_key,
                    other_key=other_key,
                    sessions=sessions,
                    keys=keys,
                    engine_key=PrivateKey.load(topology.identity_key_file),
                    _database=database,
                )
        finally:
            await database.dispose()

    @property
    def topology(self) -> Topology:
        """Where everything is."""
        return self.stage.platform.topology

    async def approval(self, approval_id: str | None = None) -> ApprovalStatus:
        """Return an approval that is waited for.

        Args:
            approval_id: The approval; that of the shop's trip by default.
        """
        return await self.stage.ingress.call(approval_status, key=approval_id or self.waiting)

    async def letter_now(self) -> DeadLetter:
        """Return the dead letter, as it stands."""
        return (await self.stage.ingress.call(_LETTERS, DeadLetterListRequest(saga_id=self.letter.saga_id))).items[0]

    @property
    def encrypted(self) -> bool:
        """Whether the journal is encrypted."""
        return self.stage.platform.codec is not None

    def seal(self, body: bytes, place: Place) -> bytes:
        """Seal a body where the journal is encrypted, as an attacker does who has the journal's keys.

        Args:
            body: The body.
            place: Where it is sent.
        """
        codec = self.stage.platform.codec
        return body if codec is None else codec.seal(body, place)

    async def standing(self) -> str:
        """Return a digest of all that an attack must not change: the database, the approval and the dead letter."""
        await self.stage.until_quiet()
        digest = hashlib.sha256()
        async with self._database.snapshot() as connection:
            for table in Base.metadata.sorted_tables:
                digest.update(repr(sorted(map(repr, await connection.execute(_everything(table))))).encode())
        for approval in (await self.approval(), await self.approval(self.disguised)):
            digest.update(repr((approval.status, approval.decisions, approval.delegations)).encode())
        letter = await self.letter_now()
        digest.update(repr((letter.id, letter.redriven, letter.payload)).encode())
        return digest.hexdigest()


def _everything(table: SqlTable) -> Any:
    return select(table)


async def _people(topology: Topology) -> tuple[str, str, dict[str, str]]:
    settings = ConsoleSettings(local_dir=topology.home)
    database = ConsoleDatabase(settings.database)
    try:
        persons = Users(database, Passwords(HASHER))
        sessions = Sessions(database, idle=settings.session_idle, length=settings.session_length)
        tokens = {}
        for person, roles in PEOPLE.items():
            await persons.add(person, uuid4().hex, roles, by="the range")
            tokens[person], _, _ = await sessions.start(person, address="127.0.0.1", agent="the range")
        api_keys, rights = ApiKeys(database), ["Trips/run", "Trips/status"]
        secret, _ = await api_keys.add("shop", rights, by=KIM)
        other, _ = await api_keys.add("other-shop", rights, by=KIM)
    finally:
        await database.dispose()
    return secret, other, tokens


async def _waiting(stage: Stage, http: httpx.AsyncClient, token: str) -> str:
    trip_id = new_trip_id()
    answer = await http.post(
        f"{stage.platform.topology.console_url}/gateway/Trips/{trip_id}/run/send",
        json=order(amount_minor=250_000).model_dump(mode="json"),
        headers={"authorization": f"Bearer {token}"},
    )
    if not answer.is_success:
        raise HarnessError(f"the gateway took no trip: {answer.status_code} {answer.text[:200]}")
    await stage.until_step(trip_id, "approval")
    give_up = time.monotonic() + _WITHIN
    while True:
        try:
            await stage.ingress.call(approval_status, key=trip_id)
        except IngressError as error:
            if error.status_code != 404 or time.monotonic() > give_up:
                raise
        else:
            return trip_id
        await asyncio.sleep(0.02)


async def _used_link(stage: Stage, topology: Topology, approval_id: str) -> str:
    found = await stage.ingress.call(approval_status, key=approval_id)
    token = mint_link(
        PrivateKey.load(topology.keys_dir / "approval-links.pem"),
        approval_id=approval_id,
        person=GRACE,
        payload_digest=found.payload_digest,
        issued_at=datetime.now(UTC),
        expires_at=datetime.now(UTC) + timedelta(hours=1),
        nonce=uuid4().hex,
    )
    decide: Target[dict[str, Any], dict[str, Any]] = Target(
        "Approvals", "decide_by_link", dict[str, Any], dict[str, Any]
    )
    await stage.ingress.call(decide, {"token": token, "approve": True}, key=approval_id)
    if (answered := await stage.result(approval_id)) != "confirmed":
        raise HarnessError(f"the trip {approval_id} was approved by a link, and then: {answered}")
    return token


async def _dead_letter(stage: Stage) -> DeadLetter:
    trip_id = new_trip_id()
    await stage.book(trip_id, order(hotel=HOTEL, account="acct-declined"))
    await stage.until_rollback(trip_id, RollbackState.NEEDS_ATTENTION)
    return (await stage.ingress.call(_LETTERS, DeadLetterListRequest(saga_id=trip_id))).items[0]
