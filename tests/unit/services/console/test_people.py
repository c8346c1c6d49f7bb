"""Persons, passwords, sessions, and where somebody comes from."""

from __future__ import annotations

import stat
from datetime import timedelta

import pytest
from argon2 import PasswordHasher
from sqlalchemy import insert, select, text, update

from perdure.errors import ConfigurationError
from services.console.people.database import Database
from services.console.people.passwords import Passwords, Source
from services.console.people.roles import Role
from services.console.people.tables import ActionRow, SchemaRow, SessionRow, UserRow
from services.console.problems import ConsoleError
from tests.unit.services.console.conftest import CHEAP, PASSWORD

IDLE, LENGTH = timedelta(minutes=30), timedelta(hours=12)

HERE = Source("a test")


async def code_of(awaitable) -> tuple[int, str]:
    with pytest.raises(ConsoleError) as caught:
        await awaitable
    return caught.value.status, caught.value.problem.code


async def test_a_password_is_kept_as_argon2id_and_checked(desk):
    await desk.add("ada@example.com")
    persons = desk.parts.persons
    async with desk.parts.database.reading() as connection:
        (kept,) = await connection.scalars(select(UserRow.password_hash))
    assert kept.startswith("$argon2id$")
    assert PASSWORD not in kept
    assert await persons.password_fits("  ADA@example.com ", PASSWORD, HERE)
    assert not await persons.password_fits("ada@example.com", PASSWORD + "!", HERE)
    assert not await persons.password_fits("ada@example.com", "", HERE)
    assert not await persons.password_fits("nobody@example.com", PASSWORD, HERE)


async def test_an_unknown_name_costs_a_verification_too(monkeypatch):
    # Counted, not timed: the same work for a name that nobody has is what makes the times equal.
    checked = []

    class Counting(PasswordHasher):
        def verify(self, known, password):
            checked.append(known)
            return CHEAP.verify(known, password)

    passwords = Passwords(Counting(time_cost=1, memory_cost=8, parallelism=1))
    known = CHEAP.hash(PASSWORD)
    assert await passwords.fits(known, PASSWORD, HERE)
    assert not await passwords.fits(None, PASSWORD, HERE)
    assert len(checked) == 2
    assert checked[0] == known
    assert checked[1].startswith("$argon2id$")
    assert not await passwords.fits("no hash at all", PASSWORD, HERE)


@pytest.mark.parametrize("password", ["", "short", "x" * 11, "x" * 201, "abababababababab"])
async def test_a_weak_password_is_refused(desk, password):
    refused = desk.parts.persons.add("ada@example.com", password, [Role.VIEWER], by="a test")
    assert await code_of(refused) == (400, "invalid_input")
    assert await desk.parts.persons.all() == []


@pytest.mark.parametrize("name", ["", "   ", "anyone", "group:finance", "x" * 201, "\u200b"])
async def test_a_name_that_means_something_else_is_refused(desk, name):
    refused = desk.parts.persons.add(name, PASSWORD, [Role.VIEWER], by="a test")
    assert await code_of(refused) == (400, "invalid_input")


async def test_a_name_is_taken_in_whatever_spelling(desk):
    await desk.add("ada@example.com")
    assert await code_of(desk.parts.persons.add("ADA@Example.com", PASSWORD, [Role.VIEWER], by="x")) == (
        409,
        "name_taken",
    )


async def test_a_session_ends_when_it_is_not_used_and_after_its_length(desk):
    token = await desk.add("ada@example.com")
    sessions, clock = desk.parts.sessions, desk.clock
    clock.move(IDLE - timedelta(seconds=1))
    assert await sessions.find(token) is not None
    clock.move(IDLE - timedelta(seconds=1))
    signed_in = await sessions.find(token)
    assert signed_in is not None, "its use has begun the time anew"
    clock.move(IDLE - timedelta(minutes=5))
    assert await sessions.still(signed_in)
    clock.move(timedelta(minutes=5))
    assert not await sessions.still(signed_in), "looking at a page that stays open is no use of it"
    assert await sessions.find(token) is None

    token = await desk.token("ada@example.com")
    began = clock.now
    while clock.now < began + LENGTH - timedelta(minutes=20):
        clock.move(timedelta(minutes=20))
        if clock.now < began + LENGTH:
            assert await sessions.find(token) is not None
    clock.move(timedelta(minutes=20))
    assert await sessions.find(token) is None


@pytest.mark.parametrize(
    "headers", [{"hx-request": "true"}, {"accept": "text/event-stream"}], ids=["a part of it", "its stream, cut off"]
)
async def test_what_a_page_fetches_again_by_itself_keeps_no_session_alive(desk, headers):
    token = await desk.add("ada@example.com")
    async with desk.client(cookies={"perdure-console": token}) as client:
        desk.clock.move(IDLE - timedelta(minutes=1))
        assert (await client.get("/alerts/count", headers=headers)).status_code == 200
        desk.clock.move(timedelta(minutes=1))
        answer = await client.get("/alerts/count", headers={"hx-request": "true"})
        assert (answer.status_code, answer.headers["hx-redirect"]) == (401, "/signin")


async def test_tokens_are_not_kept(desk):
    token = await desk.add("ada@example.com")
    async with desk.parts.database.reading() as connection:
        rows = [row._asdict() for row in await connection.execute(select(SessionRow.__table__))]
    assert len(rows) == 1
    assert token not in str(rows)
    assert await desk.parts.sessions.find(rows[0]["id"]) is None


async def test_signing_out_everywhere_and_a_change_of_rights_end_all_sessions(desk):
    persons, sessions = desk.parts.persons, desk.parts.sessions
    await desk.add("root@example.com", Role.ADMINISTRATOR)
    first, second = await desk.add("ada@example.com"), await desk.token("ada@example.com")
    assert len(await sessions.of(await sessions.find(first))) == 2
    async with desk.client(headers={"authorization": f"Bearer {first}"}) as client:
        assert (await client.delete("/api/sessions")).status_code == 204
    for token in (first, second):
        assert await sessions.find(token) is None

    for change in ({"roles": [Role.OPERATOR]}, {"groups": ["finance"]}, {"disabled": True}):
        token = await desk.token("ada@example.com")
        changed = await persons.change("ada@example.com", **change, by="root@example.com")
        assert await sessions.find(token) is None
    assert (changed.roles, changed.groups, changed.disabled) == ({Role.OPERATOR}, ["finance"], True)
    assert not await persons.password_fits("ada@example.com", PASSWORD, HERE), "who is disabled can't sign in"
    assert await sessions.find(await desk.token("ada@example.com")) is None

    await persons.change("ada@example.com", disabled=False, by="root@example.com")
    token = await desk.token("ada@example.com")
    signed_in = await sessions.find(token)
    wrong = desk.parts.sign_in.change_password(signed_in, "wrong", "another long one")
    assert await code_of(wrong) == (400, "wrong_password")
    assert await sessions.find(token) is not None
    await desk.parts.sign_in.change_password(signed_in, PASSWORD, "another long one")
    assert await sessions.find(token) is None
    assert await persons.password_fits("ada@example.com", "another long one", HERE)
    assert [act.act for act in await persons.acts()][:3] == ["password", "change", "change"]


async def test_the_last_administrator_stays(desk):
    persons = desk.parts.persons
    await desk.add("root@example.com", Role.ADMINISTRATOR)
    for change in ({"roles": [Role.VIEWER]}, {"disabled": True}):
        assert await code_of(persons.change("root@example.com", **change, by="x")) == (409, "last_administrator")
    await desk.add("second@example.com", Role.ADMINISTRATOR)
    await persons.change("root@example.com", disabled=True, by="second@example.com")
    assert await code_of(persons.change("second@example.com", disabled=True, by="x")) == (409, "last_administrator")


@pytest.mark.parametrize(
    ("proxies", "forwarded", "counted"),
    [
        ("", "6.6.6.6", "127.0.0.1"),
        ("127.0.0.1", "10.1.1.1", "10.1.1.1"),
        ("127.0.0.1", "6.6.6.6, 10.1.1.1", "10.1.1.1"),
        ("127.0.0.1,10.9.0.0/16", "6.6.6.6, 10.1.1.1, 10.9.9.9", "10.1.1.1"),
        ("127.0.0.1", "", "127.0.0.1"),
        # A proxy that writes a line of its own leaves the stranger's before it; all lines are one list.
        ("127.0.0.1", "6.6.6.6\n10.1.1.1", "10.1.1.1"),
        ("127.0.0.1,10.9.9.9", "6.6.6.6, 7.7.7.7\n10.1.1.1\n10.9.9.9", "10.1.1.1"),
        ("127.0.0.1", "10.1.1.1\n", "10.1.1.1"),
        ("127.0.0.1", "127.0.0.1\n127.0.0.1", "127.0.0.1"),
        ("", "6.6.6.6\n7.7.7.7", "127.0.0.1"),
    ],
)
async def test_an_address_is_taken_from_trusted_proxies_only(open_desk, proxies, forwarded, counted):
    async with open_desk(trusted_proxies=proxies) as desk:
        token = await desk.add("ada@example.com")
        async with desk.client() as client:
            await client.post(
                "/api/session",
                json={"name": "ada@example.com", "password": PASSWORD},
                headers=[("x-forwarded-for", line) for line in forwarded.split("\n")],
            )
            client.cookies.clear()
            me = (await client.get("/api/session", headers={"authorization": f"Bearer {token}"})).json()
        assert counted in {each["address"] for each in me["sessions"] if not each["is_this"]}


async def test_the_database_is_its_owners_and_an_older_program_leaves_it_alone(tmp_path):
    file = tmp_path / "data" / "console.db"
    database = Database(f"sqlite:///{file}")
    await database.prepare()
    await database.prepare()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    async with database.transaction() as connection:
        await connection.execute(update(SchemaRow).values(version=99))
        await connection.execute(
            insert(ActionRow).values(at=None, actor="x", act="x", person="x", details="x").prefix_with("OR IGNORE")
        )
    with pytest.raises(ConfigurationError, match="run the newer program"):
        await database.prepare()
    async with database.reading() as connection:
        assert await connection.scalar(text("SELECT version FROM console_schema")) == 99
    await database.dispose()


@pytest.mark.parametrize("url", ["nonsense", "mysql://x/y", "sqlite://", "sqlite:///:memory:"])
def test_a_database_that_will_not_do_is_refused_with_a_sentence(url):
    with pytest.raises(ConfigurationError, match="PERDURE_CONSOLE_DATABASE_URL"):
        Database(url)


@pytest.mark.parametrize("text", ["eve\u202e@example.com", "eve\x1b[2J", "e\u200bve", "eve\nadmin", "eve\x9b"])
async def test_names_groups_and_reasons_have_to_be_visible(desk, text):
    admin = await desk.add("root@example.com", Role.ADMINISTRATOR, Role.APPROVER)
    person = {"name": "eve@example.com", "password": PASSWORD, "roles": ["viewer"], "groups": []}
    async with desk.client(headers={"authorization": f"Bearer {admin}"}) as client:
        answers = {
            "name": await client.post("/api/people", json={**person, "name": text}),
            "groups": await client.post("/api/people", json={**person, "groups": [text]}),
            "reason": await client.post("/api/approvals/trip-1/approve", json={"reason": text}),
        }
        form = await client.post("/approvals/trip-1/approve", data={"reason": text})
    for field, answer in answers.items():
        assert answer.status_code == 400
        assert f"{field}: must not contain the invisible character U+" in answer.json()["message"]
    assert form.status_code == 400
    assert "reason: must not contain the invisible character U+" in form.text
