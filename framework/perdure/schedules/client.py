"""Client for schedules, in a handler or over the ingress."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime
from types import ModuleType
from typing import Any, TypeVar, Unpack, overload

import restate
from pydantic import ValidationError

from perdure._runtime import sdk
from perdure._runtime.serdes import invalid_input
from perdure.clients import NO_REQUEST, ObjectClient
from perdure.engine.ingress import IngressClient
from perdure.errors import ConfigurationError
from perdure.schedules.declaration import Schedule, ScheduleTiming, declared_schedules
from perdure.schedules.messages import (
    INDEX_KEY,
    ScheduleAction,
    ScheduleActionRequest,
    ScheduleCommand,
    ScheduleListRequest,
    SchedulePage,
    ScheduleRequest,
    ScheduleStatus,
    action_target,
    apply_target,
    list_target,
    set_target,
    status_target,
)
from perdure.schedules.signatures import sign_action, sign_setting
from perdure.security.signed_actions import ActorKey
from perdure.targets import KeyedTarget, ServiceContext, Target

I = TypeVar("I")  # noqa: E741 - the input, as the SDK names it
O = TypeVar("O")  # noqa: E741 - the output


class ScheduleClient:
    """Creates, changes and reads schedules.

    Args:
        via: The context of a handler, or an `IngressClient`.
        actor: The actor for the audit log; by default the owner of the key or, in a handler, the handler.
        key: Over the ingress, the key that signs the actions. Actions of handlers are not signed.

    Raises:
        ConfigurationError: Neither an actor nor a key is given over the ingress, or a key is given in a handler.
    """

    def __init__(
        self, via: restate.Context | IngressClient, *, actor: str | None = None, key: ActorKey | None = None
    ) -> None:
        if not isinstance(via, IngressClient):
            if key is not None:
                raise ConfigurationError("ScheduleClient(ctx, key=...): a handler signs no actions; omit the key")
            actor = actor or str(sdk.handler_info(via))
        elif key is not None:
            actor = key.actor
        if actor is None:
            raise ConfigurationError("ScheduleClient(ingress, ...): pass an actor for the audit log, or a key")
        self._via = via
        self._actor = actor
        self._key = key

    @overload
    async def set(
        self,
        name: str,
        *,
        target: Target[I, Any] | Callable[[ServiceContext, I], Awaitable[Any]],
        request: I = NO_REQUEST,
        key: None = None,
        reason: str = "",
        **timing: Unpack[ScheduleTiming],
    ) -> ScheduleStatus: ...
    @overload
    async def set(
        self,
        name: str,
        *,
        target: KeyedTarget[I, Any] | Callable[[Any, I], Awaitable[Any]],
        request: I = NO_REQUEST,
        key: str,
        reason: str = "",
        **timing: Unpack[ScheduleTiming],
    ) -> ScheduleStatus: ...
    @overload
    async def set(
        self,
        name: str,
        *,
        target: Callable[[ServiceContext], Awaitable[Any]],
        key: None = None,
        reason: str = "",
        **timing: Unpack[ScheduleTiming],
    ) -> ScheduleStatus: ...
    @overload
    async def set(
        self,
        name: str,
        *,
        target: Callable[[Any], Awaitable[Any]],
        key: str,
        reason: str = "",
        **timing: Unpack[ScheduleTiming],
    ) -> ScheduleStatus: ...
    async def set(
        self,
        name: str,
        *,
        target: Any,
        request: Any = NO_REQUEST,
        key: str | None = None,
        reason: str = "",
        **timing: Unpack[ScheduleTiming],
    ) -> ScheduleStatus:
        """Create or replace a schedule.

        Setting an equal schedule changes nothing, so a service may call this at every start. A paused schedule stays
        paused. A schedule with unchanged timing keeps its next firing.

        Args:
            name: The schedule's name.
            target: The handler to start: a target, or the handler's function.
            request: The handler's request.
            key: The key of a virtual object or workflow; see `ScheduledTarget` for its placeholders.
            reason: The reason, for the audit log.
            timing: The timing and policies, see `ScheduleSpec`.

        Raises:
            InvalidInput: A setting is invalid, or the key of a virtual object or workflow is missing or empty.
            ConfigurationError: The target is not a handler.
            TerminalError: In a handler: the target may not be scheduled.
            IngressError: Over the ingress: the request was refused.
        """
        return await self.apply(Schedule(name, target, request, key=key, **timing), reason=reason)

    async def apply(self, schedule: Schedule, *, reason: str = "") -> ScheduleStatus:
        """Create or replace a declared schedule; see `set`.

        Args:
            schedule: The schedule.
            reason: The reason, for the audit log.

        Raises:
            InvalidInput: The actor or the reason is invalid.
            TerminalError: In a handler: the target may not be scheduled.
            IngressError: Over the ingress: the request was refused.
        """
        name, spec = schedule.name, schedule.spec
        try:
            request = ScheduleRequest(**dict(spec), actor=self._actor, reason=reason)
        except ValidationError as error:
            raise invalid_input(error) from error
        if not isinstance(self._via, IngressClient):
            command = ScheduleCommand(action=ScheduleAction.SET, actor=request.actor, reason=reason, spec=spec)
            return await self._call(apply_target, command, name)
        if self._key is not None:
            signed_action = sign_setting(self._key, name, spec, reason=reason, at=_now())
            request = request.model_copy(update={"signed_action": signed_action})
        return await self._call(set_target, request, name)

    async def pause(self, name: str, *, reason: str = "") -> ScheduleStatus:
        """Stop the firings of a schedule until it is resumed; active runs continue.

        Args:
            name: The schedule.
            reason: Reason, for the audit log.
        """
        return await self._act(ScheduleAction.PAUSE, name, reason)

    async def resume(self, name: str, *, reason: str = "") -> ScheduleStatus:
        """Resume a paused schedule; on an active one, send its next firing again, after a kill.

        Args:
            name: The schedule.
            reason: Reason, for the audit log.
        """
        return await self._act(ScheduleAction.RESUME, name, reason)

    async def trigger(self, name: str, *, reason: str = "") -> ScheduleStatus:
        """Start a run now, even if the schedule is paused.

        Args:
            name: The schedule.
            reason: Reason, for the audit log.
        """
        return await self._act(ScheduleAction.TRIGGER, name, reason)

    async def remove(self, name: str, *, reason: str = "") -> ScheduleStatus:
        """Remove a schedule and return its last status.

        Args:
            name: The schedule.
            reason: Reason, for the audit log.
        """
        return await self._act(ScheduleAction.REMOVE, name, reason)

    async def status(self, name: str) -> ScheduleStatus:
        """Return the status of a schedule.

        Args:
            name: The schedule.
        """
        return await self._call(status_target, None, name)

    async def list(self, *, page: int = 1, page_size: int = 50) -> SchedulePage:
        """Return a page of schedules, sorted by name.

        Args:
            page: The page, from 1.
            page_size: Number of schedules per page.
        """
        return await self._call(list_target, ScheduleListRequest(page=page, page_size=page_size), INDEX_KEY)

    async def _act(self, action: ScheduleAction, name: str, reason: str) -> ScheduleStatus:
        actor, signed_action = self._actor, None
        if not isinstance(self._via, IngressClient):
            return await self._call(apply_target, ScheduleCommand(action=action, actor=actor, reason=reason), name)
        if self._key is not None:
            signed_action = sign_action(self._key, action, await self.status(name), reason=reason, at=_now())
        request = ScheduleActionRequest(actor=actor, reason=reason, signed_action=signed_action)
        return await self._call(action_target(action), request, name)

    async def _call(self, target: KeyedTarget[I, O], request: I, key: str) -> O:
        if isinstance(self._via, IngressClient):
            return await self._via.call(target, request, key=key)
        return await ObjectClient(self._via, target, key).call(request)


async def apply_schedules(
    sources: Iterable[Schedule | ModuleType],
    ingress: IngressClient,
    *,
    actor: str = "perdure",
    key: ActorKey | None = None,
) -> list[ScheduleStatus]:
    """Set the declared schedules; call it after the registration of their handlers.

    It changes nothing that is equal already. A schedule whose declaration was deleted stays until it is removed, since
    another deployment may declare it.

    Args:
        sources: Schedules, or modules with schedules at module level.
        ingress: The client of the engine.
        actor: The actor for the audit log.
        key: The key that signs the actions, where operator actions must be signed.

    Returns:
        The status of each schedule.

    Raises:
        ConfigurationError: Two schedules have the same name; none was set.
        IngressError: A request was refused, for example because its handler is not registered.

    Example:
        await apply_schedules([shop.orders], ingress)
    """
    client = ScheduleClient(ingress, actor=actor if key is None else None, key=key)
    return [await client.apply(schedule) for schedule in declared_schedules(sources)]


def _now() -> datetime:
    return datetime.now(UTC)
