"""Encryption at rest, checked in the files of the engine."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
import restate as sdk

from perdure import IngressClient, Target
from perdure._runtime.places import OutputSource, Place
from perdure.engine.admin import AdminClient
from perdure.security.codec import JournalCodec, new_encryption_key
from perdure.security.config import SecurityConfig
from perdure.serving import build_app, listening
from perdure.testing import RestateServer
from perdure.testing.plugin import RestateServers
from tests.support import eventually

safe = sdk.VirtualObject("SealedSafe")
flow = sdk.Workflow("SealedFlow")


@safe.handler()
async def put(ctx: sdk.ObjectContext, text: str) -> str:
    """Pass a text through input, side effect, state, call, awakeable and output."""
    ran = await ctx.run_typed("run", lambda: f"run {text}")
    ctx.set("state", f"state {text}")
    called = await ctx.object_call(echo, key=f"{ctx.key()}-echo", arg=f"call {text}")
    name, answer = ctx.awakeable(type_hint=str)
    ctx.object_send(answer_to, key=f"{ctx.key()}-answer", arg={"id": name, "answer": f"awakeable {text}"})
    ctx.object_send(echo, key=f"{ctx.key()}-late", arg=f"send {text}", send_delay=timedelta(hours=1))
    done = await ctx.workflow_call(promise, key=str(ctx.uuid()), arg=f"promise {text}")
    return " | ".join([ran, called, await answer, done])


@safe.handler()
async def echo(ctx: sdk.ObjectContext, text: str) -> str:
    return text


@safe.handler()
async def answer_to(ctx: sdk.ObjectContext, what: dict[str, str]) -> None:
    ctx.resolve_awakeable(what["id"], what["answer"])


@safe.handler()
async def get(ctx: sdk.ObjectContext) -> str:
    return await ctx.get("state", type_hint=str) or ""


class Words:
    """Workflow that waits for an awakeable."""

    def __init__(self) -> None:
        self.ids: set[str] = set()

    async def pop(self) -> str | None:
        return self.ids.pop() if self.ids else None


words = Words()


@safe.handler()
async def wait_for_word(ctx: sdk.ObjectContext) -> str:
    await ctx.run_typed("begun", lambda: "here")
    name, word = ctx.awakeable(type_hint=str)
    words.ids.add(name)
    return await word


@flow.main(name="promise")
async def promise(ctx: sdk.WorkflowContext, text: str) -> str:
    await ctx.promise("p", type_hint=str).resolve(text)
    return await ctx.promise("p", type_hint=str).value()


@pytest.fixture(scope="module")
def uncompressed_engine(restate_servers: RestateServers) -> Iterator[RestateServer]:
    """Engine without compression, which would hide unencrypted texts as well."""
    settings = {
        "RESTATE_ROCKSDB_DISABLE_WAL_COMPRESSION": "true",
        "RESTATE_ROCKSDB_DISABLE_L0_L1_COMPRESSION": "true",
    }
    with RestateServer(install_dir=restate_servers.install_dir, settings=settings) as server:
        yield server


class Served:
    """Services that are restarted with other settings at the same address."""

    def __init__(self, engine: RestateServer, *, http: str = "2") -> None:
        self.engine = engine
        self.http = http
        self.port = 0

    @asynccontextmanager
    async def __call__(self, keys: Path | None) -> AsyncIterator[AdminClient]:
        security = SecurityConfig.development(encryption_keys_file=keys)
        async with (
            listening(build_app(safe, flow, security=security), port=self.port, http=self.http) as listener,
            AdminClient(self.engine.admin) as admin,
        ):
            # Registered again each time, since with encryption every handler has a body.
            await admin.register(listener.url, use_http_11=self.http == "1")
            self.port = listener.port
            yield admin


async def post(
    engine: RestateServer, path: str, codec: JournalCodec | None, value: str | None = None
) -> httpx.Response:
    body = b"" if value is None else json.dumps(value).encode()
    if codec:
        _, service, key, handler, *_ = path.split("/")
        body = codec.seal(body, Place.input(service, key, handler))
    headers = {"content-type": "application/json"} if body else {}
    async with httpx.AsyncClient(timeout=20) as client:
        return await client.post(f"{engine.ingress}{path}", content=body, headers=headers)


def answer_in(response: httpx.Response, codec: JournalCodec) -> str:
    return json.loads(codec.open_output(response.content, OutputSource(response.headers["x-restate-id"])))


def times_on_disk(engine: RestateServer, text: str) -> int:
    files = [path for path in engine.engine.config.data_dir.rglob("*") if path.is_file()]
    assert files
    return sum(path.read_bytes().count(text.encode()) for path in files)


EXPECTED = "run {0} | call {0} | awakeable {0} | promise {0}"


async def test_nothing_readable_reaches_the_disk(
    uncompressed_engine: RestateServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    first, second = tmp_path / "first.key", tmp_path / "second.key"
    codec = new_encryption_key(first)
    new_encryption_key(second)
    served = Served(uncompressed_engine)
    plain, sealed, again = (uuid4().hex for _ in range(3))

    async with served(None):
        answer = await post(uncompressed_engine, f"/SealedSafe/{uuid4().hex}/put", None, plain)
        assert answer.json() == EXPECTED.format(plain)
    # Without encryption, the search must find the text.
    assert times_on_disk(uncompressed_engine, plain) >= 8

    key = uuid4().hex
    async with served(first):
        answer = await post(uncompressed_engine, f"/SealedSafe/{key}/put", codec, sealed)
        assert answer_in(answer, codec) == EXPECTED.format(sealed)
        assert times_on_disk(uncompressed_engine, sealed) == 0

        refused = await post(uncompressed_engine, f"/SealedSafe/{key}/put", None, "in clear")
        assert refused.status_code == 400
        assert "is not encrypted in the format pd2, and encryption is enabled" in refused.text
        assert "is not encrypted in the format pd2, and encryption is enabled" in caplog.text

    # During a rotation, the new key seals, and the old key opens existing values.
    first_key, second_key = first.read_text(), second.read_text()
    both = tmp_path / "both.key"
    both.write_text(f"# newest first\n{second_key}{first_key}")
    both.chmod(0o600)
    rotated = JournalCodec.load(both)
    async with served(both):
        answer = await post(uncompressed_engine, f"/SealedSafe/{key}/get", rotated)
        assert answer_in(answer, rotated) == f"state {sealed}"
        answer = await post(uncompressed_engine, f"/SealedSafe/{key}/put", rotated, again)
        assert answer_in(answer, rotated) == EXPECTED.format(again)
    assert times_on_disk(uncompressed_engine, again) == 0

    # Without the new key, invocations that need it are retried and report its ID.
    async with served(first) as admin:
        invocation = (await post(uncompressed_engine, f"/SealedSafe/{key}/get/send", codec)).json()["invocationId"]

        async def said() -> bool:
            rows = await admin.query(f"select last_failure from sys_invocation where id = '{invocation}'")
            return f"encrypted with the unknown key {rotated.key_ids[0]}" in rows[0].get("last_failure", "")

        await eventually(said, what="reason in the engine")
    async with served(both) as admin:

        async def done() -> bool:
            rows = await admin.query(f"select status, completion_result from sys_invocation where id = '{invocation}'")
            return rows[0] == {"status": "completed", "completion_result": "success"}

        await eventually(done, what="end of what had waited for the key")


async def test_client_with_keys_reads_plain_values(uncompressed_engine: RestateServer, tmp_path: Path):
    path = tmp_path / "journal.key"
    codec = new_encryption_key(path)
    put_target = Target("SealedSafe", "put", str, str)
    get_target = Target("SealedSafe", "get", None, str)
    run_target = Target("SealedFlow", "promise", str, str)
    async with Served(uncompressed_engine)(path), IngressClient(uncompressed_engine.ingress, codec=codec) as ingress:
        text, key = uuid4().hex, uuid4().hex
        assert await ingress.call(put_target, text, key=key) == EXPECTED.format(text)
        assert await ingress.call(get_target, key=key) == f"state {text}"
        sent = await ingress.send(run_target, text, key=key)
        assert sent.startswith("inv_")
        assert await ingress.attach(run_target, key=key) == text
        assert await ingress.output(run_target, key=key) == text
        asked = await ingress.send(Target("SealedSafe", "wait_for_word", None, str), key=key)
        awakeable = await eventually(words.pop, what="awakeable")
        await ingress.resolve_awakeable(awakeable, text)
        assert await ingress.attach(Target("SealedSafe", "wait_for_word", None, str), invocation_id=asked) == text
    assert times_on_disk(uncompressed_engine, text) == 0


async def test_running_invocation_waits_for_a_missing_key(uncompressed_engine: RestateServer, tmp_path: Path):
    first, second, both = tmp_path / "first.key", tmp_path / "second.key", tmp_path / "both.key"
    codec = new_encryption_key(first)
    new_encryption_key(second)
    both.write_text(second.read_text() + first.read_text())
    both.chmod(0o600)
    served = Served(uncompressed_engine, http="1")  # waiting handlers hold no connection
    wait = Target("SealedSafe", "wait_for_word", None, str)
    async with IngressClient(uncompressed_engine.ingress, codec=codec) as ingress:
        async with served(first):
            invocation = await ingress.send(wait, key=uuid4().hex)
            awakeable = await eventually(words.pop, what="awakeable")
        async with served(second) as admin:
            await ingress.resolve_awakeable(awakeable, "word")

            async def held_up() -> bool:
                rows = await admin.query(f"select last_failure from sys_invocation where id = '{invocation}'")
                return f"encrypted with the unknown key {codec.key_ids[0]}" in rows[0].get("last_failure", "")

            await eventually(held_up, what="reason in the engine")
        async with served(both):
            rotated = JournalCodec.load(both)
            async with IngressClient(uncompressed_engine.ingress, codec=rotated) as reader:
                assert await reader.attach(wait, invocation_id=invocation) == "word"
