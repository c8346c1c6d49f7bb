"""Encryption of journal values in the SDK, each bound to its place.

The SDK's hook, `JournalValueCodec`, receives bytes without their place. The SDK's state machine knows both, so a
subclass of it seals the value of each command for the command's place, and opens each result at that place.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, NoReturn, cast

import restate
from restate import JournalValueCodec
from restate.server_context import ServerInvocationContext, current_context
from restate.vm import NotificationType, Run, Suspended

from perdure._runtime import sdk
from perdure._runtime.message_sizes import MeasuredVM
from perdure._runtime.places import OutputSource, Place, PlaceKind, ValueCodec
from perdure.errors import PerdureError, RejectedValue, UnreadableValue

Definition = restate.Service | restate.VirtualObject | restate.Workflow

_COMPLETED_FROM_OUTSIDE: Final = frozenset({PlaceKind.AWAKEABLE, PlaceKind.SIGNAL})


class _Unsealed(JournalValueCodec):
    """The SDK's codec for all handlers. Refuses the values of handlers that `sealed` has not prepared."""

    def encode(self, buf: bytes) -> bytes:  # noqa: ARG002 - the SDK's signature
        self._refuse()

    async def decode(self, buf: bytes) -> bytes:  # noqa: ARG002 - the SDK's signature
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise PerdureError("a handler ran without sealing its values although encryption is on: serve it by build_app")


UNSEALED_REFUSED: Final[JournalValueCodec] = _Unsealed()
"""Codec for the SDK's app. With a codec, the SDK skips its payload checks, which sealed values would not pass."""


class _OpenedInput(JournalValueCodec):
    """Returns the opened input to the SDK and removes itself, because the other values arrive opened."""

    def __init__(self, context: ServerInvocationContext, opened: bytes) -> None:
        self._context = context
        self._opened = opened

    def encode(self, buf: bytes) -> bytes:
        return buf  # the output, which the state machine seals

    async def decode(self, buf: bytes) -> bytes:  # noqa: ARG002 - the sealed input
        self._context.journal_codec = None
        return self._opened


@dataclasses.dataclass(frozen=True)
class _Call:
    """The result of a call. The ID of its invocation arrives in a separate notification."""

    service: str
    key: str
    handler: str
    invocation_id_handle: int


@dataclasses.dataclass(frozen=True)
class _Expected:
    """The result that a command waits for. State entries and peeked promises are optional."""

    place: Place | OutputSource | _Call
    optional: bool = False


class _SealedVM(MeasuredVM):
    """The SDK's state machine with encryption; replaces the class of the SDK's object."""

    codec: ValueCodec
    service: str
    key: str
    handler: str
    invocation: str
    expected: dict[int, _Expected]
    invocation_ids: dict[int, str]

    def begin(self, codec: ValueCodec, service: str, key: str, handler: str, invocation: str) -> None:
        self.codec = codec
        self.service, self.key, self.handler, self.invocation = service, key, handler, invocation
        self.measure(0, None)  # `sdk.guard` restarts it, which handlers of the SDK alone may never call
        self.expected = {}
        self.invocation_ids = {}

    def answer_size(self, answer: bytes) -> int:
        return len(answer) + len(self.codec.seal(b"", self._output_place()))  # sealing adds the same to every value

    def sys_write_output_success(self, output: bytes) -> None:
        super().sys_write_output_success(self.codec.seal(output, self._output_place()))

    def sys_get_state(self, name: str, entry_name: str | None = None) -> int:
        handle = super().sys_get_state(name, entry_name)
        return self._expect(handle, Place.state(self.service, self.key, name), optional=True)

    def sys_set_state(self, name: str, value: bytes, entry_name: str | None = None) -> None:
        super().sys_set_state(name, self.codec.seal(value, Place.state(self.service, self.key, name)), entry_name)

    def sys_run(self, name: str) -> Run:
        run = super().sys_run(name)
        self._expect(run.handle, Place.run(self.service, self.key, name, self.invocation))
        return run

    def propose_run_completion_success(self, handle: int, output: bytes) -> None:
        place = cast("Place", self.expected[handle].place)
        super().propose_run_completion_success(handle, self.codec.seal(output, place))

    def sys_get_promise(self, name: str) -> int:
        return self._expect(super().sys_get_promise(name), Place.promise(self.service, self.key, name))

    def sys_peek_promise(self, name: str) -> int:
        place = Place.promise(self.service, self.key, name)
        return self._expect(super().sys_peek_promise(name), place, optional=True)

    def sys_complete_promise_success(self, name: str, value: bytes) -> int:
        place = Place.promise(self.service, self.key, name)
        return super().sys_complete_promise_success(name, self.codec.seal(value, place))

    def sys_awakeable(self) -> tuple[str, int]:
        id_, handle = super().sys_awakeable()
        return id_, self._expect(handle, Place.awakeable(id_))

    def sys_resolve_awakeable(self, name: str, value: bytes) -> None:
        super().sys_resolve_awakeable(name, self.codec.seal(value, Place.awakeable(name)))

    def sys_signal(self, signal_name: str) -> int:
        return self._expect(super().sys_signal(signal_name), Place.signal(self.invocation, signal_name))

    def sys_resolve_signal(self, invocation_id: str, signal_name: str, value: bytes) -> None:
        sealed_value = self.codec.seal(value, Place.signal(invocation_id, signal_name))
        super().sys_resolve_signal(invocation_id, signal_name, sealed_value)

    def sys_call(
        self, service: str, handler: str, parameter: bytes, key: str | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        sealed_input = self.codec.seal(parameter, Place.input(service, key, handler))
        call = super().sys_call(service, handler, sealed_input, key, *args, **kwargs)
        self._expect(call.result_handle, _Call(service, key or "", handler, call.invocation_id_handle))
        return call

    def sys_send(
        self, service: str, handler: str, parameter: bytes, key: str | None = None, *args: Any, **kwargs: Any
    ) -> int:
        sealed_input = self.codec.seal(parameter, Place.input(service, key, handler))
        return super().sys_send(service, handler, sealed_input, key, *args, **kwargs)

    def attach_invocation(self, invocation_id: str) -> int:
        return self._expect(super().attach_invocation(invocation_id), OutputSource(invocation_id))

    def is_completed(self, handle: int) -> bool:
        return handle in self.invocation_ids or super().is_completed(handle)

    def take_notification(self, handle: int) -> NotificationType | Exception | Suspended:
        if (invocation_id := self.invocation_ids.get(handle)) is not None:
            return invocation_id
        value = super().take_notification(handle)
        expected = self.expected.get(handle)
        if expected is None:
            if isinstance(value, bytes):
                raise PerdureError("the SDK reads a value of an unknown command: add it to perdure._runtime.sealing")
            return value
        if value is None and not expected.optional:
            value = b""  # refused below: a sealed value is never empty
        return self._open(value, expected.place) if isinstance(value, bytes) else value

    def _output_place(self) -> Place:
        return Place.output(self.service, self.key, self.handler, self.invocation)

    def _expect(self, handle: int, place: Place | OutputSource | _Call, *, optional: bool = False) -> int:
        self.expected[handle] = _Expected(place, optional)
        return handle

    def _open(self, value: bytes, place: Place | OutputSource | _Call) -> bytes:
        if isinstance(place, _Call):
            invocation = self._invocation_id(place.invocation_id_handle)
            place = OutputSource(invocation, place.service, place.key, place.handler)
        if isinstance(place, OutputSource):
            return self.codec.open_output(value, place)
        try:
            return self.codec.open(value, place)
        except UnreadableValue as error:
            # Depends on the place only: the handler may catch the error, and must see the same one at every replay.
            if place.kind in _COMPLETED_FROM_OUTSIDE:
                raise RejectedValue(str(error)) from error
            raise

    def _invocation_id(self, handle: int) -> str:
        """Return the ID of a call's invocation, which the engine sends before the call's result."""
        if handle not in self.invocation_ids:
            value = super().take_notification(handle)
            if not isinstance(value, str):
                raise PerdureError(f"the engine sent a call's result before its invocation ID: {value!r}")
            self.invocation_ids[handle] = value
        return self.invocation_ids[handle]


def codec_of(ctx: restate.Context) -> ValueCodec | None:
    """Return the codec that seals the values of a handler; None if the journal is not encrypted."""
    vm = cast("ServerInvocationContext", ctx).vm
    return vm.codec if isinstance(vm, _SealedVM) else None


@asynccontextmanager
async def _sealed_invocation(codec: ValueCodec) -> AsyncIterator[None]:
    """Open an invocation's input, and seal the values that its handler writes."""
    context = cast("ServerInvocationContext", current_context())
    invocation, info = context.invocation, sdk.handler_info(cast("restate.Context", context))
    context.vm.__class__ = _SealedVM
    vm = cast("_SealedVM", context.vm)
    vm.begin(codec, info.service, invocation.key, info.handler, invocation.invocation_id)
    try:
        opened = codec.open(invocation.input_buffer, Place.input(info.service, invocation.key, info.handler))
    except UnreadableValue as error:
        # An invocation with commands in its journal has accepted this input before, so it waits for the missing key.
        if error.lacks_key and vm.is_replaying():
            raise
        raise RejectedValue(str(error)) from error
    invocation.input_buffer = opened
    context.journal_codec = _OpenedInput(context, opened) if context.handler.arity == 2 else None
    yield


def sealed(definition: Definition, codec: ValueCodec) -> Definition:
    """Return a copy of a service whose handlers take sealed inputs and seal their values."""
    begin = functools.partial(_sealed_invocation, codec)
    prepared = copy.copy(definition)
    prepared.handlers = {
        name: dataclasses.replace(
            handler,
            context_managers=[begin, *(handler.context_managers or [])],
            # Otherwise the engine rejects the body of a handler without input; a sealed input always has one.
            handler_io=dataclasses.replace(handler.handler_io, input_type=None)
            if handler.handler_io.input_type is not None and handler.handler_io.input_type.is_void
            else handler.handler_io,
        )
        for name, handler in definition.handlers.items()
    }
    return prepared
