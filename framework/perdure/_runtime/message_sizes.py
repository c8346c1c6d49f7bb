"""Sizes of messages to the engine, and of an invocation's journal.

The engine retries an attempt without end if it sends a message over the engine's message limit, or needs more than the
memory of one invocation. So `MeasuredVM` refuses a larger value before it is sent, and a step of a saga before it
starts if the journal could outgrow that memory.

The journal's size is counted from what the handler sends and reads. A replay repeats both, and thus the decision.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final

from pydantic import ByteSize, TypeAdapter, ValidationError
from restate.vm import Failure, NotificationType, Run, Suspended, VMWrapper

from perdure.errors import ConfigurationError, TooLarge

_MIB: Final = 1024 * 1024

# Frame, names and IDs of a message, and the memory that the engine reserves for each invocation (32 KiB).
_OVERHEAD: Final = 64 * 1024
_SMALLEST: Final = 2 * _OVERHEAD

_bytes: Final = TypeAdapter(ByteSize)

Headers = Sequence[tuple[str, str]] | None


@dataclass(frozen=True)
class EngineLimits:
    """Limits of the engine, and the space that a step reserves for its result, in bytes.

    Args:
        message: The engine's ``message-size-limit`` (``PERDURE_ENGINE_MESSAGE_LIMIT``).
        invocation: Its ``per-invocation-memory-limit`` (``PERDURE_ENGINE_INVOCATION_LIMIT``).
        step_result: Largest result of a saga's step (``PERDURE_STEP_RESULT_LIMIT``).
    """

    message: int = 32 * _MIB
    invocation: int = 32 * _MIB
    step_result: int = 8 * _MIB

    @property
    def value(self) -> int:
        """Largest value in one message: the engine reads each message into the memory of its invocation."""
        return min(self.message, self.invocation) - _OVERHEAD

    @property
    def state_entry(self) -> int:
        """Largest state entry: over HTTP/1.1, the engine needs twice the size of an entry that it does not preload."""
        return min(self.value, self.invocation * 15 // 32)

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> EngineLimits:
        """Read the limits from environment variables, such as ``64MiB``.

        Raises:
            ConfigurationError: A value is not a size, is too small, or exceeds the limit that it must fit into.
        """
        limits = replace(
            cls(), **{field: _size(name, environment) for field, name in _SETTINGS.items() if environment.get(name)}
        )
        if limits.step_result > limits.value:
            raise ConfigurationError(
                f"{_SETTINGS['step_result']} is {limits.step_result:,} bytes, and a message to the engine has at most "
                f"{limits.value:,}: lower it, or raise the engine's limits, {_SETTINGS['message']} and "
                f"{_SETTINGS['invocation']}"
            )
        return limits


_SETTINGS: Final = {
    "message": "PERDURE_ENGINE_MESSAGE_LIMIT",
    "invocation": "PERDURE_ENGINE_INVOCATION_LIMIT",
    "step_result": "PERDURE_STEP_RESULT_LIMIT",
}


def _size(name: str, environment: Mapping[str, str]) -> int:
    text = environment[name]
    try:
        size = int(_bytes.validate_python(text))
    except ValidationError as error:
        raise ConfigurationError(f"{name}={text!r} is not a size: write bytes, or a unit, such as 64MiB") from error
    if size < _SMALLEST:
        raise ConfigurationError(f"{name}={text!r}: at least {_SMALLEST // 1024} KiB are required")
    return size


@cache
def engine_limits() -> EngineLimits:
    """Return the limits of this process, read once from the environment.

    Raises:
        ConfigurationError: See `EngineLimits.read`.
    """
    return EngineLimits.read(os.environ)


def check_message(
    place: str, size: int, limit: int | None = None, *, setting: str = "step_result", **metadata: str
) -> None:
    """Refuse a value that does not fit into a message to the engine.

    Args:
        place: What the value is, for the message.
        size: Its size in bytes, encrypted if the journal is.
        limit: A lower limit.
        setting: The field of `EngineLimits` that sets the lower limit.
        metadata: More metadata of the error.

    Raises:
        TooLarge: The value is larger.
    """
    largest = engine_limits().value if limit is None else limit
    if size > largest:
        variable = _SETTINGS["message" if limit is None else setting]
        raise TooLarge(
            f"{place} has {size:,} bytes, and at most {largest:,} are possible. Store the value elsewhere and pass a "
            f"reference, or raise the limit ({variable})",
            metadata={"size": str(size), "limit": str(largest), "setting": variable, **metadata},
        )


class MeasuredVM(VMWrapper):
    """The SDK's state machine with checks of sizes; replaces the class of the SDK's object."""

    journal: int
    """Bytes that this invocation has received, sent and read."""
    answer_limit: int | None = None
    in_step: str | None = None
    """The step that is being recorded or started."""
    _state: dict[str, int]
    _runs: dict[int, str]
    _reserved: dict[int, tuple[str, int]]

    def measure(self, input_size: int, answer_limit: int | None) -> None:
        """Start counting, at the start of an attempt.

        Args:
            input_size: The size of the invocation's input.
            answer_limit: The largest answer; None for the engine's limit.
        """
        self.journal = input_size
        self.answer_limit = answer_limit
        self._state = {}
        self._runs = {}
        self._reserved = {}

    def _add(self, place: str, size: int) -> None:
        check_message(place, size)
        self.journal += size

    def _reserve(self, size: int, state: int = 0) -> None:
        """Refuse the record or the request of a step after which its result, or the saga's rollback, might not fit.

        The request of a rollback contains the records of all steps.
        """
        if self.in_step is None:
            return
        limits = engine_limits()
        results = sum(limit for _, limit in self._reserved.values()) + limits.step_result
        records = sum(self._state.values()) + state
        needed = self.journal + size + results
        if needed <= limits.invocation and records <= limits.value - _OVERHEAD:
            return
        raise TooLarge(
            f"step '{self.in_step}' was not started: the journal has {self.journal:,} bytes, the state {records:,}, the"
            f" step adds {size:,} and may need {results:,} for results; the engine's limit for an invocation is "
            f"{limits.invocation:,}. Pass large values by reference, or change the limits ({_SETTINGS['step_result']}, "
            f"{_SETTINGS['invocation']})",
            metadata={
                "step": self.in_step,
                "size": str(needed),
                "limit": str(limits.invocation),
                "setting": _SETTINGS["invocation"],
            },
        )

    def _started(self, handle: int) -> None:
        if self.in_step is not None:
            self._reserved[handle] = self.in_step, engine_limits().step_result

    def answer_size(self, answer: bytes) -> int:
        """Return the size of the handler's answer as it is sent."""
        return len(answer)

    def sys_write_output_success(self, output: bytes) -> None:
        """Send the handler's answer."""
        check_message("the answer", len(output), self.answer_limit)
        super().sys_write_output_success(output)

    def sys_set_state(self, name: str, value: bytes, entry_name: str | None = None) -> None:
        """Set a state entry."""
        size = len(name) + len(value)
        check_message(f"the state entry '{name}'", size, engine_limits().state_entry, setting="invocation")
        self._reserve(size, size - self._state.get(name, 0))
        self.journal += size
        self._state[name] = size
        super().sys_set_state(name, value, entry_name)

    def sys_clear_state(self, name: str, entry_name: str | None = None) -> None:
        """Clear a state entry."""
        self._state.pop(name, None)
        super().sys_clear_state(name, entry_name)

    def sys_clear_all_state(self, entry_name: str | None = None) -> None:
        """Clear all state entries."""
        self._state.clear()
        super().sys_clear_all_state(entry_name)

    def sys_call(self, service: str, handler: str, parameter: bytes, *args: Any, **kwargs: Any) -> Any:
        """Call a handler."""
        size = len(parameter) + _header_size(kwargs.get("headers"))
        check_message(f"the request to {service}/{handler}", size)
        self._reserve(size)
        call = super().sys_call(service, handler, parameter, *args, **kwargs)
        self.journal += size
        self._started(call.result_handle)
        return call

    def sys_send(self, service: str, handler: str, parameter: bytes, *args: Any, **kwargs: Any) -> int:
        """Call a handler one-way."""
        self._add(f"the request to {service}/{handler}", len(parameter) + _header_size(kwargs.get("headers")))
        return super().sys_send(service, handler, parameter, *args, **kwargs)

    def sys_run(self, name: str) -> Run:
        """Start a run."""
        self._reserve(0)
        run = super().sys_run(name)
        self._runs[run.handle] = name
        self._started(run.handle)
        return run

    def propose_run_completion_success(self, handle: int, output: bytes) -> None:
        """Send the result of a run."""
        name = self._runs.get(handle, "?")  # started before a handler of the SDK alone first used Perdure
        _, limit = self._reserved.get(handle, (None, None))
        check_message(f"run '{name}': the result", len(output), limit, run=name)
        super().propose_run_completion_success(handle, output)

    def sys_complete_promise_success(self, name: str, value: bytes) -> int:
        """Resolve a promise."""
        self._add(f"the value of the promise '{name}'", len(value))
        return super().sys_complete_promise_success(name, value)

    def sys_resolve_awakeable(self, name: str, value: bytes) -> None:
        """Resolve an awakeable."""
        self._add(f"the value of the awakeable {name}", len(value))
        super().sys_resolve_awakeable(name, value)

    def sys_resolve_signal(self, invocation_id: str, signal_name: str, value: bytes) -> None:
        """Resolve a signal."""
        self._add(f"the value of the signal '{signal_name}'", len(value))
        super().sys_resolve_signal(invocation_id, signal_name, value)

    def take_notification(self, handle: int) -> NotificationType | Exception | Suspended:
        """Return the result of an operation; a step's result that exceeds its limit is a failure."""
        value = super().take_notification(handle)
        step, limit = self._reserved.pop(handle, (None, None))
        if isinstance(value, bytes):
            self.journal += len(value)
            if step is not None:
                try:
                    check_message(f"step '{step}': the result", len(value), limit, step=step)
                except TooLarge as error:
                    return Failure(error.status_code, error.message, metadata=error.metadata)
        return value


def _header_size(headers: Headers) -> int:
    return sum(len(name) + len(value) for name, value in headers or ())
