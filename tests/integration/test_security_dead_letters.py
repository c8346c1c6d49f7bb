"""Signed operator actions on dead letters, on a real engine."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import restate as sdk
from pydantic import BaseModel
from typer.testing import CliRunner

from perdure import ControlPlaneService, IngressClient, Orchestration, SagaConfig, Target
from perdure.cli.main import app
from perdure.errors import IngressError, PerdureError, Refused
from perdure.saga import hosting
from perdure.saga.messages import (
    ActionReceipt,
    BulkActionReceipt,
    BulkActionRequest,
    DeadLetter,
    DeadLetterActionRequest,
    DeadLetterFilter,
    DeadLetterListRequest,
    DeadLetterPage,
    rollback_status,
)
from perdure.saga.schema import OperatorAction
from perdure.saga.signatures import sign_action
from perdure.security import ActorKey, Role, SignedAction, SigningRules, TrustedKeys, set_signing_rules
from perdure.testing import Restate
from tests.integration.actor_keys import ISSUER, MALLORY, OLGA, VERA, key_of
from tests.support import eventually

letters = Target("DeadLetters", "list", DeadLetterListRequest, DeadLetterPage)
many = Target("DeadLetters", "act_on_many", BulkActionRequest, BulkActionReceipt)


class Parts(BaseModel):
    names: list[str]


def fresh(prefix: str) -> str:
    """Return a unique name of letters; an error signature omits digits."""
    return prefix + "".join(chr(ord("a") + int(digit, 16)) for digit in uuid4().hex[:12])


async def make(part: str) -> None:
    """Do nothing."""


def jammed(name: str) -> list[Any]:
    batches = ControlPlaneService(name, saga=SagaConfig(max_attempts=1))

    @batches.compensation()
    async def scrap(ctx: sdk.Context, part: str) -> None:
        if part != "mended":
            raise Refused(f"the press {name} is jammed", 503, "jammed")

    @batches.main()
    async def run(cp: Orchestration, parts: Parts) -> None:
        for part in parts.names:
            await cp.step(part, make, part, compensate=scrap.bind(part))
        raise Refused("the order was withdrawn", 410, "withdrawn")

    return [batches, *hosting.definitions()]


class DeadLetterClient:
    """Requests of an operator."""

    def __init__(self, ingress: IngressClient, service: str) -> None:
        self.ingress = ingress
        self.service = service

    async def letters(self, count: int) -> list[DeadLetter]:
        async def probe() -> list[DeadLetter] | None:
            page = await self.ingress.call(letters, DeadLetterListRequest(service=self.service))
            return page.items if page.total == count else None

        return await eventually(probe, what=f"list of {count} dead letters")

    async def act(self, act: str, letter: DeadLetter, signed_action: SignedAction | None, **more: Any) -> ActionReceipt:
        target = Target("DeadLetters", act, DeadLetterActionRequest, ActionReceipt)
        facts = {"actor": "olga@example.com", "reason": "mended", **more}
        return await self.ingress.call(
            target, DeadLetterActionRequest(id=letter.id, signed_action=signed_action, **facts)
        )

    async def refused(
        self, act: str, letter: DeadLetter, signed_action: SignedAction | None, **more: Any
    ) -> tuple[int, str]:
        with pytest.raises(IngressError) as error:
            await self.act(act, letter, signed_action, **more)
        facts = error.value.metadata
        return error.value.status_code, facts.get("why") or facts["role"]


def sign(act: OperatorAction, letter: DeadLetter, key: ActorKey = OLGA, **more: Any) -> SignedAction:
    return sign_action(key, act, letter, **{"reason": "mended", "at": datetime.now(UTC), **more})


@pytest.mark.usefixtures("signed_acts")
async def test_operator_signature_is_required_and_single_use(restate: Restate):
    name = fresh("Signed")
    env = await restate.serve(*jammed(name))
    async with IngressClient(env.ingress) as ingress:
        dead_letters = DeadLetterClient(ingress, name)
        saga = str(uuid4())
        with pytest.raises(IngressError):
            await ingress.call(Target(name, "run", Parts, None), Parts(names=["a", "b", "c"]), key=saga)
        before = await dead_letters.letters(3)
        letter, other = before[0], before[1]

        redrive = sign(OperatorAction.REDRIVE, letter, payload="mended")
        edited = {"payload": "mended"}
        refused = dead_letters.refused
        assert await refused("redrive", letter, None) == (401, "unsigned")
        assert await refused("redrive", letter, sign(OperatorAction.REDRIVE, letter, MALLORY)) == (401, "issuer")
        forged = redrive.model_copy(update={"reason": "other"})
        assert await refused("redrive", letter, forged, reason="other", **edited) == (401, "action_signature")
        old = sign(OperatorAction.REDRIVE, letter, at=datetime.now(UTC) - timedelta(minutes=6))
        assert await refused("redrive", letter, old) == (401, "too_old")
        assert await refused(
            "redrive", letter, sign(OperatorAction.REDRIVE, letter, VERA), actor="vera@example.com"
        ) == (
            403,
            "operator",
        )
        assert await refused("redrive", letter, sign(OperatorAction.REDRIVE, letter, VERA)) == (403, "actor")
        assert await refused("discard", letter, sign(OperatorAction.SKIP, letter)) == (403, "action")
        assert await refused("redrive", other, redrive, **edited) == (403, "target")
        assert await refused("redrive", letter, redrive, payload="something else") == (403, "details")
        assert await refused("redrive", letter, redrive) == (403, "details")
        stale = letter.model_copy(update={"redriven": 1})
        assert await refused("redrive", letter, sign(OperatorAction.REDRIVE, stale)) == (409, "payload")
        assert await dead_letters.letters(3) == before  # unchanged

        note = sign(OperatorAction.ANNOTATE, letter)
        assert (await dead_letters.act("annotate", letter, note)).number == 1
        assert await refused("annotate", letter, note) == (409, "replayed")
        assert (await dead_letters.act("redrive", letter, redrive, **edited)).state == "pending"
        await dead_letters.letters(2)
        assert await refused("redrive", letter, redrive, **edited) == (409, "payload")

        # A bulk action needs a signature for each dead letter.
        found = await ingress.call(
            many,
            BulkActionRequest(
                action=OperatorAction.RESOLVE,
                actor="olga@example.com",
                reason="mended",
                filter=DeadLetterFilter(service=name),
                signed_actions={other.id: sign(OperatorAction.RESOLVE, other)},
            ),
        )
        assert found.done == [other.id]
        assert list(found.refused) == [before[2].id]
        assert "must be signed" in found.refused[before[2].id]

        audit_log = (await ingress.call(rollback_status, key=f"{name}:{saga}")).audit_log
        assert [(entry.action, entry.actor) for entry in audit_log] == [
            (act, "olga@example.com") for act in ("annotate", "redrive", "resolve")
        ]
        assert audit_log[0].signed_action == note
        assert all(
            entry.signed_action is not None and entry.signed_action.credential == OLGA.credential for entry in audit_log
        )


@pytest.mark.restate_modes("http2")
@pytest.mark.usefixtures("signed_acts")
async def test_flooding_operator_blocks_no_other(restate: Restate, monkeypatch: pytest.MonkeyPatch):
    for name, number in {"UNRESTRICTED_NONCES": 3, "NONCES_PER_PERSON": 1}.items():
        monkeypatch.setattr(f"perdure.security.nonces.{name}", number)
    name = fresh("Flooded")
    env = await restate.serve(*jammed(name))
    async with IngressClient(env.ingress) as ingress:
        dead_letters = DeadLetterClient(ingress, name)
        with pytest.raises(IngressError):
            await ingress.call(Target(name, "run", Parts, None), Parts(names=["a"]), key=str(uuid4()))
        [letter] = await dead_letters.letters(1)
        for _ in range(3):
            await dead_letters.act("annotate", letter, sign(OperatorAction.ANNOTATE, letter))
        with pytest.raises(IngressError, match="too many signed actions") as error:
            await dead_letters.act("annotate", letter, sign(OperatorAction.ANNOTATE, letter))
        assert (error.value.status_code, error.value.code) == (429, "too_many_actions")
        otto = key_of("otto@example.com", Role.OPERATOR)
        await dead_letters.act("skip", letter, sign(OperatorAction.SKIP, letter, otto), actor="otto@example.com")
        await dead_letters.letters(0)


@pytest.mark.restate_modes("http2")
async def test_development_accepts_unsigned_actions(restate: Restate):
    name = fresh("Unsigned")
    env = await restate.serve(*jammed(name))
    set_signing_rules(SigningRules(trusted_keys=TrustedKeys(issuers=(ISSUER.public,))))
    try:
        async with IngressClient(env.ingress) as ingress:
            dead_letters = DeadLetterClient(ingress, name)
            saga = str(uuid4())
            with pytest.raises(IngressError):
                await ingress.call(Target(name, "run", Parts, None), Parts(names=["a"]), key=saga)
            [letter] = await dead_letters.letters(1)
            await dead_letters.act("annotate", letter, None)
            assert await dead_letters.refused("annotate", letter, sign(OperatorAction.ANNOTATE, letter, MALLORY)) == (
                401,
                "issuer",
            )
            await dead_letters.act("annotate", letter, sign(OperatorAction.ANNOTATE, letter))
            audit_log = (await ingress.call(rollback_status, key=f"{name}:{saga}")).audit_log
            assert [entry.signed_action is None for entry in audit_log] == [True, False]
    finally:
        set_signing_rules(None)


@pytest.mark.restate_modes("http2")
@pytest.mark.usefixtures("signed_acts")
async def test_cli_signs_with_key_file(restate: Restate, tmp_path: Path):
    name = fresh("Typed")
    env = await restate.serve(*jammed(name))
    for key, file in ((OLGA, "olga.key"), (VERA, "vera.key")):
        key.save(tmp_path / file)

    async def perdure(act: str, *words: str, key: str = "olga.key") -> str:
        command = ["dead-letters", act, *words, "-m", "mended", "--key-file", str(tmp_path / key)]
        command += ["--ingress", env.ingress, "--actor", "mallory"]
        result = await asyncio.to_thread(CliRunner().invoke, app, command)
        return str(result.exception) if isinstance(result.exception, PerdureError) else " ".join(result.output.split())

    async with IngressClient(env.ingress) as ingress:
        dead_letters = DeadLetterClient(ingress, name)
        saga = str(uuid4())
        with pytest.raises(IngressError):
            await ingress.call(Target(name, "run", Parts, None), Parts(names=["a", "b"]), key=saga)
        first, second = await dead_letters.letters(2)
        assert "this action requires the role operator" in await perdure("skip", first.id, key="vera.key")
        assert "redrive recorded. State: pending." in await perdure("redrive", first.id, "--payload", '"mended"')
        await dead_letters.letters(1)
        assert "1 succeeded, 0 refused" in await perdure("resolve", "--signature", second.signature)
        audit_log = (await ingress.call(rollback_status, key=f"{name}:{saga}")).audit_log
        assert [(entry.actor, entry.signed_action is None) for entry in audit_log] == [("olga@example.com", False)] * 2
