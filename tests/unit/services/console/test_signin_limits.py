"""How many failures signing in takes, of whom and from where; and that a stranger's keep nobody out."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import httpx
import pytest
from services.console.people.roles import Role
from typer.testing import CliRunner

from services.console.commands import app as commands
from services.console.problems import ConsoleError
from tests.unit.services.console.conftest import PASSWORD, Desk

ADA, OFFICE, STRANGER = "ada@example.com", "10.0.1.1", "10.6.6.6"
NEW = "another long one"


async def refusal(awaitable) -> ConsoleError:
    with pytest.raises(ConsoleError) as caught:
        await awaitable
    return caught.value


async def fail(desk: Desk, times: int, *, name: str = ADA, address: str = STRANGER) -> list[int]:
    """Try wrong passwords, one after the other, and return the statuses."""
    check = desk.parts.sign_in.check
    return [(await refusal(check(name, "wrong", address=address))).status for _ in range(times)]


async def test_failed_sign_ins_are_limited_by_name_also_when_they_come_at_once(open_desk):
    async with open_desk(attempts_per_name=3) as desk:
        await desk.add(ADA)
        await desk.add("bob@example.com")
        check = desk.parts.sign_in.check
        results = await asyncio.gather(
            *(check(ADA, f"guess number {each}", address=OFFICE) for each in range(12)),
            return_exceptions=True,
        )
        assert sorted(each.status for each in results) == [401] * 3 + [429] * 9
        # The right password does not help any more, in whatever spelling; another name is not held up.
        error = await refusal(check("ADA@example.com", PASSWORD, address=OFFICE))
        assert (error.status, error.problem.code) == (429, "too_many_attempts")
        assert await check("bob@example.com", PASSWORD, address=OFFICE) == "bob@example.com"
        desk.clock.move(timedelta(minutes=15))
        assert await check(ADA, PASSWORD, address=OFFICE) == ADA
        await fail(desk, 2, address=OFFICE)
        assert await check(ADA, PASSWORD, address=OFFICE) == ADA
        assert await fail(desk, 3, address=OFFICE) == [401] * 3, "a sign-in that succeeds begins the count anew"


async def test_failed_sign_ins_are_limited_by_address_over_all_names(open_desk):
    async with open_desk(attempts_per_address=4) as desk:
        await desk.add(ADA)
        check = desk.parts.sign_in.check
        for each in range(4):
            assert await fail(desk, 1, name=f"guess-{each}", address="10.0.0.1") == [401]
        error = await refusal(check(ADA, PASSWORD, address="10.0.0.1"))
        assert error.status == 429
        assert 0 < error.retry_after <= 900
        assert await check(ADA, PASSWORD, address="10.0.0.2") == ADA


async def test_sign_ins_that_succeed_do_not_fill_an_address(open_desk):
    async with open_desk(attempts_per_address=3) as desk:
        await desk.add(ADA)
        for _ in range(8):
            await desk.parts.sign_in.check(ADA, PASSWORD, address="10.0.0.1")


async def test_stranger_locks_out_no_other_address(open_desk):
    async with open_desk(sign_ins="1000000/minute") as desk:
        await desk.add(ADA)
        guesses: list[int] = []
        for _ in range(120):
            guesses += await fail(desk, 6)
            assert await desk.parts.sign_in.check(ADA, PASSWORD, address=OFFICE) == ADA
            desk.clock.move(timedelta(seconds=30))
        assert guesses.count(401) == 5 * 4, "an hour has four windows, and the stranger no way round the limit"


async def flood(desk: Desk) -> None:
    """Fail to sign in as Ada, three times from each of twenty addresses: from then on strangers are slowed down."""
    for each in range(20):
        assert await fail(desk, 3, address=f"10.7.0.{each}") == [401] * 3


async def test_strangers_are_slowed_for_attacked_name(open_desk):
    async with open_desk(attempts_per_name=3) as desk:
        await desk.add(ADA)
        await desk.add("bob@example.com")
        await flood(desk)
        desk.clock.move(timedelta(seconds=10))
        error = await refusal(desk.parts.sign_in.check(ADA, PASSWORD, address=OFFICE))
        assert (error.status, error.problem.code, error.retry_after) == (429, "too_many_attempts", 20)
        assert await desk.parts.sign_in.check("bob@example.com", PASSWORD, address=OFFICE) == "bob@example.com"
        guesses = []
        for each in range(1, 61):  # ten minutes more
            desk.clock.move(timedelta(seconds=10))
            guesses += await fail(desk, 1, address=f"10.8.0.{each}")
        assert guesses.count(401) == 20, "one in 30 seconds"
        desk.clock.move(timedelta(seconds=30))
        assert await desk.parts.sign_in.check(ADA, PASSWORD, address=OFFICE) == ADA


async def test_known_browser_or_address_is_not_slowed(open_desk):
    async with open_desk(attempts_per_name=3) as desk:
        await desk.add(ADA)
        await desk.add("bob@example.com")
        devices, check = desk.parts.devices, desk.parts.sign_in.check
        token = await devices.remember(ADA, OFFICE, None, browser=True)
        assert await devices.remember(ADA, OFFICE, token, browser=True) is None, "it has one"
        await flood(desk)
        assert await check(ADA, PASSWORD, address=OFFICE) == ADA
        assert await check(ADA, PASSWORD, address="10.9.9.9", device=token) == ADA
        for device in (None, "", "made up"):
            assert (await refusal(check(ADA, PASSWORD, address="10.9.9.9", device=device))).status == 429
        await desk.parts.persons.set_password(ADA, NEW, by="a test")
        assert await devices.find(ADA, token) is None, "after a new password no browser is known"
        assert await devices.find("bob@example.com", token) is None


async def test_known_browser_is_limited_too(open_desk):
    async with open_desk(attempts_per_name=3) as desk:
        await desk.add(ADA)
        token = await desk.parts.devices.remember(ADA, OFFICE, None, browser=True)
        check = desk.parts.sign_in.check
        tried = [(await refusal(check(ADA, "wrong", address=STRANGER, device=token))).status for _ in range(8)]
        assert tried == [401] * 6 + [429] * 2, "three as the browser, three as the address that it is used from"
        desk.clock.move(timedelta(days=91))
        assert await desk.parts.devices.find(ADA, token) is None


async def test_no_more_than_twenty_browsers_are_known(open_desk):
    async with open_desk() as desk:
        await desk.add(ADA)
        tokens = []
        for each in range(25):
            desk.clock.move(timedelta(seconds=1))
            tokens.append(await desk.parts.devices.remember(ADA, f"10.0.0.{each}", None, browser=True))
            # Programs that sign in again and again push out no browser.
            await desk.parts.devices.remember(ADA, f"10.1.0.{each}", None, browser=False)
        known = [token for token in tokens if await desk.parts.devices.find(ADA, token)]
        assert known == tokens[-20:]


async def test_an_address_tries_so_often_and_no_more(open_desk):
    async with open_desk(sign_ins="4/minute") as desk:
        await desk.add(ADA)
        check = desk.parts.sign_in.check
        token = await desk.parts.devices.remember(ADA, OFFICE, None, browser=True)
        for _ in range(4):
            assert await check(ADA, PASSWORD, address=STRANGER) == ADA
        error = await refusal(check(ADA, PASSWORD, address=STRANGER))
        assert error.status == 429
        assert 0 < error.retry_after <= 120
        assert await check(ADA, PASSWORD, address=STRANGER, device=token) == ADA
        assert await check(ADA, PASSWORD, address="10.5.5.5") == ADA


async def test_guesses_of_ones_own_password_are_counted(open_desk):
    async with open_desk(attempts_per_name=3) as desk:
        token = await desk.add(ADA)
        other = await desk.token(ADA)
        async with desk.client(headers={"authorization": f"Bearer {token}"}) as client:

            async def guess(old: str) -> httpx.Response:
                return await client.post("/api/password", json={"old": old, "new": NEW})

            at_once = await asyncio.gather(*(guess(f"guess number {each}") for each in range(10)))
            assert sorted(answer.status_code for answer in at_once) == [400] * 3 + [429] * 7
            refused = await guess(PASSWORD)
            assert refused.status_code == 429
            assert refused.headers["retry-after"] == "900"
            form = {"old": PASSWORD, "new": NEW}
            assert (await client.post("/account/password", data=form)).status_code == 429
        # Whoever has one session keeps its person from nothing.
        assert await desk.parts.sign_in.check(ADA, PASSWORD, address=OFFICE) == ADA
        async with desk.client(headers={"authorization": f"Bearer {other}"}) as client:
            changed = await client.post("/api/password", json={"old": PASSWORD, "new": NEW})
            assert changed.status_code == 204, changed.text
        assert await desk.parts.sign_in.check(ADA, NEW, address=OFFICE) == ADA


async def test_wrong_passwords_behind_proxy_block_no_others(open_desk):
    """The lock-out as it was found: thirty wrong passwords through the proxy that everybody comes through."""
    async with open_desk(url="https://console.test", trusted_proxies="127.0.0.0/8") as desk:
        await desk.add(ADA)
        async with desk.client() as client:

            async def sign_in(name: str, password: str, address: str) -> int:
                answer = await client.post(
                    "/api/session",
                    json={"name": name, "password": password},
                    headers={"x-forwarded-for": f"9.9.9.9, {address}"},
                )
                client.cookies.clear()
                return answer.status_code

            tried = [await sign_in(f"guess-{each}", "wrong", STRANGER) for each in range(35)]
            assert tried == [401] * 30 + [429] * 5
            assert await sign_in(ADA, PASSWORD, OFFICE) == 201
            assert await sign_in(ADA, PASSWORD, STRANGER) == 429


async def test_browser_is_known_by_its_cookie(open_desk):
    async with open_desk(url="https://console.test", trusted_proxies="127.0.0.1/32") as desk:
        await desk.add(ADA)
        async with desk.client() as client:
            answer = await client.post("/signin", data={"name": ADA, "password": PASSWORD})
            (cookie,) = [each for each in answer.headers.get_list("set-cookie") if "-device" in each]
        assert cookie.startswith("__Host-perdure-device=")
        assert {"HttpOnly", "Path=/", "SameSite=strict", "Secure"} <= set(cookie.split("; "))
        token = cookie.partition("=")[2].partition(";")[0]
        assert await desk.parts.devices.find(ADA, token) is not None
        async with desk.client() as client:
            again = await client.post(
                "/signin",
                data={"name": ADA, "password": PASSWORD},
                headers={"cookie": f"__Host-perdure-device={token}"},
            )
        assert again.status_code == 303
        assert not [each for each in again.headers.get_list("set-cookie") if "-device" in each]


@pytest.mark.parametrize("by", ["an administrator", "the command line"])
async def test_a_new_password_ends_the_wait_of_its_name_and_of_no_other(open_desk, monkeypatch, tmp_path, by):
    async with open_desk(attempts_per_name=2) as desk:
        # Names that one could take for another: the beginning of one, and signs that a search would take for any.
        others, wild = ("ada@example.com b", "ada"), ("a_a@example.com", "%@example.com")
        token = await desk.add("root@example.com", Role.ADMINISTRATOR)
        for name in (ADA, *others, *wild):
            await desk.add(name)
            assert await fail(desk, 3, name=name, address=OFFICE) == [401, 401, 429]
        for each in range(40):
            await fail(desk, 1, address=f"10.7.0.{each}")
        for name in wild:
            await desk.parts.persons.set_password(name, NEW, by="a test")
            assert await desk.parts.sign_in.check(name, NEW, address=OFFICE) == name
        error = await refusal(desk.parts.sign_in.check(ADA, PASSWORD, address="10.8.8.8"))
        told = "too many failed sign-ins; wait 30 seconds, or use a browser in which you signed in before"
        assert error.problem.message == told

        if by == "an administrator":
            async with desk.client(headers={"authorization": f"Bearer {token}"}) as client:
                given = await client.post(f"/api/people/{ADA}/password", json={"password": NEW})
                assert given.status_code == 204, given.text
        else:
            monkeypatch.setenv("PERDURE_LOCAL_DIR", str(tmp_path))
            arguments = ["password", "--name", "Ada@Example.com", "--password-stdin"]
            told = await asyncio.to_thread(CliRunner().invoke, commands, arguments, input=f"{NEW}\n")
            assert told.exit_code == 0, told.output
        for address in (OFFICE, "10.8.8.8", "10.7.0.1"):
            assert await desk.parts.sign_in.check(ADA, NEW, address=address) == ADA
        for name in others:
            assert (await refusal(desk.parts.sign_in.check(name, PASSWORD, address=OFFICE))).status == 429


async def test_who_comes_from_an_address_with_too_many_failures_is_not_sent_to_an_administrator(open_desk):
    async with open_desk(attempts_per_address=4, attempts_per_name=2) as desk:
        await desk.add(ADA)
        await fail(desk, 2, name="guess-1", address=OFFICE)
        desk.clock.move(timedelta(minutes=5))
        await fail(desk, 2, address=OFFICE)
        # Of both waits the longer one is told: ada's own, and not the address's.
        error = await refusal(desk.parts.sign_in.check(ADA, PASSWORD, address=OFFICE))
        assert "wait 15 minutes" in error.problem.message
        assert error.retry_after == 900
        error = await refusal(desk.parts.sign_in.check("bob@example.com", PASSWORD, address=OFFICE))
        assert error.problem.message == "too many failed sign-ins from your address; wait 10 minutes"
        assert error.retry_after == 600


async def test_the_addresses_of_one_network_of_ipv6_are_one(open_desk):
    # Whoever has one of them has 2^64.
    async with open_desk(attempts_per_name=3, attempts_per_address=5) as desk:
        await desk.add(ADA)
        tries = [(await fail(desk, 1, address=f"2001:db8:0:1::{each}"))[0] for each in range(4)]
        assert tries == [401, 401, 401, 429]
        tries = [(await fail(desk, 1, name=f"guess-{each}", address=f"2001:db8:0:1:{each}::"))[0] for each in range(3)]
        assert tries == [401, 401, 429]
        assert await desk.parts.sign_in.check(ADA, PASSWORD, address="2001:db8:0:2::1") == ADA
        assert await fail(desk, 2, address="10.6.6.6") == [401, 401]
        assert await fail(desk, 2, address="::ffff:10.6.6.6") == [401, 429]
