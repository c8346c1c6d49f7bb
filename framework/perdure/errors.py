"""Everything that perdure raises.

    restate.TerminalError                  ends an invocation; Restate never retries it
    └─ PerdureTerminalError                a terminal error with a machine-readable code in its metadata
       ├─ InvalidInput               400   the request itself is wrong; names the field
       ├─ RejectedValue              400   an input or completion is not sealed for the place where it arrived
       ├─ GuardrailViolation         400   a guardrail failed under the policy "strict"
       ├─ ReadOnlyStateError         400   a write to state from a shared handler
       ├─ Unauthenticated            401   nobody knows who asks: no proof, or one that doesn't hold
       ├─ Forbidden                  403   it is known who asks, and they may not
       ├─ NotFound                   404   what the request names does not exist
       ├─ ApprovalTimeout            408   nobody decided in time
       ├─ StepTimeout                408   a called step took longer than its time limit
       ├─ Cancelled                  409   this invocation was cancelled (not an application's own 409)
       ├─ Conflict                   409   the request contradicts what is already recorded
       ├─ StateTooLarge              413   a workflow's state is larger than it may be
       ├─ Refused                  4xx/5xx a business rule said no; the code says which
       ├─ RunExhausted               500   a run failed on each of its attempts
       ├─ RetryExhausted             500   a loop's attempts are used up; names the last cause
       ├─ LoopLimitReached           500   a loop went on for more iterations than it may
       ├─ LoopFailed            as cause   an iteration of a loop failed; names it, keeps code and metadata
       ├─ SagaError                  500   a saga's rules were broken (compensation after action, …)
       └─ StepFailed              as cause a step of a saga failed; names the step, keeps code and metadata
    PerdureError                           not terminal; raised outside handlers, but for the last two
    ├─ ConfigurationError                  settings or definitions that can't work; raised at start
    ├─ IdentityError                       a request isn't signed by an engine that is known here
    ├─ EngineError                         restate-server could not be found, started, or asked
    ├─ IngressError                        a call over the ingress failed; tells who failed and if a retry is safe
    │  └─ NotReady                  470   the invocation whose output was asked for has not ended
    ├─ UnreadableState                     state or a promise does not fit its type; retried, as a deploy can heal it
    └─ UnreadableValue                     an encrypted value can't be opened; retried, until the key for it is there

A terminal error crosses services as code, message and metadata only; its Python class does not. So each class puts its
``code`` into the metadata, and `error_code` reads it back wherever the error arrives.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from restate import TerminalError

__all__ = [
    "ApprovalTimeout",
    "Cancelled",
    "ConfigurationError",
    "Conflict",
    "EngineError",
    "Forbidden",
    "GuardrailViolation",
    "IdentityError",
    "IngressError",
    "InvalidInput",
    "LoopFailed",
    "LoopLimitReached",
    "NotFound",
    "NotReady",
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
    "Unauthenticated",
    "UnreadableState",
    "UnreadableValue",
    "causes",
    "error_code",
    "is_terminal",
]

CODE_KEY = "code"


def is_terminal(error: BaseException) -> bool:
    """Tell if an error ends the invocation, or if Restate would retry it.

    Args:
        error: The error, as raised or as caught.

    Returns:
        True for a terminal error, and for an error that was raised ``from`` one, as the SDK treats it.
    """
    return any(isinstance(cause, TerminalError) for cause in causes(error))


def causes(error: BaseException) -> Iterator[BaseException]:
    """Return an error, what it was raised ``from``, and so on; each once, since an error may be its own cause.

    Args:
        error: The error.
    """
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__


def error_code(error: TerminalError) -> str | None:
    """Return the machine-readable code of a terminal error, wherever it was raised.

    Args:
        error: A terminal error of this process or one that came from another service.

    Returns:
        The code, for example ``"not_found"``, or None for an error that carries none.
    """
    return (error.metadata or {}).get(CODE_KEY)


class PerdureTerminalError(TerminalError):
    """A terminal error of perdure: a message for people, an HTTP status, a code for machines.

    Args:
        message: What happened, where, and what to do about it.
        status_code: HTTP status; the class's own when left out.
        metadata: More facts, all strings; they travel with the error from service to service.
    """

    code: ClassVar[str] = "terminal"
    default_status: ClassVar[int] = 500

    def __init__(self, message: str, *, status_code: int | None = None, metadata: dict[str, str] | None = None) -> None:
        # The SDK takes strings only: anything else would break the attempt, or leave a run that never ends.
        facts = {name: str(value) for name, value in {CODE_KEY: self.code, **(metadata or {})}.items()}
        super().__init__(message, self.default_status if status_code is None else status_code, facts)


class InvalidInput(PerdureTerminalError):
    """The request is malformed. The message names the field; nothing was done."""

    code = "invalid_input"
    default_status = 400


class RejectedValue(PerdureTerminalError):
    """An input or completion cannot be opened: it is not encrypted, or was sealed for another place.

    It comes from outside, so it is terminal: a retry finds the same value again.
    """

    code = "rejected_value"
    default_status = 400


class GuardrailViolation(PerdureTerminalError):
    """A guardrail failed while the policy is strict."""

    code = "guardrail"
    default_status = 400


class ReadOnlyStateError(PerdureTerminalError):
    """State was written from a shared handler. Write it from an exclusive handler or the workflow's main handler."""

    code = "read_only_state"
    default_status = 400


class Unauthenticated(PerdureTerminalError):
    """Nobody knows who asks: the proof is missing, forged, expired, or not by a key that is trusted here."""

    code = "unauthenticated"
    default_status = 401


class Forbidden(PerdureTerminalError):
    """It is known who asks, and they may not do this."""

    code = "forbidden"
    default_status = 403


class NotFound(PerdureTerminalError):
    """What the request names does not exist."""

    code = "not_found"
    default_status = 404


class ApprovalTimeout(PerdureTerminalError):
    """Nobody decided before the deadline."""

    code = "approval_timeout"
    default_status = 408


class StepTimeout(PerdureTerminalError):
    """A called step took longer than its time limit. Its invocation is cancelled; the rollback awaits and undoes it."""

    code = "step_timeout"
    default_status = 408


class Cancelled(PerdureTerminalError):
    """This invocation was cancelled from outside."""

    code = "cancelled"
    default_status = 409


class Conflict(PerdureTerminalError):
    """The request contradicts what is already recorded."""

    code = "conflict"
    default_status = 409


class StateTooLarge(PerdureTerminalError):
    """The state of a workflow is larger than its `WorkflowConfig` allows. Keep large values elsewhere, by reference."""

    code = "state_too_large"
    default_status = 413


class Refused(PerdureTerminalError):
    """A business rule refused the request. Retrying the same request changes nothing.

    Args:
        message: Why, for people.
        status_code: HTTP status, 409 by default.
        code: Which rule, for machines, for example ``"seats_sold_out"``.
        metadata: More facts, all strings.
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
            message, status_code=status_code, metadata={CODE_KEY: code or type(self).code, **(metadata or {})}
        )


class RunExhausted(PerdureTerminalError):
    """A run failed on each of its attempts. The message names the run, the attempts and the last cause."""

    code = "run_exhausted"


class RetryExhausted(PerdureTerminalError):
    """A loop tried something as often as it may, and each attempt failed.

    Args:
        attempts: How often.
        cause: The last attempt's error; its metadata are kept, its code as ``cause_code``.
    """

    code = "retry_exhausted"

    def __init__(self, attempts: int, cause: TerminalError) -> None:
        facts = dict(cause.metadata or {})
        if CODE_KEY in facts:
            facts["cause_code"] = facts[CODE_KEY]
        metadata = {**facts, CODE_KEY: self.code, "attempts": str(attempts)}
        super().__init__(f"retry exhausted after {attempts} attempts: {cause.message}", metadata=metadata)


class LoopLimitReached(PerdureTerminalError):
    """A loop went on for more iterations than it may. Its condition never changed, or it belongs elsewhere."""

    code = "loop_limit"


class LoopFailed(PerdureTerminalError):
    """One iteration of a loop ended with a terminal error.

    Args:
        what: What failed where.
        iteration: Which one, from 0.
        cause: The error; its status and metadata are kept.
    """

    code = "loop_failed"

    def __init__(self, what: str, iteration: int, cause: TerminalError) -> None:
        metadata = {**(cause.metadata or {}), "iteration": str(iteration)}
        super().__init__(f"{what}: {cause.message}", status_code=cause.status_code, metadata=metadata)
        self.iteration = iteration


class SagaError(PerdureTerminalError):
    """A rule of sagas was broken, for example an action before its compensation was registered."""

    code = "saga"


class StepFailed(PerdureTerminalError):
    """A step of a saga ended with a terminal error.

    Args:
        step: The step's name.
        cause: The error; its status and metadata are kept.
    """

    code = "step_failed"

    def __init__(self, step: str, cause: TerminalError) -> None:
        metadata = {**(cause.metadata or {}), "step": step}
        super().__init__(f"step '{step}' failed: {cause.message}", status_code=cause.status_code, metadata=metadata)
        self.step = step


class PerdureError(Exception):
    """Base of the errors that are not terminal: most are raised outside handlers, where nothing is retried."""


class UnreadableState(PerdureError):
    """State, or a workflow's promise, doesn't fit the type it's read as. Retried until a deploy or a repair helps."""


class ConfigurationError(PerdureError):
    """Settings or definitions that can't work; raised at start, before anything runs."""


class UnreadableValue(PerdureError):
    """A journal value cannot be opened: it is not encrypted, belongs to another place, or its key is not known here.

    Handlers that find one in the journal are retried: a process that lacks a key must wait for it instead of undoing
    work. Inputs and completions come from outside, and raise `RejectedValue`.

    Args:
        message: What cannot be opened, why, and what to do.
        lacks_key: The key is not known here.
    """

    def __init__(self, message: str, *, lacks_key: bool = False) -> None:
        super().__init__(message)
        self.lacks_key = lacks_key


class IdentityError(PerdureError):
    """A request to a service isn't signed by an engine that is known to it."""


class EngineError(PerdureError):
    """restate-server could not be found, started or asked.

    Args:
        message: What went wrong, and what to do about it.
        status_code: What the engine answered with, 0 when it did not answer.
    """

    def __init__(self, message: str, *, status_code: int = 0) -> None:
        super().__init__(message)
        self.status_code = status_code


class IngressError(PerdureError):
    """A call over the ingress failed.

    Args:
        message: What the ingress or the handler said.
        status_code: HTTP status, or 0 when no answer came.
        source: ``"invocation"`` when the handler's own error came back, ``"ingress"`` when the ingress refused or
            failed, None when no answer came.
        metadata: The terminal error's metadata, empty when there was none.
    """

    def __init__(
        self, message: str, *, status_code: int = 0, source: str | None = None, metadata: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status_code = status_code
        self.source = source
        self.metadata = metadata or {}

    @property
    def code(self) -> str | None:
        """The machine-readable code of the handler's terminal error, if it has one."""
        return self.metadata.get(CODE_KEY)


class NotReady(IngressError):
    """The invocation whose output was asked for has not ended. Attach to wait for it, or ask again."""
