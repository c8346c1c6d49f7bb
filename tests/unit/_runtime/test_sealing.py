from __future__ import annotations

import dataclasses
import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import restate
from hypothesis import given
from hypothesis import strategies as st
from restate.server_context import ServerInvocationContext
from restate.vm import VMWrapper

from perdure._runtime import sdk, sealing
from perdure.errors import PerdureError
from perdure.security.codec import JournalCodec

CODEC = JournalCodec([b"k" * 32])
FROM_THE_ENGINE = {"notify_input"}


def test_seal_every_outgoing_value():
    """Detects commands with values that an upgrade of the SDK adds."""
    commands = inspect.getmembers(VMWrapper, inspect.isfunction)
    values = {
        name
        for name, command in commands
        if any(each.annotation is bytes for each in inspect.signature(command).parameters.values())
    }
    assert "sys_set_state" in values
    assert values - FROM_THE_ENGINE <= vars(sealing._SealedVM).keys()


def test_reject_value_of_unknown_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(VMWrapper, "take_notification", lambda _self, _handle: b"in clear")
    vm = object.__new__(sealing._SealedVM)
    vm.begin(CODEC, "Trips", "t1", "run", "inv_1")
    with pytest.raises(PerdureError, match="a value of an unknown command"):
        vm.take_notification(7)


@given(st.binary(max_size=1000), st.text(max_size=20), st.text(max_size=20))
def test_answer_size_is_that_of_sent_bytes(answer: bytes, key: str, handler: str):
    sent: list[bytes] = []
    vm = object.__new__(sealing._SealedVM)
    vm.begin(CODEC, "Trips", key, handler, "inv_1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VMWrapper, "sys_write_output_success", lambda _, output: sent.append(output))
        vm.sys_write_output_success(answer)
    assert [vm.answer_size(answer)] == [len(each) for each in sent]


async def test_refuse_handlers_without_sealing():
    with pytest.raises(PerdureError, match="ran without sealing"):
        sealing.UNSEALED_REFUSED.encode(b"value")
    with pytest.raises(PerdureError, match="ran without sealing"):
        await sealing.UNSEALED_REFUSED.decode(b"value")


def test_guard_keeps_a_sealed_journal_sealed():
    context: Any = object.__new__(ServerInvocationContext)
    context.vm = object.__new__(VMWrapper)
    context.vm.__class__ = sealing._SealedVM
    context.invocation = SimpleNamespace(invocation_id="inv_1", key="", headers=[], input_buffer=b"")
    sdk.guard(context)
    assert isinstance(context.vm, sealing._SealedVM)


def test_sealing_copies_the_service():
    service = restate.Service("Sealed")

    @service.handler()
    async def work(ctx: restate.Context) -> None: ...

    before = {name: dataclasses.replace(each) for name, each in service.handlers.items()}
    prepared = sealing.sealed(service, CODEC)
    assert service.handlers == before
    assert prepared.handlers["work"].handler_io.input_type is None
    assert len(prepared.handlers["work"].context_managers or []) == 1
