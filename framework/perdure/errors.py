"""Exceptions of Perdure.

    restate.TerminalError                  ends the invocation; Restate does not retry it
    └─ PerdureTerminalError                carries a machine-readable code in its metadata
       ├─ InvalidInput               400   the request is malformed; names the field
       ├─ RejectedValue              400   an input or completion is not encrypted for the place where it arrived
       ├─ GuardrailViolation         400   a guardrail failed under the policy "strict"
       ├─ ReadOnlyStateError         400   a shared handler wrote state
       ├─ Unauthenticated            401   the caller is not authenticated
       ├─ Forbidden                  403   the caller is authenticated but not authorised
       ├─ NotFound                   404   the requested object does not exist
       ├─ ApprovalTimeout            408   an approval was not decided before its deadline
       ├─ StepTimeout                408   a called step exceeded its time limit
       ├─ Cancelled                  409   this invocation was cancelled (not an application's own 409)
       │  └─ DeadlineExceeded        408   the deadline of the saga passed
       ├─ Conflict                   409   the request contradicts recorded state
       ├─ TooLarge                   413   a value exceeds a limit of the engine, and was not sent
       ├─ StateTooLarge              413   the state of a workflow exceeds its limit
       ├─ Refused                  4xx/5xx a business rule rejected the request; the code names the rule
       ├─ RunExhausted               500   all attempts of a run failed
       ├─ RetryExhausted             500   all attempts of a retry loop failed; names the last cause
       ├─ LoopLimitReached           500   a loop exceeded its iteration limit
       ├─ LoopFailed            as cause   an iteration of a loop failed; names it, keeps status and metadata
       ├─ SagaError                  500   code violates a rule of sagas, such as compensation before action
       └─ StepFailed            as cause   a step of a saga failed; names the step, keeps status and metadata
    PerdureError                           not terminal; in a handler, the engine retries it
    ├─ Aborted                             user code ended with SystemExit or the like; retried
    ├─ ConfigurationError                  settings or definitions are invalid; raised at start
    ├─ IdentityError                       a request is not signed by a trusted engine
    ├─ EngineError                         restate-server could not be found, started or queried
    ├─ IngressError                        a call over the ingress failed
    │  ├─ AlreadyStarted            409   an earlier request started the workflow with this key
    │  ├─ InvocationNotFound        404   no such invocation: never accepted, or its retention has ended
    │  ├─ NotReady                  470   the invocation whose output was requested has not ended
    │  └─ NotRegistered             404   the service or handler is not registered; nothing was accepted
    ├─ UnreadableState                     state or a promise does not match its type; retried
    └─ UnreadableValue                     an encrypted value cannot be decrypted; retried

The admin API raises `InvocationNotFound` too, so it is also an `EngineError`.

Only code, message and metadata of a terminal error cross services. Each class therefore puts its ``code`` into the
metadata, and `error_code` reads it from any terminal error.

Messages and metadata may be any objects: their text is escaped where UTF-8 or a terminal needs it, and shortened. A
status that is not 400 to 599 is replaced by the class's own.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import ClassVar, Final

from restate import TerminalError
from restate.exceptions import RetryableError

from perdure._runtime.plain_text import message_text, text_of

__all__ = [
    "Aborted",
    "Acceptance",
    "AlreadyStarted",
    "ApprovalTimeout",
    "Cancelled",
    "ConfigurationError",
    "Conflict",
    "DeadlineExceeded",
    "EngineError",
    "Forbidden",
    "GuardrailViolation",
    "IdentityError",
    "IngressError",
    "InvalidInput",
    "InvocationNotFound",
    "LoopFailed",
    "LoopLimitReached",
    "NotFound",
    "NotReady",
    "NotRegistered",
    "PerdureError",
    "PerdureTerminalError",
    "ReadOnlyStateError",
    "Refused",
    "RejectedValue",
    "RetryExhausted",
    "RunExhausted",
    "SagaError",
    "StateTooLarge",
    "StepFailed",
    "StepTimeout",
    "TerminalError",
    "TooLarge",
    "Unauthenticated",
    "UnreadableState",
    "UnreadableValue",
    "causes",
    "error_code",
    "is_terminal",
]

CODE_KEY = "code"

_MAX_METADATA: Final = 64
_METADATA_NAME_LENGTH: Final = 200
_METADATA_VALUE_LENGTH: Final = 4_000


def is_terminal(error: BaseException) -> bool:
    """Return whether an error ends the invocation: a terminal error, or an error raised ``from`` one."""
    return terminal_cause(error) is not None


def terminal_cause(error: BaseException) -> TerminalError | None:
    """Return the terminal error in an error's chain of causes, with which the SDK ends the invocation; None if none."""
    return next((cause for cause in causes(error) if isinstance(cause, TerminalError)), None)


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its chain of causes, each error once."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__


def error_code(error: TerminalError) -> str | None:
    """Return the machine-readable code of a terminal error, such as ``"not_found"``, or None.

    Args:
        error: A terminal error, raised here or received from another service.
    """
    return metadata_of(error).get(CODE_KEY)


def message_of(error: TerminalError) -> str:
    """Return the message of a terminal error as the engine accepts it, whatever its class and message are."""
    return _text(_attribute(error, "message"), type(error))


def status_of(error: TerminalError) -> int:
    """Return the status of a terminal error as the engine accepts it."""
    return clean_status(_attribute(error, "status_code"))


def metadata_of(error: TerminalError) -> dict[str, str]:
    """Return the metadata of a terminal error as the engine accepts them."""
    return clean_metadata(_attribute(error, "metadata"))


def clean_metadata(metadata: object) -> dict[str, str]:
    """Return metadata as the engine accepts them: short, encodable texts. Of too many, the code and the latest."""
    if metadata is None:
        return {}
    try:
        items = list(metadata.items()) if isinstance(metadata, Mapping) else [("metadata", metadata)]
    except BaseException as error:  # noqa: BLE001 - an untrusted class may raise anything
        items = [("metadata", f"<{type(metadata).__name__} whose items raise {type(error).__name__}>")]
    return {
        message_text(name, _METADATA_NAME_LENGTH): message_text(value, _METADATA_VALUE_LENGTH)
        for name, value in (items if len(items) <= _MAX_METADATA else [items[0], *items[1 - _MAX_METADATA :]])
    }


def clean_status(status: object, default: int = 500) -> int:
    """Return an HTTP status of 400 to 599, or the default; a caller would take another one for success."""
    if isinstance(status, int) and not isinstance(status, bool) and 400 <= status <= 599:
        return int(status)
    return default


def clean_terminal(error: TerminalError) -> TerminalError:
    """Return an error whose message, status and metadata the engine accepts: the error itself, corrected if necessary.

    User code may raise the SDK's class, with any values, or a subclass that lacks some.
    """
    message, status, metadata = message_of(error), status_of(error), metadata_of(error) or None
    try:
        if (error.message, error.status_code, error.metadata or None) != (message, status, metadata):
            error.message, error.status_code, error.metadata = message, status, metadata
    except BaseException:  # noqa: BLE001 - an untrusted class may raise anything
        return TerminalError(message, status, metadata).with_traceback(error.__traceback__)
    return error


def reportable(error: Exception) -> Exception:
    """Return an error that the SDK can report: the error itself, or a substitute if the error cannot be read.

    The SDK reads the attributes of the first terminal or retryable error in the chain of causes, or else the ``repr``,
    and the traceback. A failure there would leave the attempt open.
    """
    decisive = next((cause for cause in causes(error) if isinstance(cause, TerminalError | RetryableError)), None)
    if isinstance(decisive, TerminalError):
        clean = clean_terminal(decisive)
        return error if clean is decisive else clean
    try:
        if decisive is not None:
            _ = decisive.message, decisive.status_code, decisive.retry_after
        repr(error)
        traceback.format_exception(error)
    except BaseException:  # noqa: BLE001 - an untrusted class may raise anything
        return PerdureError(text_of(error, repr)).with_traceback(error.__traceback__)
    return error


def _text(message: object, kind: type[TerminalError]) -> str:
    return kind.__name__ if message is None else message_text(message)


def _attribute(error: TerminalError, name: str) -> object:
    """Return an attribute, or None if a subclass has not set it or raises an error."""
    try:
        return getattr(error, name)
    except BaseException:  # noqa: BLE001 - an untrusted class may raise anything
        return None


class PerdureTerminalError(TerminalError):
    """Base of the terminal errors, with an HTTP status and a machine-readable code.

    Args:
        message: What happened, where, and what to do.
        status_code: HTTP status, 400 to 599; by default the class's own.
        metadata: More details, as texts. They travel with the error from service to service.
    """

    code: ClassVar[str] = "terminal"
    default_status: ClassVar[int] = 500

    def __init__(self, message: str, *, status_code: int | None = None, metadata: dict[str, str] | None = None) -> None:
        # The SDK accepts encodable texts only: another value would leave the attempt open.
        details = {CODE_KEY: self.code, **clean_metadata(metadata)}
        super().__init__(_text(message, type(self)), clean_status(status_code, self.default_status), details)


class InvalidInput(PerdureTerminalError):
    """The request is malformed. The message names the field, and nothing was changed."""

    code = "invalid_input"
    default_status = 400


class RejectedValue(PerdureTerminalError):
    """An input or completion is not encrypted, or encrypted for another place. A retry would read the same value."""

    code = "rejected_value"
    default_status = 400


class GuardrailViolation(PerdureTerminalError):
    """A guardrail failed under the policy ``strict``."""

    code = "guardrail"
    default_status = 400


class ReadOnlyStateError(PerdureTerminalError):
    """A shared handler wrote state. Write it from an exclusive handler or the workflow's main handler."""

    code = "read_only_state"
    default_status = 400


class Unauthenticated(PerdureTerminalError):
    """The caller is not authenticated: the signature is missing, invalid, expired, or not by a trusted key."""

    code = "unauthenticated"
    default_status = 401


class Forbidden(PerdureTerminalError):
    """The caller is authenticated but not authorised."""

    code = "forbidden"
    default_status = 403


class NotFound(PerdureTerminalError):
    """The requested object does not exist."""

    code = "not_found"
    default_status = 404


class ApprovalTimeout(PerdureTerminalError):
    """An approval was not decided before its deadline."""

    code = "approval_timeout"
    default_status = 408


class StepTimeout(PerdureTerminalError):
    """A called step exceeded its time limit. Its invocation is cancelled; the rollback awaits and compensates it."""

    code = "step_timeout"
    default_status = 408


class Cancelled(PerdureTerminalError):
    """This invocation was cancelled."""

    code = "cancelled"
    default_status = 409


class DeadlineExceeded(Cancelled):
    """The deadline of the saga passed. It interrupts the same waits as a cancel, and the saga is rolled back."""

    code = "deadline_exceeded"
    default_status = 408


class Conflict(PerdureTerminalError):
    """The request contradicts recorded state."""

    code = "conflict"
    default_status = 409


class TooLarge(PerdureTerminalError):
    """A value exceeds a limit of the engine, and was not sent. Store it elsewhere and pass a reference."""

    code = "too_large"
    default_status = 413


class StateTooLarge(PerdureTerminalError):
    """The state of a workflow exceeds the limit of its `WorkflowConfig`. Store large values elsewhere, by reference."""

    code = "state_too_large"
    default_status = 413


class Refused(PerdureTerminalError):
    """A business rule rejected the request; a retry would be rejected too.

    Args:
        message: The reason.
        status_code: HTTP status, 409 by default.
        code: Machine-readable name of the rule, for example ``"seats_sold_out"``.
        metadata: More details, all strings.
    """

    code = "refused"
    default_status = 409

    def __init__(
        self,
        message: str,
        status_code: int | None = None,
        code: str | None = None,
        metadata: dict[str, str] | None = None,
    ) -> None:
        super().__init__(
            message, status_code=status_code, metadata={CODE_KEY: code or type(self).code, **clean_metadata(metadata)}
        )


class RunExhausted(PerdureTerminalError):
    """All attempts of a run failed. The message names the run, the attempts and the last cause.

    The metadata ``lost_attempts`` counts attempts that ended with their process or connection, if there were any.
    """

    code = "run_exhausted"


class RetryExhausted(PerdureTerminalError):
    """All attempts of a retry loop failed.

    Args:
        attempts: Number of attempts.
        cause: Error of the last attempt. Its metadata are kept, its code as ``cause_code``.
    """

    code = "retry_exhausted"

    def __init__(self, attempts: int, cause: TerminalError) -> None:
        details = metadata_of(cause)
        if CODE_KEY in details:
            details["cause_code"] = details[CODE_KEY]
        metadata = {**details, CODE_KEY: self.code, "attempts": str(attempts)}
        super().__init__(f"retry exhausted after {attempts} attempts: {message_of(cause)}", metadata=metadata)


class LoopLimitReached(PerdureTerminalError):
    """A loop exceeded its iteration limit."""

    code = "loop_limit"


class LoopFailed(PerdureTerminalError):
    """An iteration of a loop ended with a terminal error.

    Args:
        message: What failed.
        iteration: Number of the iteration, from 0.
        cause: The error. Its status and metadata are kept.
    """

    code = "loop_failed"

    def __init__(self, message: str, iteration: int, cause: TerminalError) -> None:
        metadata = {**metadata_of(cause), "iteration": str(iteration)}
        super().__init__(f"{message}: {message_of(cause)}", status_code=status_of(cause), metadata=metadata)
        self.iteration = iteration


class SagaError(PerdureTerminalError):
    """Code violates a rule of sagas, for example an action before its compensation is registered."""

    code = "saga"


class StepFailed(PerdureTerminalError):
    """A step of a saga ended with a terminal error.

    Args:
        step: The step's name.
        cause: The error. Its status and metadata are kept.
    """

    code = "step_failed"

    def __init__(self, step: str, cause: TerminalError) -> None:
        metadata = {**metadata_of(cause), "step": step}
        message = f"step '{step}' failed: {message_of(cause)}"
        super().__init__(message, status_code=status_of(cause), metadata=metadata)
        self.step = step


class PerdureError(Exception):
    """Base of the errors that are not terminal. Most are raised outside handlers."""


class Aborted(PerdureError):
    """User code raised an exception that is not an `Exception`, such as `SystemExit` or a `CancelledError` of its own.

    It counts as a failed attempt. An `ErrorMapping` may translate it.
    """


class UnreadableState(PerdureError):
    """State or a workflow's promise does not match its type. Retried until a deployment or a repair fixes it."""


class ConfigurationError(PerdureError):
    """Settings or definitions are invalid. Raised at start, before anything runs."""


class UnreadableValue(PerdureError):
    """A journal value cannot be decrypted: it is not encrypted, belongs to another place, or its key is missing.

    The handler is retried: a process that lacks a key must wait for it instead of rolling back. Inputs and completions
    come from outside, and raise `RejectedValue` instead.

    Args:
        message: What cannot be decrypted, why, and what to do.
        lacks_key: The key is missing in this process.
    """

    def __init__(self, message: str, *, lacks_key: bool = False) -> None:
        super().__init__(message)
        self.lacks_key = lacks_key


class IdentityError(PerdureError):
    """A request to a service is not signed by a trusted engine."""


class Acceptance(StrEnum):
    """Whether the engine has accepted a request that failed."""

    ACCEPTED = "accepted"
    """The engine has accepted the request. The error is that of its handler, or says that it has not ended."""
    NOT_ACCEPTED = "not accepted"
    """The engine has certainly not accepted the request, so it had no effect and can be repeated."""
    UNKNOWN = "unknown outcome"
    """The engine may or may not have accepted the request. Repeat it only under the same key."""


class EngineError(PerdureError):
    """restate-server could not be found, started or queried.

    Args:
        message: What happened, and what to do.
        status_code: HTTP status of the engine's response, 0 without a response.
        acceptance: Whether the engine has accepted the request.
    """

    def __init__(self, message: str, *, status_code: int = 0, acceptance: Acceptance = Acceptance.UNKNOWN) -> None:
        super().__init__(message)
        self.status_code = status_code
        self.acceptance = acceptance


class IngressError(PerdureError):
    """A call over the ingress failed.

    Args:
        message: Message of the ingress or the handler.
        status_code: HTTP status, 0 without a response.
        source: ``"invocation"`` for the handler's own error, ``"ingress"`` for an error of the ingress, None without a
            response.
        metadata: Metadata of the terminal error, if any.
        acceptance: Whether the engine has accepted the request or, for `IngressClient.attach` and
            `IngressClient.output`, the invocation.
    """

    def __init__(
        self,
        message: str,
        *,
        status_code: int = 0,
        source: str | None = None,
        metadata: dict[str, str] | None = None,
        acceptance: Acceptance = Acceptance.UNKNOWN,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status_code = status_code
        self.source = source
        self.metadata = metadata or {}
        self.acceptance = acceptance

    @property
    def code(self) -> str | None:
        """The machine-readable code of the handler's terminal error, or None."""
        return self.metadata.get(CODE_KEY)


class AlreadyStarted(IngressError):
    """An earlier request started the workflow with this key. Attach to it with `IngressClient.attach`."""


class InvocationNotFound(IngressError, EngineError):
    """The engine has no such invocation: it was never accepted, or its retention has ended.

    It is no answer of a handler: a handler's `NotFound` is an `IngressError` with the source ``"invocation"``.
    """


class NotReady(IngressError):
    """The invocation whose output was requested has not ended. Attach to it, or request the output later."""


class NotRegistered(IngressError):
    """The service or handler is not registered. The engine has not accepted the request.

    A just-started engine may answer this for a registered service. `IngressClient` therefore repeats the request for a
    while, see its ``registration_timeout``.
    """
