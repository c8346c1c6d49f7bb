"""Setting and steering schedules, from a handler or over the ingress."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict, TypeVar, Unpack, overload

import restate
from pydantic import ValidationError

from perdure._runtime import sdk
from perdure._runtime.serdes import invalid_input, serde_for
from perdure.clients import NO_REQUEST, ObjectClient
from perdure.engine.ingress import IngressClient
from perdure.errors import ConfigurationError
from perdure.schedules.messages import (
    INDEX_KEY,
    ScheduleAction,
    ScheduleActionRequest,
    ScheduleListRequest,
    ScheduleOrder,
    SchedulePage,
    ScheduleRequest,
    ScheduleStatus,
    action_target,
    list_target,
    order_target,
    set_target,
    status_target,
)
from perdure.schedules.recurrence import CatchUp, Overlap, ScheduledTarget
from perdure.schedules.signatures import sign_action, sign_setting
from perdure.security.signed_actions import ActorKey
from perdure.targets import Target, target_of

I = TypeVar("I")  # noqa: E741 - the input, as the SDK names it
O = TypeVar("O")  # noqa: E741 - the output


class ScheduleTiming(TypedDict, total=False):
    """When a schedule fires, and what becomes of what it can't do; see `ScheduleSpec`, which has the defaults."""

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


class ScheduleClient:
    """Sets and steers schedules.

    Args:
        via: The context of a handler, or an `IngressClient`.
        actor: Who acts, for the audit log; from a handler, the handler itself by default, with a key, whose it is.
        key: Over the ingress, the key of an operator, which acts are signed with. A handler needs none: what comes
            from inside the engine is taken as it is.

    Raises:
        ConfigurationError: Over the ingress, neither an actor nor a key is given; or a handler gives a key.
    """

    def __init__(
        self, via: restate.Context | IngressClient, *, actor: str | None = None, key: ActorKey | None = None
    ) -> None:
        if not isinstance(via, IngressClient):
            if key is not None:
                raise ConfigurationError("ScheduleClient(ctx, key=...): a handler signs nothing; leave the key away")
            actor = actor or str(sdk.handler_info(via))
        elif key is not None:
            actor = key.actor
        if actor is None:
            raise ConfigurationError(
                "ScheduleClient(ingress, actor=...): name who acts, for the audit log, or give a key"
            )
        self._via = via
        self._actor = actor
        self._key = key

    @overload
    async def set(
        self,
        name: str,
        *,
        target: Target[I, Any] | Callable[[Any, I], Awaitable[Any]],
        request: I = NO_REQUEST,
        key: str | None = None,
        reason: str = "",
        **timing: Unpack[ScheduleTiming],
    ) -> ScheduleStatus: ...
    @overload
    async def set(
        self,
        name: str,
        *,
        target: Callable[[Any], Awaitable[Any]],
        key: str | None = None,
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
        """Create a schedule, or replace the one of this name.

        Setting again what is there changes nothing, so a service may do it whenever it starts. A paused schedule stays
        paused, and one whose times stay the same keeps its next firing. See `ScheduleSpec` for what each setting means.

        Args:
            name: The schedule's name.
            target: The handler to start: a target, or the handler's function.
            request: What it is given at each run.
            key: The key, when the handler belongs to a virtual object or workflow; ``{planned}`` and ``{date}`` in it
                are filled in.
            reason: Why, for the audit log.
            timing: ``cron`` with its ``timezone``, or ``every``; ``catch_up``, ``catch_up_limit``, ``tolerance``,
                ``overlap``, ``start``, ``end``, ``description``.

        Raises:
            InvalidInput: A setting that makes no sense.
            ConfigurationError: The target is no handler.
            TerminalError: From a handler: the target may not be scheduled.
            IngressError: Over the ingress: the same.
        """
        found = target_of(target)
        body = serde_for(found.input).serialize(request)
        try:
            wanted = ScheduleRequest(
                target=ScheduledTarget(service=found.service, handler=found.handler, key=key),
                payload=json.loads(body) if body else None,
                actor=self._actor,
                reason=reason,
                **timing,
            )
        except ValidationError as error:
            raise invalid_input(error) from error
        if not isinstance(self._via, IngressClient):
            order = ScheduleOrder(act=ScheduleAction.SET, actor=wanted.actor, reason=reason, spec=wanted.spec)
            return await self._ask(order_target, order, name)
        if self._key is not None:
            proof = sign_setting(self._key, name, wanted.spec, reason=reason, at=_now())
            wanted = wanted.model_copy(update={"proof": proof})
        return await self._ask(set_target, wanted, name)

    async def pause(self, name: str, *, reason: str = "") -> ScheduleStatus:
        """Let a schedule fire no more until it is resumed.

        Args:
            name: The schedule.
            reason: Why, for the audit log.
        """
        return await self._act(ScheduleAction.PAUSE, name, reason)

    async def resume(self, name: str, *, reason: str = "") -> ScheduleStatus:
        """Let a paused schedule fire again; one that is not paused begins anew, see `Schedules`.

        Args:
            name: The schedule.
            reason: Why, for the audit log.
        """
        return await self._act(ScheduleAction.RESUME, name, reason)

    async def trigger(self, name: str, *, reason: str = "") -> ScheduleStatus:
        """Start a run now.

        Args:
            name: The schedule.
            reason: Why, for the audit log.
        """
        return await self._act(ScheduleAction.TRIGGER, name, reason)

    async def remove(self, name: str, *, reason: str = "") -> ScheduleStatus:
        """Remove a schedule.

        Args:
            name: The schedule.
            reason: Why, for the audit log.

        Returns:
            The schedule as it was.
        """
        return await self._act(ScheduleAction.REMOVE, name, reason)

    async def status(self, name: str) -> ScheduleStatus:
        """Show one schedule.

        Args:
            name: The schedule.
        """
        return await self._ask(status_target, None, name)

    async def list(self, *, page: int = 1, page_size: int = 50) -> SchedulePage:
        """List schedules, in the order of their names.

        Args:
            page: 1 for the first page.
            page_size: How many a page.
        """
        return await self._ask(list_target, ScheduleListRequest(page=page, page_size=page_size), INDEX_KEY)

    async def _act(self, act: ScheduleAction, name: str, reason: str) -> ScheduleStatus:
        actor, proof = self._actor, None
        if not isinstance(self._via, IngressClient):
            return await self._ask(order_target, ScheduleOrder(act=act, actor=actor, reason=reason), name)
        if self._key is not None:
            proof = sign_action(self._key, act, await self.status(name), reason=reason, at=_now())
        return await self._ask(action_target(act), ScheduleActionRequest(actor=actor, reason=reason, proof=proof), name)

    async def _ask(self, target: Target[I, O], request: I, key: str) -> O:
        if isinstance(self._via, IngressClient):
            return await self._via.call(target, request, key=key)
        return await ObjectClient(self._via, target, key).call(request)


def _now() -> datetime:
    return datetime.now(UTC)
