"""A platform with all security features enabled, and with users that an attacker may impersonate."""

from __future__ import annotations

import hashlib
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
from services.data_plane.schemas import SCHEMAS
from services.database import Database
from services.runtime.booking import new_trip_id
from services.runtime.platform import Platform
from services.runtime.topology import Topology
from tests.system.scenarios.databases import opened_databases
from tests.system.scenarios.dead_letters import HOTEL
from tests.system.scenarios.harness import PASSWORD_MEMORY, Harness, HarnessError, harness_environment
from tests.system.scenarios.orders import order

MAX_BODY: Final = 64 * 1024
"""Size limit of the gateway."""

BODY_WITHIN: Final = timedelta(seconds=1)
"""Time limit of the gateway for a request body."""

HASHER: Final = PasswordHasher(memory_cost=PASSWORD_MEMORY)
"""Password hasher with the settings of the console."""

_WITHIN: Final = 20.0
_LETTERS: Target[DeadLetterListRequest, DeadLetterPage] = Target(
    "DeadLetters", "list", DeadLetterListRequest, DeadLetterPage
)

ADA, GRACE, OLGA, VERA = "ada@example.com", "grace@example.com", "olga@example.com", "vera@example.com"
KIM = "kim@example.com"
MALLORY = "mallory@example.com"

PEOPLE: Final[Mapping[str, tuple[Role, ...]]] = {
    ADA: (Role.APPROVER,),  # the traveller
    GRACE: (Role.APPROVER,),
    OLGA: (Role.OPERATOR,),
    VERA: (Role.VIEWER,),
    KIM: (Role.ADMINISTRATOR, Role.APPROVER),  # created the shop's key
    MALLORY: (Role.OPERATOR, Role.APPROVER),  # may book and approve, but not the same trip
}


def defended_environment(
    topology: Topology, environment: Mapping[str, str], *, encrypted: bool = True
) -> dict[str, str]:
    """Return the environment of a defended platform: signed actions, and low limits at the gateway.

    Args:
        topology: The platform's topology; the journal keys are created in its folder.
        environment: This process's environment.
        encrypted: Whether the journal is encrypted.

    Raises:
        ConfigurationError: The keys cannot be created.
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
    """A running platform, from the view of an attacker with inside knowledge. Open it with `on`.

    Args:
        harness: The platform.
        http: The attacker's client.
        waiting: Ada's trip, booked by the shop and waiting for an approval.
        disguised: Trip that mallory booked in ada's name, waiting for an approval.
        letter: A dead letter.
        link: Used link of another approval.
        linked: The approval of the link.
        api_key: The shop's API key, which permits booking trips and reading their status.
        other_key: Another shop's API key with the same permissions.
        sessions: Session tokens by person.
        keys: Keys for signed actions by person.
        engine_key: Key that signs the engine's requests.
    """

    harness: Harness
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
    _databases: Mapping[str, Database] = field(repr=False)

    @classmethod
    @asynccontextmanager
    async def on(cls, platform: Platform) -> AsyncIterator[Self]:
        """Prepare users, trips and approvals on a platform started with `defended_environment` and a console.

        Args:
            platform: The running platform.

        Raises:
            PerdureError: A trip did not reach the prepared state.
        """
        topology = platform.topology
        issuer = PrivateKey.load(topology.keys_dir / "console-issuer.pem")
        now = datetime.now(UTC)
        keys = {
            person: ActorKey.issue(issuer, actor=person, roles=roles, groups=(), lifetime=timedelta(hours=1), now=now)
            for person, roles in PEOPLE.items()
        }
        api_key, other_key, sessions = await _people(topology)
        async with (
            opened_databases(topology.databases) as databases,
            Harness.on(platform) as harness,
            httpx.AsyncClient(trust_env=False, timeout=30) as http,
        ):
            waiting, linked, disguised = [
                await _waiting(harness, http, token) for token in (api_key, api_key, sessions[MALLORY])
            ]
            link = await _used_link(harness, topology, linked)
            yield cls(
                harness=harness,
                http=http,
                waiting=waiting,
                disguised=disguised,
                letter=await _dead_letter(harness),
                link=link,
                linked=linked,
                api_key=api_key,
                other_key=other_key,
                sessions=sessions,
                keys=keys,
                engine_key=PrivateKey.load(topology.identity_key_file),
                _databases=databases,
            )

    @property
    def topology(self) -> Topology:
        """Topology of the platform."""
        return self.harness.platform.topology

    async def approval(self, approval_id: str | None = None) -> ApprovalStatus:
        """Return the status of an approval.

        Args:
            approval_id: The approval; by default that of the shop's trip.
        """
        return await self.harness.ingress.call(approval_status, key=approval_id or self.waiting)

    async def letter_now(self) -> DeadLetter:
        """Return the current state of the dead letter."""
        return (await self.harness.ingress.call(_LETTERS, DeadLetterListRequest(saga_id=self.letter.saga_id))).items[0]

    @property
    def encrypted(self) -> bool:
        """Whether the journal is encrypted."""
        return self.harness.platform.codec is not None

    def seal(self, body: bytes, place: Place) -> bytes:
        """Seal a body if the journal is encrypted, as an attacker with the journal's keys does.

        Args:
            body: The body.
            place: Place of the value.
        """
        codec = self.harness.platform.codec
        return body if codec is None else codec.seal(body, place)

    async def data_digest(self) -> str:
        """Return a digest of the data that no attack may change: databases, approvals and dead letter."""
        await self.harness.until_quiet()
        digest = hashlib.sha256()
        for service, database in self._databases.items():
            async with database.snapshot() as connection:
                for table in SCHEMAS[service].metadata.sorted_tables:
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
            await persons.add(person, uuid4().hex, roles, by="attack")
            tokens[person], _, _ = await sessions.start(person, address="127.0.0.1", agent="attack")
        api_keys, rights = ApiKeys(database), ["Trips/run", "Trips/status"]
        secret, _ = await api_keys.add("shop", rights, by=KIM)
        other, _ = await api_keys.add("other-shop", rights, by=KIM)
    finally:
        await database.dispose()
    return secret, other, tokens


async def _waiting(harness: Harness, http: httpx.AsyncClient, token: str) -> str:
    trip_id = new_trip_id()
    answer = await http.post(
        f"{harness.platform.topology.console_url}/gateway/Trips/{trip_id}/run/send",
        json=order(amount_minor=250_000).model_dump(mode="json"),
        headers={"authorization": f"Bearer {token}"},
    )
    if not answer.is_success:
        raise HarnessError(f"the gateway refused the trip: {answer.status_code} {answer.text[:200]}")
    await harness.until_step(trip_id, "approval")
    await harness.until_approval_is_open(trip_id)
    return trip_id


async def _used_link(harness: Harness, topology: Topology, approval_id: str) -> str:
    found = await harness.ingress.call(approval_status, key=approval_id)
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
    await harness.ingress.call(decide, {"token": token, "approve": True}, key=approval_id)
    if (answered := await harness.result(approval_id)) != "confirmed":
        raise HarnessError(f"trip {approval_id}, approved by a link, ended with: {answered}")
    return token


async def _dead_letter(harness: Harness) -> DeadLetter:
    trip_id = new_trip_id()
    await harness.book(trip_id, order(hotel=HOTEL, account="acct-declined"))
    await harness.until_rollback(trip_id, RollbackState.NEEDS_ATTENTION)
    return (await harness.ingress.call(_LETTERS, DeadLetterListRequest(saga_id=trip_id))).items[0]
