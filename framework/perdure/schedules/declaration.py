"""Schedules that are declared in the code of a service."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Iterator
from datetime import datetime, timedelta
from types import ModuleType
from typing import Any, TypedDict, TypeVar, Unpack, overload

from pydantic import ValidationError

from perdure._runtime.serdes import invalid_input, serde_for
from perdure.clients import NO_REQUEST
from perdure.errors import ConfigurationError
from perdure.schedules.recurrence import CatchUp, Overlap, ScheduledTarget, ScheduleSpec
from perdure.targets import KeyedTarget, ServiceContext, Target, check_key, target_of

I = TypeVar("I")  # noqa: E741 - the input, as the SDK names it


class ScheduleTiming(TypedDict, total=False):
    """Timing and policies of a schedule; see `ScheduleSpec` for the fields and defaults."""

    cron: str | None
    every: timedelta | None
    timezone: str
    catch_up: CatchUp
    catch_up_limit: int
    tolerance: timedelta
    overlap: Overlap
    start: datetime | None
    end: datetime | None
    description: str


class Schedule:
    """A schedule, declared at module level beside its handler and set by `apply_schedules` after each registration.

    Args:
        name: The schedule's name.
        target: The handler to start: a target, or the handler's function.
        request: The handler's request.
        key: The key of a virtual object or workflow; see `ScheduledTarget` for its placeholders.
        timing: The timing and policies, see `ScheduleSpec`.

    Raises:
        InvalidInput: A setting is invalid, or the key of a virtual object or workflow is missing or empty.
        ConfigurationError: The target is not a handler.

    Example:
        nightly = Schedule("nightly-report", build_report, ReportRequest(), cron="0 3 * * *", timezone="Europe/Vienna")
    """

    @overload
    def __init__(
        self,
        name: str,
        target: Target[I, Any] | Callable[[ServiceContext, I], Awaitable[Any]],
        request: I = NO_REQUEST,
        *,
        key: None = None,
        **timing: Unpack[ScheduleTiming],
    ) -> None: ...
    @overload
    def __init__(
        self,
        name: str,
        target: KeyedTarget[I, Any] | Callable[[Any, I], Awaitable[Any]],
        request: I = NO_REQUEST,
        *,
        key: str,
        **timing: Unpack[ScheduleTiming],
    ) -> None: ...
    @overload
    def __init__(
        self,
        name: str,
        target: Callable[[ServiceContext], Awaitable[Any]],
        *,
        key: None = None,
        **timing: Unpack[ScheduleTiming],
    ) -> None: ...
    @overload
    def __init__(
        self,
        name: str,
        target: Callable[[Any], Awaitable[Any]],
        *,
        key: str,
        **timing: Unpack[ScheduleTiming],
    ) -> None: ...
    def __init__(
        self,
        name: str,
        target: Any,
        request: Any = NO_REQUEST,
        *,
        key: str | None = None,
        **timing: Unpack[ScheduleTiming],
    ) -> None:
        resolved = target_of(target)
        check_key(resolved, key)
        body = serde_for(resolved.input).write(request, f"the payload of schedule '{name}'")
        self.name = name
        try:
            self.spec = ScheduleSpec(
                target=ScheduledTarget(service=resolved.service, handler=resolved.handler, key=key),
                payload=json.loads(body) if body else None,
                **timing,
            )
        except ValidationError as error:
            raise invalid_input(error) from error

    def __repr__(self) -> str:
        return f"Schedule({self.name!r}, {self.spec.target}, {self.spec.timing})"


def declared_schedules(sources: Iterable[Schedule | ModuleType]) -> list[Schedule]:
    """Return the schedules of modules, each once.

    Args:
        sources: Schedules, or modules with schedules at module level.

    Raises:
        ConfigurationError: Two schedules have the same name.
    """
    by_name: dict[str, Schedule] = {}
    for schedule in _schedules(sources):
        if by_name.setdefault(schedule.name, schedule) is not schedule:
            raise ConfigurationError(
                f"two schedules are named '{schedule.name}': {by_name[schedule.name]} and {schedule}; rename one"
            )
    return list(by_name.values())


def _schedules(sources: Iterable[Schedule | ModuleType]) -> Iterator[Schedule]:
    for source in sources:
        if isinstance(source, Schedule):
            yield source
        else:
            yield from (value for value in vars(source).values() if isinstance(value, Schedule))
