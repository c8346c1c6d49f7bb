"""Encrypted journal values open at their place, and copies do not open elsewhere."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import restate as sdk
from nacl.secret import SecretBox
from restate.serde import BytesSerde

from perdure import IngressClient, Target
from perdure._runtime.places import OutputSource, Place
from perdure.engine.admin import AdminClient
from perdure.errors import IngressError, UnreadableValue
from perdure.security.codec import JournalCodec, new_encryption_key
from perdure.security.config import SecurityConfig
from perdure.security.encodings import base64url_decode
from tests.support import Recording, eventually

safe = sdk.VirtualObject("PlacedSafe")
flow = sdk.Workflow("PlacedFlow")
plain = sdk.Service("PlacedPlain")
JSON = {"content-type": "application/json"}


@plain.handler()
async def double(ctx: sdk.Context, text: str) -> str:
    return text + text


@plain.handler()
async def nothing(ctx: sdk.Context) -> None: ...


@safe.handler()
async def write(ctx: sdk.ObjectContext, text: str) -> str:
    """Pass a text through a side effect, state, calls, sends, an attach, an awakeable and a promise."""
    ran = await ctx.run_typed("run", lambda: f"run {text}")
    empty = await ctx.run_typed("empty", lambda: b"", sdk.RunOptions(serde=BytesSerde()))
    ctx.set("text", f"state {text}")
    called = await ctx.service_call(double, text)
    await ctx.service_call(nothing, None)
    sent = ctx.service_send(double, f"sent {text}")
    attached = await ctx.attach_invocation(await sent.invocation_id(), type_hint=str)
    name, answer = ctx.awakeable(type_hint=str)
    ctx.object_send(reply, key=f"{ctx.key()}-reply", arg=[name, text], send_delay=timedelta(milliseconds=5))
    at_once = [ctx.service_call(double, f"{number}") for number in range(5)]
    doubled = [await each for each in at_once]
    promised = await ctx.workflow_call(run, key=f"{ctx.key()}-flow", arg=text)
    kept = await ctx.get("text", type_hint=str)
    missing = await ctx.get("missing", type_hint=str)
    return "|".join([ran, repr(empty), called, attached, await answer, *doubled, promised, str(kept), str(missing)])


@safe.handler()
async def reply(ctx: sdk.ObjectContext, to: list[str]) -> None:
    ctx.resolve_awakeable(to[0], f"awakeable {to[1]}")


@safe.handler()
async def read(ctx: sdk.ObjectContext) -> str:
    return str(await ctx.get("text", type_hint=str))


@safe.handler()
async def count(ctx: sdk.ObjectContext, text: str) -> int:
    """Return the number of calls."""
    number = (await ctx.get("number", type_hint=int) or 0) + 1
    ctx.set("number", number)
    return number


@safe.handler(kind="shared")
async def wait_for_word(ctx: sdk.ObjectSharedContext) -> str:
    name, word = ctx.awakeable(type_hint=str)
    words.add(name)
    try:
        return await word
    except sdk.TerminalError as error:
        return f"{error.status_code} {error.message}"


@flow.main()
async def run(ctx: sdk.WorkflowContext, text: str) -> str:
    before = await ctx.promise("word", type_hint=str).peek()
    ctx.service_send(tell, ctx.key())
    return f"{before} {await ctx.promise('word', type_hint=str).value()} {text}"


@flow.handler()
async def say(ctx: sdk.WorkflowSharedContext) -> None:
    await ctx.promise("word", type_hint=str).resolve("promise")


@plain.handler()
async def tell(ctx: sdk.Context, key: str) -> None:
    await ctx.workflow_call(say, key, None)


words = Recording()


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "journal.keys"
    new_encryption_key(path)
    return path


@pytest.fixture
def codec(keys_file: Path) -> JournalCodec:
    return JournalCodec.load(keys_file)


@dataclass
class Sealed:
    """Encrypted services, a client with the keys, and an attacker without them."""

    env: Any
    ingress: IngressClient
    admin: AdminClient
    attacker: httpx.AsyncClient

    async def post(self, path: str, body: bytes) -> httpx.Response:
        return await self.attacker.post(self.env.ingress + path, content=body, headers=JSON)

    async def state_of(self, key: str) -> dict[str, bytes]:
        rows = await self.admin.query(
            f"select key, value from state where service_name = 'PlacedSafe' and service_key = '{key}'"
        )
        return {row["key"]: bytes.fromhex(row["value"]) for row in rows}

    async def put_state(self, key: str, state: dict[str, bytes]) -> None:
        body = {"object_key": key, "new_state": {name: list(value) for name, value in state.items()}}
        (await self.attacker.post(f"{self.env.admin}/services/PlacedSafe/state", json=body)).raise_for_status()

        async def is_there() -> bool:
            return await self.state_of(key) == state

        await eventually(is_there, what="state")

    async def copied(self, key: str) -> dict[str, bytes]:
        """Return a sealed value of each kind from the engine's tables."""
        await self.ingress.call(WRITE, "copied", key=key)
        journal = await self.admin.query(
            "select j.entry_type, j.name, j.raw from sys_journal j join sys_invocation i on j.id = i.id "
            f"where i.target_service_key in ('{key}', '{key}-flow') order by j.id, j.index"
        )
        found = {each["entry_type"]: _sealed_in(bytes.fromhex(each["raw"])) for each in journal}
        found["state"] = (await self.state_of(key))["text"]
        return {kind: value for kind, value in found.items() if value}

    async def waiting(self) -> tuple[str, str]:
        """Return a waiting invocation and its awakeable."""
        before = set(words.all())
        invocation = await self.ingress.send(WAIT, key=uuid4().hex)

        async def new() -> str | None:
            return next(iter(set(words.all()) - before), None)

        return invocation, await eventually(new, what="awakeable")


WRITE, READ = Target("PlacedSafe", "write", str, str), Target("PlacedSafe", "read", None, str)
WAIT = Target("PlacedSafe", "wait_for_word", None, str)
COUNT = Target("PlacedSafe", "count", str, int)


def _sealed_in(raw: bytes) -> bytes:
    """Return the length-prefixed sealed value of a protobuf message."""
    start = raw.find(b"pd2")
    if start < 1:
        return b""
    length, shift = 0, 0
    first = start - 1
    while first > 0 and raw[first - 1] & 0x80:
        first -= 1
    for byte in raw[first:start]:
        length |= (byte & 0x7F) << shift
        shift += 7
    return raw[start : start + length]


@pytest.fixture
async def sealed(restate: Any, keys_file: Path) -> AsyncIterator[Sealed]:
    security = SecurityConfig.development(encryption_keys_file=keys_file)
    env = await restate.serve(safe, flow, plain, security=security)
    async with (
        IngressClient(env.ingress, codec=JournalCodec.load(keys_file)) as ingress,
        AdminClient(env.admin) as admin,
        httpx.AsyncClient(timeout=20) as attacker,
    ):
        yield Sealed(env, ingress, admin, attacker)


async def test_every_kind_of_value_arrives(sealed: Sealed):
    key = f"ä/{uuid4().hex}"
    expected = "run x|b''|xx|sent xsent x|awakeable x|00|11|22|33|44|None promise x|state x|None"
    assert await sealed.ingress.call(WRITE, "x", key=key) == expected
    assert await sealed.ingress.call(READ, key=key) == "state x"
    invocation = await sealed.ingress.send(WRITE, "x", key=f"{key}2", idempotency_key="again")
    assert await sealed.ingress.attach(WRITE, invocation_id=invocation) == expected
    assert await sealed.ingress.attach(WRITE, key=f"{key}2", idempotency_key="again") == expected
    assert await sealed.ingress.output(WRITE, invocation_id=invocation) == expected


async def test_restarted_invocation_opens_its_input(sealed: Sealed):
    key = uuid4().hex
    invocation = await sealed.ingress.send(COUNT, "x", key=key)
    assert await sealed.ingress.attach(COUNT, invocation_id=invocation) == 1
    await sealed.admin.control_invocation(invocation, "restart-as-new")
    assert await sealed.ingress.call(COUNT, "x", key=key) == 3


async def test_copied_input_starts_nothing_elsewhere(sealed: Sealed):
    key, other = uuid4().hex, uuid4().hex
    values = await sealed.copied(key)
    assert len(values) >= 9, values.keys()
    for kind, value in values.items():
        answer = await sealed.post(f"/PlacedSafe/{other}/count", value)
        assert (answer.status_code, answer.json()["metadata"]) == (400, {"code": "rejected_value"}), kind
        assert "sealed for another place" in answer.text
    assert await sealed.ingress.call(COUNT, "first", key=other) == 1


async def test_copied_value_completes_no_awakeable(sealed: Sealed, codec: JournalCodec):
    values = await sealed.copied(uuid4().hex)
    _, another = await sealed.waiting()
    values |= {"another awakeable": codec.seal(b'"yes"', Place.awakeable(another))}
    for kind, value in {**values, "in clear": b'"yes"', "empty": b""}.items():
        invocation, awakeable = await sealed.waiting()
        answer = await sealed.attacker.post(
            f"{sealed.env.ingress}/restate/awakeables/{awakeable}/resolve", content=value, headers=JSON if value else {}
        )
        assert answer.status_code == 202, kind
        outcome = await sealed.ingress.attach(WAIT, invocation_id=invocation)
        assert outcome.startswith(f"400 awakeable {awakeable}: the value"), kind
    await sealed.ingress.resolve_awakeable(another, "genuine")


async def test_copied_state_is_not_read(sealed: Sealed):
    key, target_key = uuid4().hex, uuid4().hex
    values = await sealed.copied(key)
    await sealed.ingress.call(WRITE, "mine", key=target_key)
    genuine = await sealed.state_of(target_key)
    for value in (values["state"], values["Command: Output"], b'"in clear"', b""):
        await sealed.put_state(target_key, {**genuine, "text": value})
        invocation = await sealed.ingress.send(READ, key=target_key)

        async def refused(waiting: str = invocation) -> bool:
            rows = await sealed.admin.query(f"select last_failure from sys_invocation where id = '{waiting}'")
            return f"state PlacedSafe/{target_key}/text: the value" in str(rows[0].get("last_failure"))

        await eventually(refused, what="refusal of the copied state")
        # The invocation has the value in its journal, so it needs an operator. Others read the genuine state.
        await sealed.admin.control_invocation(invocation, "kill")
        await sealed.put_state(target_key, genuine)
        assert await sealed.ingress.call(READ, key=target_key) == "state mine"


@pytest.mark.parametrize("body", [b"", b'"in clear"', b"null"])
async def test_reject_unsealed_input(sealed: Sealed, body: bytes):
    other = uuid4().hex
    for handler in ("count", "read"):
        for headers in ({}, JSON):
            answer = await sealed.attacker.post(
                f"{sealed.env.ingress}/PlacedSafe/{other}/{handler}", content=body, headers=headers
            )
            assert answer.status_code == 400, (handler, headers)
    assert await sealed.ingress.call(COUNT, "first", key=other) == 1


async def test_reject_input_of_another_format(sealed: Sealed, keys_file: Path, codec: JournalCodec):
    box = SecretBox(_first_key(keys_file))
    old = b"pd1" + bytes.fromhex(codec.key_ids[0]) + bytes(box.encrypt(b'"x"'))
    answer = await sealed.post(f"/PlacedSafe/{uuid4().hex}/count", old)
    assert answer.status_code == 400
    assert "is not encrypted in the format pd2" in answer.text


async def test_reject_input_of_an_unknown_key(sealed: Sealed):
    other = uuid4().hex
    foreign = JournalCodec([b"f" * 32]).seal(b'"x"', Place.input("PlacedSafe", other, "count"))
    answer = await sealed.post(f"/PlacedSafe/{other}/count", foreign)
    # Terminal, since waiting for an unknown key would block the object.
    assert (answer.status_code, answer.json()["metadata"]) == (400, {"code": "rejected_value"})
    assert await sealed.ingress.call(COUNT, "first", key=other) == 1


async def test_reject_input_of_another_platform(sealed: Sealed, keys_file: Path):
    staging = JournalCodec.load(keys_file, platform="staging")
    async with IngressClient(sealed.env.ingress, codec=staging) as ingress:
        with pytest.raises(IngressError, match="another place or platform") as refused:
            await ingress.call(COUNT, "x", key=uuid4().hex)
    assert refused.value.status_code == 400


async def test_client_rejects_output_of_another_invocation(sealed: Sealed, codec: JournalCodec):
    key, other = uuid4().hex, uuid4().hex
    for each in (key, other):
        await sealed.ingress.call(COUNT, "x", key=each)

    async def answered(at: str) -> httpx.Response:
        return await sealed.post(f"/PlacedSafe/{at}/count", codec.seal(b'"x"', Place.input("PlacedSafe", at, "count")))

    genuine, foreign = await answered(key), await answered(other)

    def swapped(request: httpx.Request) -> httpx.Response:  # an attacker between client and engine
        return httpx.Response(200, content=foreign.content, headers={"x-restate-id": foreign.headers["x-restate-id"]})

    async with httpx.AsyncClient(transport=httpx.MockTransport(swapped)) as http:
        client = IngressClient(sealed.env.ingress, codec=codec, http=http)
        assert await client.call(COUNT, "x", key=other) == 2
        with pytest.raises(UnreadableValue, match="another place"):
            await client.call(COUNT, "x", key=key)
    assert codec.open_output(genuine.content, OutputSource(genuine.headers["x-restate-id"], key=key)) == b"2"


def _first_key(path: Path) -> bytes:
    return base64url_decode(path.read_text().strip())
