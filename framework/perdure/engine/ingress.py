"""Calling handlers from outside, over the engine's ingress. When a request is repeated: see `ingress_requests`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Self, TypeVar, overload

import httpx

from perdure._runtime.invocation_ids import check_signal_id
from perdure._runtime.places import Place, ValueCodec
from perdure._runtime.serdes import serde_for
from perdure.clients import NO_REQUEST
from perdure.engine.admin import AdminClient
from perdure.engine.ingress_requests import IngressRequests, check_header, path_of, path_of_invocation, read
from perdure.errors import ConfigurationError, IngressError, InvalidInput
from perdure.idempotency import check_idempotency_key
from perdure.security.callers import CALL_WAITS, CALLER_HEADER, CallTarget, sign_call
from perdure.security.signed_actions import ActorKey
from perdure.targets import Target, target_of

I = TypeVar("I")  # noqa: E741 - the input, as the SDK names it
O = TypeVar("O")  # noqa: E741 - the output


class IngressClient:
    """Calls, sends and signals over the ingress. Use it as an async context manager.

    Args:
        url: The ingress, for example ``http://127.0.0.1:8080``.
        auth_token: Sent as a bearer token, for an ingress behind a gateway. Let the gateway take it off: the engine
            hands every header on to the handler, and keeps it in its journal.
        timeout: How long one request may take; None waits as long as the handler does.
        max_attempts: Attempts of a request that is safe to repeat.
        admin_url: The engine's admin API, for `cancel`; the ingress itself can't cancel.
        codec: Seals inputs and opens outputs, for services that encrypt their journal
            (`perdure.security.codec_from_environment`): they refuse inputs in clear.
        actor_key: Signs each call and send, so that the handler knows its caller (`perdure.callers.caller`).
        http: A client to use instead of an own one; it is not closed.
    """

    def __init__(
        self,
        url: str,
        *,
        auth_token: str | None = None,
        timeout: timedelta | None = None,
        max_attempts: int = 5,
        admin_url: str | None = None,
        codec: ValueCodec | None = None,
        actor_key: ActorKey | None = None,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        headers = {"authorization": f"Bearer {auth_token}"} if auth_token else {}
        self._requests = IngressRequests(url, headers=headers, timeout=timeout, max_attempts=max_attempts, http=http)
        self._admin_url = admin_url
        self._codec = codec
        self._actor_key = actor_key

    @property
    def url(self) -> str:
        """The ingress's address."""
        return self._requests.url

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._requests.close()

    @overload
    async def call(
        self,
        handler: Target[I, O] | Callable[[Any, I], Awaitable[O]],
        request: I = NO_REQUEST,
        *,
        key: str | None = None,
        idempotency_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: timedelta | None = None,
    ) -> O: ...
    @overload
    async def call(
        self,
        handler: Callable[[Any], Awaitable[O]],
        *,
        key: str | None = None,
        idempotency_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: timedelta | None = None,
    ) -> O: ...
    async def call(
        self,
        handler: Any,
        request: Any = NO_REQUEST,
        *,
        key: str | None = None,
        idempotency_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: timedelta | None = None,
    ) -> Any:
        """Call a handler and wait for its response.

        Args:
            handler: A target, or the handler's function.
            request: The request.
            key: The key of a virtual object or workflow.
            idempotency_key: Makes the call safe to repeat.
            headers: Sent along, for the handler to read.
            timeout: How long one request may take; the client's own timeout by default.

        Raises:
            IngressError: The handler ended with a terminal error, or the ingress could not serve the request.
            InvalidInput: The idempotency key is empty, or it or a header can't be sent as one.
        """
        target = target_of(handler)
        response = await self._post(
            path_of(target, key),
            target,
            key,
            request,
            idempotency_key=idempotency_key,
            headers=headers,
            timeout=timeout,
        )
        return read(target, response, self._codec, key=key or "")

    @overload
    async def send(
        self,
        handler: Target[I, Any] | Callable[[Any, I], Awaitable[Any]],
        request: I = NO_REQUEST,
        *,
        key: str | None = None,
        idempotency_key: str | None = None,
        delay: timedelta | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> str: ...
    @overload
    async def send(
        self,
        handler: Callable[[Any], Awaitable[Any]],
        *,
        key: str | None = None,
        idempotency_key: str | None = None,
        delay: timedelta | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> str: ...
    async def send(
        self,
        handler: Any,
        request: Any = NO_REQUEST,
        *,
        key: str | None = None,
        idempotency_key: str | None = None,
        delay: timedelta | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> str:
        """Start a handler and do not wait for it.

        Args:
            handler: A target, or the handler's function.
            request: The request.
            key: The key of a virtual object or workflow.
            idempotency_key: Sends with the same key start one invocation.
            delay: Start it this much later; durable. Nothing or less, as of a moment that has passed, means now.
            headers: Sent along, for the handler to read.

        Returns:
            The invocation's id.

        Raises:
            IngressError: The ingress could not take the request.
            InvalidInput: The idempotency key is empty, or it or a header can't be sent as one.
        """
        return await self._send(handler, request, key, delay, headers, idempotency_key=idempotency_key)

    @overload
    async def submit(
        self,
        handler: Target[I, Any] | Callable[[Any, I], Awaitable[Any]],
        request: I = NO_REQUEST,
        *,
        key: str,
        delay: timedelta | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> str: ...
    @overload
    async def submit(
        self,
        handler: Callable[[Any], Awaitable[Any]],
        *,
        key: str,
        delay: timedelta | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> str: ...
    async def submit(
        self,
        handler: Any,
        request: Any = NO_REQUEST,
        *,
        key: str,
        delay: timedelta | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> str:
        """Start a workflow, once for each key, and do not wait for it.

        Unlike `send`, this is repeated when no answer came: the engine starts a workflow once for each key, and names
        the invocation that is there already. So it tells nothing about who started it, or with which request.

        Args:
            handler: The workflow's main handler.
            request: The request.
            key: The workflow's key.
            delay: Start it this much later; durable.
            headers: Sent along, for the handler to read.

        Returns:
            The id of the workflow's invocation.

        Raises:
            IngressError: The ingress could not take the request.
            InvalidInput: A header can't be sent as one.
        """
        return await self._send(handler, request, key, delay, headers, repeatable=True)

    @overload
    async def attach(
        self, handler: Target[Any, O] | Callable[..., Awaitable[O]], *, key: str, timeout: timedelta | None = None
    ) -> O: ...
    @overload
    async def attach(
        self,
        handler: Target[Any, O] | Callable[..., Awaitable[O]],
        *,
        idempotency_key: str,
        key: str | None = None,
        timeout: timedelta | None = None,
    ) -> O: ...
    @overload
    async def attach(
        self,
        handler: Target[Any, O] | Callable[..., Awaitable[O]],
        *,
        invocation_id: str,
        timeout: timedelta | None = None,
    ) -> O: ...
    async def attach(
        self,
        handler: Any,
        *,
        key: str | None = None,
        idempotency_key: str | None = None,
        invocation_id: str | None = None,
        timeout: timedelta | None = None,
    ) -> Any:
        """Wait for the result of an invocation that was started before.

        It is named by one of: its id, the idempotency key that it was started with, or a workflow's key.

        Args:
            handler: The handler; of a workflow, the main one.
            key: The key of a workflow; with an idempotency key, that of a virtual object.
            idempotency_key: The key that the handler was called or sent with.
            invocation_id: What `send` or `submit` returned.
            timeout: How long one request may take; the client's own timeout by default.

        Raises:
            IngressError: It ended with a terminal error (its status), or there is no such invocation (404).
            InvalidInput: The idempotency key can't be asked for: the ingress compares it as it stands in the path.
        """
        target = target_of(handler)
        path = path_of_invocation(target, key, idempotency_key, invocation_id) + "/attach"
        response = await self._requests.send("GET", path, repeatable=True, timeout=timeout)
        return read(target, response, self._codec, key=key, invocation_id=invocation_id)

    @overload
    async def output(self, handler: Target[Any, O] | Callable[..., Awaitable[O]], *, key: str) -> O: ...
    @overload
    async def output(
        self, handler: Target[Any, O] | Callable[..., Awaitable[O]], *, idempotency_key: str, key: str | None = None
    ) -> O: ...
    @overload
    async def output(self, handler: Target[Any, O] | Callable[..., Awaitable[O]], *, invocation_id: str) -> O: ...
    async def output(
        self,
        handler: Any,
        *,
        key: str | None = None,
        idempotency_key: str | None = None,
        invocation_id: str | None = None,
    ) -> Any:
        """Return the result of an invocation without waiting for it.

        Args:
            handler: The handler; of a workflow, the main one.
            key: The key of a workflow; with an idempotency key, that of a virtual object.
            idempotency_key: The key that the handler was called or sent with.
            invocation_id: What `send` or `submit` returned.

        Raises:
            NotReady: It has not ended.
            IngressError: It ended with a terminal error (its status), or there is no such invocation (404).
            InvalidInput: The idempotency key can't be asked for: the ingress compares it as it stands in the path.
        """
        target = target_of(handler)
        path = path_of_invocation(target, key, idempotency_key, invocation_id) + "/output"
        response = await self._requests.send("GET", path, repeatable=True)
        return read(target, response, self._codec, key=key, invocation_id=invocation_id)

    async def cancel(self, invocation_id: str) -> None:
        """Cancel an invocation, with all that it calls. It gets to compensate, so this does not wait for its end.

        The ingress has no such thing, so the engine's admin API is asked.

        Args:
            invocation_id: What `send` or `submit` returned.

        Raises:
            ConfigurationError: The client was made without ``admin_url``.
            EngineError: There is no such invocation, or it has ended.
        """
        if self._admin_url is None:
            raise ConfigurationError(
                "the ingress can't cancel an invocation: make the client with IngressClient(url, admin_url=…), "
                "or use AdminClient.act"
            )
        async with AdminClient(self._admin_url) as admin:
            await admin.act(invocation_id, "cancel")

    async def resolve_awakeable(self, id_: str, value: Any, type_: type[Any] | None = None) -> None:
        """Answer an external signal.

        Args:
            id_: The signal's id.
            value: The answer.
            type_: The answer's type; the value's own class by default.

        Raises:
            InvalidInput: No signal has such an id.
        """
        body = serde_for(type_ or type(value)).serialize(value)
        if self._codec is not None:
            body = self._codec.seal(body, Place.awakeable(id_))
        path = f"/restate/awakeables/{check_signal_id(id_)}/resolve"
        await self._requests.send("POST", path, body=body, repeatable=True)

    async def reject_awakeable(self, id_: str, reason: str) -> None:
        """Fail an external signal: its waiter gets a terminal error with the reason, which is never encrypted.

        Args:
            id_: The signal's id.
            reason: The error's message.

        Raises:
            InvalidInput: No signal has such an id.
        """
        path = f"/restate/awakeables/{check_signal_id(id_)}/reject"
        await self._requests.send("POST", path, body=reason.encode(), content_type="text/plain", repeatable=True)

    async def _send(
        self,
        handler: Any,
        request: Any,
        key: str | None,
        delay: timedelta | None,
        headers: Mapping[str, str] | None,
        *,
        idempotency_key: str | None = None,
        repeatable: bool = False,
    ) -> str:
        target = target_of(handler)
        if self._actor_key is not None and delay is not None and delay > CALL_WAITS:
            raise InvalidInput(f"a signed call begins within {CALL_WAITS}, and this one is sent for later: {delay}")
        query = "" if delay is None else f"?delay={max(0, round(delay.total_seconds() * 1000))}ms"
        response = await self._post(
            f"{path_of(target, key)}/send{query}",
            target,
            key,
            request,
            idempotency_key=idempotency_key,
            headers=headers,
            repeatable=repeatable,
        )
        try:
            return str(response.json()["invocationId"])
        except (ValueError, KeyError, TypeError) as error:
            message = f"{target}: the answer to a send holds no invocation id: {response.text[:200]!r}"
            raise IngressError(message, status_code=response.status_code) from error

    async def _post(
        self,
        path: str,
        target: Target[Any, Any],
        key: str | None,
        request: Any,
        *,
        idempotency_key: str | None,
        headers: Mapping[str, str] | None,
        timeout: timedelta | None = None,
        repeatable: bool = False,
    ) -> httpx.Response:
        own = {name: check_header(value, f"header '{name}'") for name, value in (headers or {}).items()}
        if idempotency_key is not None:
            own["idempotency-key"] = check_header(check_idempotency_key(idempotency_key), "idempotency key")
        # The ingress refuses an empty body of a handler with input, also where the input may be None.
        body = None if target.input is type(None) else serde_for(target.input).serialize(request) or b"null"
        if self._actor_key is not None:
            called = CallTarget(service=target.service, handler=target.handler, key=key or "")
            own[CALLER_HEADER] = sign_call(self._actor_key, called, body or b"", at=datetime.now(UTC))
        if self._codec is not None:
            body = self._codec.seal(body or b"", Place.input(target.service, key, target.handler))
        return await self._requests.send(
            "POST",
            path,
            body=body,
            headers=own,
            timeout=timeout,
            repeatable=repeatable or idempotency_key is not None,
        )
