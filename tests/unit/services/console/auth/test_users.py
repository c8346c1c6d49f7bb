"""Users, passwords, sessions and client addresses."""

from __future__ import annotations

import stat
from datetime import timedelta

import pytest
from argon2 import PasswordHasher
from sqlalchemy import insert, select, text, update

from perdure.errors import ConfigurationError
from services.console.auth.passwords import Passwords, Source
from services.console.auth.roles import Role
from services.console.auth.users import Users, utc_now
from services.console.database import Database
from services.console.problems import ConsoleError
from services.console.tables import ActionRow, SchemaRow, SessionRow, UserRow
from tests.unit.services.console.conftest import CHEAP, PASSWORD

IDLE, LENGTH = timedelta(minutes=30), timedelta(hours=12)

HERE = Source("a test")


async def code_of(awaitable) -> tuple[int, str]:
    with pytest.raises(ConsoleError) as caught:
        await awaitable
    return caught.value.status, caught.value.problem.code


async def test_password_is_stored_as_argon2id(console):
    await console.add("ada@example.com")
    users = console.components.users
    async with console.components.database.snapshot() as connection:
        (stored,) = await connection.scalars(select(UserRow.password_hash))
    assert stored.startswith("$argon2id$")
    assert PASSWORD not in stored
    assert await users.verify_password("  ADA@example.com ", PASSWORD, HERE)
    assert not await users.verify_password("ada@example.com", PASSWORD + "!", HERE)
    assert not await users.verify_password("ada@example.com", "", HERE)
    assert not await users.verify_password("unknown@example.com", PASSWORD, HERE)


async def test_unknown_name_is_verified_too(monkeypatch):
    # Counted, not timed: equal work gives equal times.
    checked = []

    class Counting(PasswordHasher):
        def verify(self, known, password):
            checked.append(known)
            return CHEAP.verify(known, password)

    passwords = Passwords(Counting(time_cost=1, memory_cost=8, parallelism=1))
    known = CHEAP.hash(PASSWORD)
    assert await passwords.verify(known, PASSWORD, HERE)
    assert not await passwords.verify(None, PASSWORD, HERE)
    assert len(checked) == 2
    assert checked[0] == known
    assert checked[1].startswith("$argon2id$")
    assert not await passwords.verify("not a hash", PASSWORD, HERE)


@pytest.mark.parametrize("password", ["", "short", "x" * 11, "x" * 201, "abababababababab"])
async def test_reject_weak_password(console, password):
    rejected = console.components.users.add("ada@example.com", password, [Role.VIEWER], by="a test")
    assert await code_of(rejected) == (400, "invalid_input")
    assert await console.components.users.all() == []


@pytest.mark.parametrize("name", ["", "   ", "anyone", "group:finance", "x" * 201, "\u200b"])
async def test_reject_reserved_name(console, name):
    rejected = console.components.users.add(name, PASSWORD, [Role.VIEWER], by="a test")
    assert await code_of(rejected) == (400, "invalid_input")


async def test_names_are_compared_in_canonical_form(console):
    await console.add("ada@example.com")
    assert await code_of(console.components.users.add("ADA@Example.com", PASSWORD, [Role.VIEWER], by="x")) == (
        409,
        "name_taken",
    )


async def test_session_expires(console):
    token = await console.add("ada@example.com")
    sessions, clock = console.components.sessions, console.clock
    clock.move(IDLE - timedelta(seconds=1))
    assert await sessions.find(token) is not None
    clock.move(IDLE - timedelta(seconds=1))
    session = await sessions.find(token)
    assert session is not None, "use extends the session"
    clock.move(IDLE - timedelta(minutes=5))
    assert await sessions.is_active(session)
    clock.move(timedelta(minutes=5))
    assert not await sessions.is_active(session), "an open page does not extend the session"
    assert await sessions.find(token) is None

    token = await console.token("ada@example.com")
    start = clock.now
    while clock.now < start + LENGTH - timedelta(minutes=20):
        clock.move(timedelta(minutes=20))
        if clock.now < start + LENGTH:
            assert await sessions.find(token) is not None
    clock.move(timedelta(minutes=20))
    assert await sessions.find(token) is None


@pytest.mark.parametrize(
    "headers", [{"hx-request": "true"}, {"accept": "text/event-stream"}], ids=["fragment", "reconnected stream"]
)
async def test_page_refresh_does_not_extend_session(console, headers):
    token = await console.add("ada@example.com")
    async with console.client(cookies={"perdure-console": token}) as client:
        console.clock.move(IDLE - timedelta(minutes=1))
        assert (await client.get("/alerts/count", headers=headers)).status_code == 200
        console.clock.move(timedelta(minutes=1))
        answer = await client.get("/alerts/count", headers={"hx-request": "true"})
        assert (answer.status_code, answer.headers["hx-redirect"]) == (401, "/signin")


async def test_tokens_are_stored_as_hashes(console):
    token = await console.add("ada@example.com")
    async with console.components.database.snapshot() as connection:
        rows = [row._asdict() for row in await connection.execute(select(SessionRow.__table__))]
    assert len(rows) == 1
    assert token not in str(rows)
    assert await console.components.sessions.find(rows[0]["id"]) is None


async def test_changes_of_rights_end_all_sessions(console):
    users, sessions = console.components.users, console.components.sessions
    await console.add("root@example.com", Role.ADMINISTRATOR)
    first, second = await console.add("ada@example.com"), await console.token("ada@example.com")
    assert len(await sessions.all_of(await sessions.find(first))) == 2
    async with console.client(headers={"authorization": f"Bearer {first}"}) as client:
        assert (await client.delete("/api/sessions")).status_code == 204
    for token in (first, second):
        assert await sessions.find(token) is None

    for change in ({"roles": [Role.OPERATOR]}, {"groups": ["finance"]}, {"disabled": True}):
        token = await console.token("ada@example.com")
        changed = await users.change("ada@example.com", **change, by="root@example.com")
        assert await sessions.find(token) is None
    assert (changed.roles, changed.groups, changed.disabled) == ({Role.OPERATOR}, ["finance"], True)
    assert not await users.verify_password("ada@example.com", PASSWORD, HERE), "disabled"
    assert await sessions.find(await console.token("ada@example.com")) is None

    await users.change("ada@example.com", disabled=False, by="root@example.com")
    token = await console.token("ada@example.com")
    session = await sessions.find(token)
    wrong = console.components.sign_in.change_password(session, "wrong", "another long one")
    assert await code_of(wrong) == (400, "wrong_password")
    assert await sessions.find(token) is not None
    await console.components.sign_in.change_password(session, PASSWORD, "another long one")
    assert await sessions.find(token) is None
    assert await users.verify_password("ada@example.com", "another long one", HERE)
    assert [entry.action for entry in await users.actions()][:3] == ["password", "change", "change"]


async def test_actions_are_purged_after_retention(console):
    now = utc_now()
    database, passwords = console.components.database, Passwords(CHEAP)
    users = Users(database, passwords, lambda: now, action_retention=timedelta(days=2))
    for subject in ("first", "second", "third"):
        await users.record("root@example.com", "kill", subject)
        now += timedelta(days=1, seconds=1)
    assert [entry.subject for entry in await users.actions()] == ["third", "second"]


async def test_keep_last_administrator(console):
    users = console.components.users
    await console.add("root@example.com", Role.ADMINISTRATOR)
    for change in ({"roles": [Role.VIEWER]}, {"disabled": True}):
        assert await code_of(users.change("root@example.com", **change, by="x")) == (409, "last_administrator")
    await console.add("second@example.com", Role.ADMINISTRATOR)
    await users.change("root@example.com", disabled=True, by="second@example.com")
    assert await code_of(users.change("second@example.com", disabled=True, by="x")) == (409, "last_administrator")


@pytest.mark.parametrize(
    ("proxies", "forwarded", "counted"),
    [
        ("", "6.6.6.6", "127.0.0.1"),
        ("127.0.0.1", "10.1.1.1", "10.1.1.1"),
        ("127.0.0.1", "6.6.6.6, 10.1.1.1", "10.1.1.1"),
        ("127.0.0.1,10.9.0.0/16", "6.6.6.6, 10.1.1.1, 10.9.9.9", "10.1.1.1"),
        ("127.0.0.1", "", "127.0.0.1"),
        # A proxy may append a new line after the client's; all lines form one list.
        ("127.0.0.1", "6.6.6.6\n10.1.1.1", "10.1.1.1"),
        ("127.0.0.1,10.9.9.9", "6.6.6.6, 7.7.7.7\n10.1.1.1\n10.9.9.9", "10.1.1.1"),
        ("127.0.0.1", "10.1.1.1\n", "10.1.1.1"),
        ("127.0.0.1", "127.0.0.1\n127.0.0.1", "127.0.0.1"),
        ("", "6.6.6.6\n7.7.7.7", "127.0.0.1"),
    ],
)
async def test_address_comes_from_trusted_proxies_only(open_console, proxies, forwarded, counted):
    async with open_console(trusted_proxies=proxies) as console:
        token = await console.add("ada@example.com")
        async with console.client() as client:
            await client.post(
                "/api/session",
                json={"name": "ada@example.com", "password": PASSWORD},
                headers=[("x-forwarded-for", line) for line in forwarded.split("\n")],
            )
            client.cookies.clear()
            me = (await client.get("/api/session", headers={"authorization": f"Bearer {token}"})).json()
        assert counted in {each["address"] for each in me["sessions"] if not each["is_current"]}


async def test_reject_database_of_other_version(tmp_path):
    file = tmp_path / "data" / "console.db"
    database = Database(f"sqlite:///{file}")
    await database.prepare()
    await database.prepare()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    async with database.transaction() as connection:
        await connection.execute(update(SchemaRow).values(version=99))
        await connection.execute(
            insert(ActionRow).values(at=None, actor="x", action="x", subject="x", details="x").prefix_with("OR IGNORE")
        )
    with pytest.raises(ConfigurationError, match="use the matching release"):
        await database.prepare()
    async with database.snapshot() as connection:
        assert await connection.scalar(text("SELECT version FROM console_schema")) == 99
    await database.dispose()


@pytest.mark.parametrize("url", ["nonsense", "mysql://x/y", "sqlite://", "sqlite:///:memory:"])
def test_reject_unsupported_database(url):
    with pytest.raises(ConfigurationError, match="PERDURE_CONSOLE_DATABASE_URL"):
        Database(url)


@pytest.mark.parametrize("text", ["eve\u202e@example.com", "eve\x1b[2J", "e\u200bve", "eve\nadmin", "eve\x9b"])
async def test_reject_invisible_characters(console, text):
    admin = await console.add("root@example.com", Role.ADMINISTRATOR, Role.APPROVER)
    user = {"name": "eve@example.com", "password": PASSWORD, "roles": ["viewer"], "groups": []}
    async with console.client(headers={"authorization": f"Bearer {admin}"}) as client:
        answers = {
            "name": await client.post("/api/users", json={**user, "name": text}),
            "groups": await client.post("/api/users", json={**user, "groups": [text]}),
            "reason": await client.post("/api/approvals/trip-1/approve", json={"reason": text}),
        }
        form = await client.post("/approvals/trip-1/approve", data={"reason": text})
    for field, answer in answers.items():
        assert answer.status_code == 400
        assert f"{field}: must not contain the invisible character U+" in answer.json()["message"]
    assert form.status_code == 400
    assert "reason: must not contain the invisible character U+" in form.text
