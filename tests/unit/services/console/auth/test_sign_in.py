"""Limits on failed sign-ins, which never lock a user out."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import httpx
import pytest
from typer.testing import CliRunner

from services.console.auth.roles import Role
from services.console.commands import app as commands
from services.console.problems import ConsoleError
from tests.unit.services.console.conftest import PASSWORD, Console

ADA, OFFICE, ATTACKER = "ada@example.com", "10.0.1.1", "10.6.6.6"
NEW = "another long one"


async def refusal(awaitable) -> ConsoleError:
    with pytest.raises(ConsoleError) as caught:
        await awaitable
    return caught.value


async def fail(console: Console, times: int, *, name: str = ADA, address: str = ATTACKER) -> list[int]:
    """Try wrong passwords, and return the statuses."""
    check = console.components.sign_in.verify
    return [(await refusal(check(name, "wrong", address=address))).status for _ in range(times)]


async def test_concurrent_failures_of_a_name_are_limited(open_console):
    async with open_console(attempts_per_name=3) as console:
        await console.add(ADA)
        await console.add("bob@example.com")
        check = console.components.sign_in.verify
        results = await asyncio.gather(
            *(check(ADA, f"guess number {each}", address=OFFICE) for each in range(12)),
            return_exceptions=True,
        )
        assert sorted(each.status for each in results) == [401] * 3 + [429] * 9
        # The right password is rejected too. Other names are not affected.
        error = await refusal(check("ADA@example.com", PASSWORD, address=OFFICE))
        assert (error.status, error.problem.code) == (429, "too_many_attempts")
        assert await check("bob@example.com", PASSWORD, address=OFFICE) == "bob@example.com"
        console.clock.move(timedelta(minutes=15))
        assert await check(ADA, PASSWORD, address=OFFICE) == ADA
        await fail(console, 2, address=OFFICE)
        assert await check(ADA, PASSWORD, address=OFFICE) == ADA
        assert await fail(console, 3, address=OFFICE) == [401] * 3, "a success resets the count"


async def test_failures_of_an_address_are_limited(open_console):
    async with open_console(attempts_per_address=4) as console:
        await console.add(ADA)
        check = console.components.sign_in.verify
        for each in range(4):
            assert await fail(console, 1, name=f"guess-{each}", address="10.0.0.1") == [401]
        error = await refusal(check(ADA, PASSWORD, address="10.0.0.1"))
        assert error.status == 429
        assert 0 < error.retry_after <= 900
        assert await check(ADA, PASSWORD, address="10.0.0.2") == ADA


async def test_successes_do_not_count_for_an_address(open_console):
    async with open_console(attempts_per_address=3) as console:
        await console.add(ADA)
        for _ in range(8):
            await console.components.sign_in.verify(ADA, PASSWORD, address="10.0.0.1")


async def test_attacker_locks_out_no_other_address(open_console):
    async with open_console(sign_ins="1000000/minute") as console:
        await console.add(ADA)
        guesses: list[int] = []
        for _ in range(120):
            guesses += await fail(console, 6)
            assert await console.components.sign_in.verify(ADA, PASSWORD, address=OFFICE) == ADA
            console.clock.move(timedelta(seconds=30))
        assert guesses.count(401) == 5 * 4, "four windows in an hour"


async def flood(console: Console) -> None:
    """Fail three times from each of twenty addresses, which slows unknown clients down."""
    for each in range(20):
        assert await fail(console, 3, address=f"10.7.0.{each}") == [401] * 3


async def test_unknown_clients_are_slowed_for_attacked_name(open_console):
    async with open_console(attempts_per_name=3) as console:
        await console.add(ADA)
        await console.add("bob@example.com")
        await flood(console)
        console.clock.move(timedelta(seconds=10))
        error = await refusal(console.components.sign_in.verify(ADA, PASSWORD, address=OFFICE))
        assert (error.status, error.problem.code, error.retry_after) == (429, "too_many_attempts", 20)
        assert await console.components.sign_in.verify("bob@example.com", PASSWORD, address=OFFICE) == "bob@example.com"
        guesses = []
        for each in range(1, 61):  # ten more minutes
            console.clock.move(timedelta(seconds=10))
            guesses += await fail(console, 1, address=f"10.8.0.{each}")
        assert guesses.count(401) == 20, "one in 30 seconds"
        console.clock.move(timedelta(seconds=30))
        assert await console.components.sign_in.verify(ADA, PASSWORD, address=OFFICE) == ADA


async def test_known_browser_or_address_is_not_slowed(open_console):
    async with open_console(attempts_per_name=3) as console:
        await console.add(ADA)
        await console.add("bob@example.com")
        devices, check = console.components.devices, console.components.sign_in.verify
        token = await devices.remember(ADA, OFFICE, None, browser=True)
        assert await devices.remember(ADA, OFFICE, token, browser=True) is None, "already known"
        await flood(console)
        assert await check(ADA, PASSWORD, address=OFFICE) == ADA
        assert await check(ADA, PASSWORD, address="10.9.9.9", device=token) == ADA
        for device in (None, "", "unknown"):
            assert (await refusal(check(ADA, PASSWORD, address="10.9.9.9", device=device))).status == 429
        await console.components.users.set_password(ADA, NEW, by="a test")
        assert await devices.find(ADA, token) is None, "a new password forgets browsers"
        assert await devices.find("bob@example.com", token) is None


async def test_known_browser_is_limited_too(open_console):
    async with open_console(attempts_per_name=3) as console:
        await console.add(ADA)
        token = await console.components.devices.remember(ADA, OFFICE, None, browser=True)
        check = console.components.sign_in.verify
        tried = [(await refusal(check(ADA, "wrong", address=ATTACKER, device=token))).status for _ in range(8)]
        assert tried == [401] * 6 + [429] * 2, "three for the browser, three for the address"
        console.clock.move(timedelta(days=91))
        assert await console.components.devices.find(ADA, token) is None


async def test_at_most_twenty_browsers_are_known(open_console):
    async with open_console() as console:
        await console.add(ADA)
        tokens = []
        for each in range(25):
            console.clock.move(timedelta(seconds=1))
            tokens.append(await console.components.devices.remember(ADA, f"10.0.0.{each}", None, browser=True))
            # Sign-ins of programs do not displace browsers.
            await console.components.devices.remember(ADA, f"10.1.0.{each}", None, browser=False)
        known = [token for token in tokens if await console.components.devices.find(ADA, token)]
        assert known == tokens[-20:]


async def test_attempts_per_address_are_limited(open_console):
    async with open_console(sign_ins="4/minute") as console:
        await console.add(ADA)
        check = console.components.sign_in.verify
        token = await console.components.devices.remember(ADA, OFFICE, None, browser=True)
        for _ in range(4):
            assert await check(ADA, PASSWORD, address=ATTACKER) == ADA
        error = await refusal(check(ADA, PASSWORD, address=ATTACKER))
        assert error.status == 429
        assert 0 < error.retry_after <= 120
        assert await check(ADA, PASSWORD, address=ATTACKER, device=token) == ADA
        assert await check(ADA, PASSWORD, address="10.5.5.5") == ADA


async def test_wrong_old_passwords_are_limited_per_session(open_console):
    async with open_console(attempts_per_name=3) as console:
        token = await console.add(ADA)
        other = await console.token(ADA)
        async with console.client(headers={"authorization": f"Bearer {token}"}) as client:

            async def guess(old: str) -> httpx.Response:
                return await client.post("/api/password", json={"old": old, "new": NEW})

            at_once = await asyncio.gather(*(guess(f"guess number {each}") for each in range(10)))
            assert sorted(answer.status_code for answer in at_once) == [400] * 3 + [429] * 7
            refused = await guess(PASSWORD)
            assert refused.status_code == 429
            assert refused.headers["retry-after"] == "900"
            form = {"old": PASSWORD, "new": NEW}
            assert (await client.post("/account/password", data=form)).status_code == 429
        # A stolen session does not block its user.
        assert await console.components.sign_in.verify(ADA, PASSWORD, address=OFFICE) == ADA
        async with console.client(headers={"authorization": f"Bearer {other}"}) as client:
            changed = await client.post("/api/password", json={"old": PASSWORD, "new": NEW})
            assert changed.status_code == 204, changed.text
        assert await console.components.sign_in.verify(ADA, NEW, address=OFFICE) == ADA


async def test_wrong_passwords_behind_proxy_block_no_others(open_console):
    async with open_console(url="https://console.test", trusted_proxies="127.0.0.0/8") as console:
        await console.add(ADA)
        async with console.client() as client:

            async def sign_in(name: str, password: str, address: str) -> int:
                answer = await client.post(
                    "/api/session",
                    json={"name": name, "password": password},
                    headers={"x-forwarded-for": f"9.9.9.9, {address}"},
                )
                client.cookies.clear()
                return answer.status_code

            tried = [await sign_in(f"guess-{each}", "wrong", ATTACKER) for each in range(35)]
            assert tried == [401] * 30 + [429] * 5
            assert await sign_in(ADA, PASSWORD, OFFICE) == 201
            assert await sign_in(ADA, PASSWORD, ATTACKER) == 429


async def test_browser_is_known_by_its_cookie(open_console):
    async with open_console(url="https://console.test", trusted_proxies="127.0.0.1/32") as console:
        await console.add(ADA)
        async with console.client() as client:
            answer = await client.post("/signin", data={"name": ADA, "password": PASSWORD})
            (cookie,) = [each for each in answer.headers.get_list("set-cookie") if "-device" in each]
        assert cookie.startswith("__Host-perdure-device=")
        assert {"HttpOnly", "Path=/", "SameSite=strict", "Secure"} <= set(cookie.split("; "))
        token = cookie.partition("=")[2].partition(";")[0]
        assert await console.components.devices.find(ADA, token) is not None
        async with console.client() as client:
            again = await client.post(
                "/signin",
                data={"name": ADA, "password": PASSWORD},
                headers={"cookie": f"__Host-perdure-device={token}"},
            )
        assert again.status_code == 303
        assert not [each for each in again.headers.get_list("set-cookie") if "-device" in each]


@pytest.mark.parametrize("by", ["an administrator", "the command line"])
async def test_new_password_clears_failures_of_its_name(open_console, monkeypatch, tmp_path, by):
    async with open_console(attempts_per_name=2) as console:
        # Names that are prefixes of another, or contain wildcards of SQL.
        others, wild = ("ada@example.com b", "ada"), ("a_a@example.com", "%@example.com")
        token = await console.add("root@example.com", Role.ADMINISTRATOR)
        for name in (ADA, *others, *wild):
            await console.add(name)
            assert await fail(console, 3, name=name, address=OFFICE) == [401, 401, 429]
        for each in range(40):
            await fail(console, 1, address=f"10.7.0.{each}")
        for name in wild:
            await console.components.users.set_password(name, NEW, by="a test")
            assert await console.components.sign_in.verify(name, NEW, address=OFFICE) == name
        error = await refusal(console.components.sign_in.verify(ADA, PASSWORD, address="10.8.8.8"))
        message = "too many failed sign-ins; wait 30 seconds, or use a browser in which you signed in before"
        assert error.problem.message == message

        if by == "an administrator":
            async with console.client(headers={"authorization": f"Bearer {token}"}) as client:
                given = await client.post(f"/api/users/{ADA}/password", json={"password": NEW})
                assert given.status_code == 204, given.text
        else:
            monkeypatch.setenv("PERDURE_LOCAL_DIR", str(tmp_path))
            arguments = ["password", "--name", "Ada@Example.com", "--password-stdin"]
            result = await asyncio.to_thread(CliRunner().invoke, commands, arguments, input=f"{NEW}\n")
            assert result.exit_code == 0, result.output
        for address in (OFFICE, "10.8.8.8", "10.7.0.1"):
            assert await console.components.sign_in.verify(ADA, NEW, address=address) == ADA
        for name in others:
            assert (await refusal(console.components.sign_in.verify(name, PASSWORD, address=OFFICE))).status == 429


async def test_message_names_the_longer_limit(open_console):
    async with open_console(attempts_per_address=4, attempts_per_name=2) as console:
        await console.add(ADA)
        await fail(console, 2, name="guess-1", address=OFFICE)
        console.clock.move(timedelta(minutes=5))
        await fail(console, 2, address=OFFICE)
        error = await refusal(console.components.sign_in.verify(ADA, PASSWORD, address=OFFICE))
        assert "wait 15 minutes" in error.problem.message
        assert error.retry_after == 900
        error = await refusal(console.components.sign_in.verify("bob@example.com", PASSWORD, address=OFFICE))
        assert error.problem.message == "too many failed sign-ins from your address; wait 10 minutes"
        assert error.retry_after == 600


async def test_ipv6_addresses_count_by_network(open_console):
    async with open_console(attempts_per_name=3, attempts_per_address=5) as console:
        await console.add(ADA)
        tries = [(await fail(console, 1, address=f"2001:db8:0:1::{each}"))[0] for each in range(4)]
        assert tries == [401, 401, 401, 429]
        tries = [
            (await fail(console, 1, name=f"guess-{each}", address=f"2001:db8:0:1:{each}::"))[0] for each in range(3)
        ]
        assert tries == [401, 401, 429]
        assert await console.components.sign_in.verify(ADA, PASSWORD, address="2001:db8:0:2::1") == ADA
        assert await fail(console, 2, address="10.6.6.6") == [401, 401]
        assert await fail(console, 2, address="::ffff:10.6.6.6") == [401, 429]
