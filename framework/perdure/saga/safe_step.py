"""Manual step that enforces the order: record the compensation, then run the action once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from perdure.errors import SagaError
from perdure.saga.compensations import BoundCompensation
from perdure.saga.recorder import Saga
from perdure.saga.schema import StepRecord

T = TypeVar("T")


class SafeStep:
    """Runs an action only after its compensation is recorded.

    Use it for an action that is neither a call nor a side effect; `Orchestration.step` does the same for those.

    Args:
        saga: The saga (``cp.saga``).
        name: The step's name.
    """

    def __init__(self, saga: Saga, name: str) -> None:
        self._saga = saga
        self._name = name
        self._record: StepRecord | None = None
        self._executed = False

    def with_compensation(self, compensation: BoundCompensation) -> SafeStep:
        """Record the step's compensation.

        Args:
            compensation: The compensation with its payload: ``cancel_flight.bind(CancelSeats(...))``.

        Raises:
            SagaError: The action ran already, or the payload does not fit.
        """
        if self._executed:
            raise SagaError(f"saga: cannot register compensation after action execution: {self._name}")
        self._record = self._saga.add(self._name, compensation, dedupe=True)
        return self

    async def execute(self, action: Callable[[], Awaitable[T]]) -> T:
        """Run the action.

        Args:
            action: Returns the awaitable of the action, such as a call or a run of the same context.

        Raises:
            SagaError: No compensation is recorded, or the action ran already.
        """
        if self._record is None:
            raise SagaError(f"saga: must register compensation before executing action: {self._name}")
        if self._executed:
            raise SagaError(f"saga: action already executed: {self._name}")
        self._executed = True
        self._saga.start(self._record)
        result = await action()
        self._saga.complete(self._record)
        return result
