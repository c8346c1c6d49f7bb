"""Client of the engine's ingress. `perdure.engine.ingress_requests` describes its retries."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Self, TypeVar, overload

import httpx

from perdure._runtime.invocation_ids import check_signal_id
from perdure._runtime.places import Place, ValueCodec
from perdure._runtime.serdes import serde_for, type_of
from perdure._runtime.time_scale import scaled
from perdure.clients import NO_REQUEST
from perdure.engine.admin import AdminClient
from perdure.engine.ingress_requests import (
    IngressRequests,
    check_header,
    handler_path,
    invocation_address,
    parse_output,
)
from perdure.engine.starting import REGISTRATION_TIMEOUT
from perdure.errors import ConfigurationError, IngressError, InvalidInput
from perdure.idempotency import check_idempotency_key
from perdure.security.callers import CALL_START_WINDOW, CALLER_HEADER, CallTarget, sign_call
from perdure.security.signed_actions import ActorKey
from perdure.targets import KeyedTarget, ServiceContext, Target, target_of

I = TypeVar("I")  # noqa: E741 - the input, as the SDK names it
O = TypeVar("O")  # noqa: E741 - the output


class IngressClient:
    """Client that calls handlers and completes signals over the ingress, used as an async context manager.

    Args:
        url: The URL, for example ``http://127.0.0.1:8080``.
        auth_token: A bearer token for a gateway in front of the ingress. The gateway should remove it, since the engine
            passes headers to handlers and stores them in its journal.
        timeout: The time limit of one request; None for no limit.
        max_attempts: The maximum number of attempts of a request that is safe to repeat.
        admin_url: The URL of the admin API, which `cancel` requires.
        codec: The codec for services that encrypt their journal, see `perdure.security.codec_from_environment`.
        actor_key: A key that signs calls and sends, so that `perdure.callers.caller` returns its owner in handlers.
        http: A HTTP client to use, which is not closed.
        max_retry_after: The longest wait before a retry that a ``Retry-After`` header may ask for.
        registration_timeout: How long a request is repeated while the ingress does not know the handler, as for a
            moment after the engine's start; zero for no repetition.

    Example:
        async with IngressClient("http://127.0.0.1:8080") as ingress:
            trip = await ingress.call(book_trip, request, key="trip-1")
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
        max_retry_after: timedelta = timedelta(minutes=1),
        registration_timeout: timedelta = REGISTRATION_TIMEOUT,
    ) -> None:
        headers = {"authorization": f"Bearer {auth_token}"} if auth_token else {}
        self._requests = IngressRequests(
            url,
            headers=headers,
            timeout=timeout,
            max_attempts=max_attempts,
            http=http,
            max_retry_after=max_retry_after,
            registration_timeout=registration_timeout,
        )
        self._admin_url = admin_url
        self._codec = codec
        self._actor_key = actor_key

    @property
    def url(self) -> str:
        """The URL of the ingress."""
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
        handler: Target[I, O] | Callable[[ServiceContext, I], Awaitable[O]],
        request: I = NO_REQUEST,
        *,
        key: None = None,
        idempotency_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: timedelta | None = None,
    ) -> O: ...
    @overload
    async def call(
        self,
        handler: KeyedTarget[I, O] | Callable[[Any, I], Awaitable[O]],
        request: I = NO_REQUEST,
        *,
        key: str,
        idempotency_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: timedelta | None = None,
    ) -> O: ...
    @overload
    async def call(
        self,
        handler: Callable[[ServiceContext], Awaitable[O]],
        *,
        key: None = None,
        idempotency_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: timedelta | None = None,
    ) -> O: ...
    @overload
    async def call(
        self,
        handler: Callable[[Any], Awaitable[O]],
        *,
        key: str,
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
            handler: A target or the handler's function.
            request: The request.
            key: The key of a virtual object or workflow.
            idempotency_key: The key that makes retries of the call safe.
            headers: Headers for the handler.
            timeout: The time limit of one request; that of the client by default.

        Raises:
            NotRegistered: The service or handler is not registered.
            AlreadyStarted: The handler is a workflow's main handler, and the key was used before.
            IngressError: The handler failed with a terminal error, or the ingress cannot serve the request. Its
                `acceptance` says whether the engine has accepted the call.
            InvalidInput: The key is missing, or the idempotency key or a header cannot be sent.
        """
        target = target_of(handler)
        response = await self._post(
            handler_path(target, key),
            target,
            key,
            request_body(target, request),
            idempotency_key=idempotency_key,
            headers=headers,
            timeout=timeout,
        )
        return parse_output(target, response, self._codec, key=key or "")

    @overload
    async def send(
        self,
        handler: Target[I, Any] | Callable[[ServiceContext, I], Awaitable[Any]],
        request: I = NO_REQUEST,
        *,
        key: None = None,
        idempotency_key: str | None = None,
        delay: timedelta | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> str: ...
    @overload
    async def send(
        self,
        handler: KeyedTarget[I, Any] | Callable[[Any, I], Awaitable[Any]],
        request: I = NO_REQUEST,
        *,
        key: str,
        idempotency_key: str | None = None,
        delay: timedelta | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> str: ...
    @overload
    async def send(
        self,
        handler: Callable[[ServiceContext], Awaitable[Any]],
        *,
        key: None = None,
        idempotency_key: str | None = None,
        delay: timedelta | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> str: ...
    @overload
    async def send(
        self,
        handler: Callable[[Any], Awaitable[Any]],
        *,
        key: str,
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
        """Start a handler without waiting for it.

        Args:
            handler: A target or the handler's function.
            request: The request.
            key: The key of a virtual object or workflow.
            idempotency_key: The key with which repeated sends start one invocation only.
            delay: The durable delay of the start. A negative delay means no delay.
            headers: Headers for the handler.

        Returns:
            The invocation ID.

        Raises:
            NotRegistered: The service or handler is not registered.
            IngressError: The ingress cannot accept the request, or its outcome is unknown, see `acceptance`.
            InvalidInput: The key is missing, or the idempotency key or a header cannot be sent.
        """
        target = target_of(handler)
        body = request_body(target, request)
        return await self._send(target, body, key, delay, headers, idempotency_key=idempotency_key)

    @overload
    async def submit(
        self,
        handler: KeyedTarget[I, Any] | Callable[[Any, I], Awaitable[Any]],
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
        """Start a workflow without waiting for it.

        Unlike `send`, it is retried without a response: the engine starts a workflow once per key and returns the
        existing invocation, even if another request started it.

        Args:
            handler: The workflow's main handler.
            request: The request.
            key: The workflow's key.
            delay: The durable delay of the start.
            headers: Headers for the handler.

        Returns:
            The invocation ID of the workflow.

        Raises:
            NotRegistered: The service or handler is not registered.
            IngressError: The ingress cannot accept the request, or its outcome is unknown, see `acceptance`.
            InvalidInput: A header cannot be sent.
        """
        target = target_of(handler)
        return await self._send(target, request_body(target, request), key, delay, headers, repeatable=True)

    async def send_json(
        self,
        target: Target[Any, Any, Any],
        body: str | None,
        *,
        key: str | None,
        idempotency_key: str | None,
        delay: timedelta | None,
        headers: Mapping[str, str] | None,
    ) -> str:
        """Start a handler with a request that is JSON already, and repeat the request without a response.

        Args:
            target: The handler. Its types are not used.
            body: The request; None for a handler without input.
            key: The key of a virtual object or workflow.
            idempotency_key: The key with which repeated sends start one invocation only. Only the start of a workflow
                needs none.
            delay: The durable delay of the start.
            headers: Headers for the handler.

        Returns:
            The invocation ID.

        Raises:
            IngressError: The ingress cannot accept the request.
            InvalidInput: The key is missing, or the idempotency key or a header cannot be sent.
        """
        data = None if body is None else body.encode()
        return await self._send(target, data, key, delay, headers, idempotency_key=idempotency_key, repeatable=True)

    @overload
    async def attach(
        self, handler: KeyedTarget[Any, O] | Callable[..., Awaitable[O]], *, key: str, timeout: timedelta | None = None
    ) -> O: ...
    @overload
    async def attach(
        self,
        handler: Target[Any, O, Any] | Callable[..., Awaitable[O]],
        *,
        idempotency_key: str,
        key: str | None = None,
        timeout: timedelta | None = None,
    ) -> O: ...
    @overload
    async def attach(
        self,
        handler: Target[Any, O, Any] | Callable[..., Awaitable[O]],
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
        """Wait for the result of an earlier invocation.

        Identify it by its ID, its idempotency key, or the key of a workflow.

        Args:
            handler: The handler; the main handler of a workflow.
            key: The key of a workflow; with an idempotency key, that of a virtual object.
            idempotency_key: The idempotency key of the call or send.
            invocation_id: The result of `send` or `submit`.
            timeout: The time limit of one request; that of the client by default.

        Raises:
            InvocationNotFound: There is no such invocation, or its retention has ended.
            IngressError: The invocation failed with a terminal error (its status), or the ingress did not respond.
            InvalidInput: The idempotency key is empty or too long, or the invocation is not identified.
        """
        target = target_of(handler)
        address = invocation_address(target, key, idempotency_key, invocation_id)
        response = await self._requests.attach(address, timeout=timeout)
        return parse_output(target, response, self._codec, key=key, invocation_id=invocation_id)

    @overload
    async def output(self, handler: KeyedTarget[Any, O] | Callable[..., Awaitable[O]], *, key: str) -> O: ...
    @overload
    async def output(
        self,
        handler: Target[Any, O, Any] | Callable[..., Awaitable[O]],
        *,
        idempotency_key: str,
        key: str | None = None,
    ) -> O: ...
    @overload
    async def output(self, handler: Target[Any, O, Any] | Callable[..., Awaitable[O]], *, invocation_id: str) -> O: ...
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
            handler: The handler; the main handler of a workflow.
            key: The key of a workflow; with an idempotency key, that of a virtual object.
            idempotency_key: The idempotency key of the call or send.
            invocation_id: The result of `send` or `submit`.

        Raises:
            NotReady: The invocation has not ended.
            InvocationNotFound: There is no such invocation, or its retention has ended.
            IngressError: The invocation failed with a terminal error (its status), or the ingress did not respond.
            InvalidInput: The idempotency key is empty or too long, or the invocation is not identified.
        """
        target = target_of(handler)
        address = invocation_address(target, key, idempotency_key, invocation_id)
        response = await self._requests.output(address)
        return parse_output(target, response, self._codec, key=key, invocation_id=invocation_id)

    async def cancel(self, invocation_id: str) -> None:
        """Request the cancellation of an invocation and its calls over the admin API.

        Args:
            invocation_id: The result of `send` or `submit`.

        Raises:
            ConfigurationError: The client has no ``admin_url``.
            InvocationNotFound: There is no such invocation.
            EngineError: The invocation has ended, or the admin API did not respond.
        """
        if self._admin_url is None:
            raise ConfigurationError(
                "cancelling requires the admin API: create the client with IngressClient(url, admin_url=…), or use "
                "AdminClient.control_invocation"
            )
        async with AdminClient(self._admin_url) as admin:
            await admin.control_invocation(invocation_id, "cancel")

    async def resolve_awakeable(self, id_: str, value: Any, type_: type[Any] | None = None) -> None:
        """Complete an external signal with a value.

        Args:
            id_: The signal's ID.
            value: The value.
            type_: The type of the value; its own by default.

        Raises:
            InvalidInput: The ID is malformed.
        """
        body = serde_for(type_ or type_of(value)).write(value, f"the answer to external signal '{id_}'")
        if self._codec is not None:
            body = self._codec.seal(body, Place.awakeable(id_))
        path = f"/restate/awakeables/{check_signal_id(id_)}/resolve"
        await self._requests.send("POST", path, body=body, repeatable=True)

    async def reject_awakeable(self, id_: str, reason: str) -> None:
        """Fail an external signal with a terminal error in the waiting handler.

        Args:
            id_: The signal's ID.
            reason: The message of the error, which is never encrypted.

        Raises:
            InvalidInput: The ID is malformed.
        """
        path = f"/restate/awakeables/{check_signal_id(id_)}/reject"
        await self._requests.send("POST", path, body=reason.encode(), content_type="text/plain", repeatable=True)

    async def _send(
        self,
        target: Target[Any, Any, Any],
        body: bytes | None,
        key: str | None,
        delay: timedelta | None,
        headers: Mapping[str, str] | None,
        *,
        idempotency_key: str | None = None,
        repeatable: bool = False,
    ) -> str:
        if self._actor_key is not None and delay is not None and delay > CALL_START_WINDOW:
            raise InvalidInput(f"a signed call must begin within {CALL_START_WINDOW}: the delay {delay} is too long")
        query = "" if delay is None else f"?delay={max(0, round(scaled(delay).total_seconds() * 1000))}ms"
        response = await self._post(
            handler_path(target, key, "send") + query,
            target,
            key,
            body,
            idempotency_key=idempotency_key,
            headers=headers,
            repeatable=repeatable,
        )
        try:
            return str(response.json()["invocationId"])
        except (ValueError, KeyError, TypeError) as error:
            message = f"{target}: the response to a send has no invocation ID: {response.text[:200]!r}"
            raise IngressError(message, status_code=response.status_code) from error

    async def _post(
        self,
        path: str,
        target: Target[Any, Any, Any],
        key: str | None,
        body: bytes | None,
        *,
        idempotency_key: str | None,
        headers: Mapping[str, str] | None,
        timeout: timedelta | None = None,
        repeatable: bool = False,
    ) -> httpx.Response:
        own = {name: check_header(value, f"header '{name}'") for name, value in (headers or {}).items()}
        if idempotency_key is not None:
            own["idempotency-key"] = check_header(check_idempotency_key(idempotency_key), "idempotency key")
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


def request_body(target: Target[Any, Any, Any], request: Any) -> bytes | None:
    """Return the body of a request; None for a handler without input."""
    if target.input is type(None):
        return None
    # The ingress refuses an empty body for a handler with input, even if the input may be None.
    return serde_for(target.input).write(request, f"the request of {target}") or b"null"
