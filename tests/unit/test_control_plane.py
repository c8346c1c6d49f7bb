"""Decorators and registration of services."""

from __future__ import annotations

from typing import Any

import pytest
import restate as sdk

from perdure import ControlPlaneService, DataPlaneService, Orchestration
from perdure.errors import ConfigurationError, SagaError
from perdure.saga.compensations import Compensations
from perdure.targets import target_of


@pytest.mark.parametrize("parentheses", [True, False])
@pytest.mark.parametrize("decorator", ["main", "handler"])
def test_decorator_works_without_parentheses(decorator: str, parentheses: bool) -> None:
    service = ControlPlaneService("Trips")
    decorate: Any = getattr(service, decorator)

    async def book(ctx: sdk.Context, room: str) -> None: ...

    assert (decorate()(book) if parentheses else decorate(book)) is book
    assert str(target_of(book)) == ("Trips/run" if decorator == "main" else "Trips/book")


@pytest.mark.parametrize("parentheses", [True, False])
async def test_compensation_binds_payload_and_stays_callable(parentheses: bool) -> None:
    service, cancelled = ControlPlaneService("Trips"), []
    decorate: Any = service.compensation() if parentheses else service.compensation

    @decorate
    async def cancel(ctx: sdk.Context, room: str) -> None:
        cancelled.append(room)

    bound = cancel.bind("12")
    assert (str(bound.handler), bound.payload) == ("TripsCompensations/cancel", "12")
    assert str(target_of(cancel)) == "TripsCompensations/cancel"
    await cancel(None, "13")
    assert cancelled == ["13"]


def test_compensation_takes_another_name() -> None:
    service = ControlPlaneService("Trips")

    @service.compensation("book-flight")
    async def cancel(ctx: sdk.Context, room: str) -> None: ...

    assert (cancel.name, cancel.handler.handler) == ("book-flight", "book_flight")


def test_unregistered_compensation_names_known_ones() -> None:
    compensations = Compensations("Trips")

    async def cancel(ctx: sdk.Context, room: str) -> None: ...

    compensations.register("cancel", cancel)
    with pytest.raises(ConfigurationError, match="'cancel' is registered already"):
        compensations.register("cancel", cancel)
    with pytest.raises(SagaError, match=r"missing compensation handler: undo; .*\(registered: cancel\)"):
        compensations.get("undo")


def test_compensation_without_payload_is_refused() -> None:
    async def cancel(ctx: sdk.Context) -> None: ...

    with pytest.raises(ConfigurationError, match="takes a context and the payload"):
        ControlPlaneService("Trips").compensation(cancel)  # type: ignore[call-overload]


def test_second_main_handler_is_refused() -> None:
    service = ControlPlaneService("Trips")

    async def book(cp: Orchestration) -> None: ...

    service.main(book)
    with pytest.raises(ConfigurationError, match="has a main handler already"):
        service.main(book)


def test_data_plane_handler_requires_parentheses() -> None:
    async def book(ctx: sdk.Context, room: str) -> None: ...

    with pytest.raises(ConfigurationError, match=r"book: write @….handler\(\), with parentheses"):
        DataPlaneService("Rooms").handler(book)  # type: ignore[arg-type]


def test_service_without_handlers_is_not_served() -> None:
    with pytest.raises(ConfigurationError, match=r"Rooms has no handler to serve: decorate one with @service.handler"):
        DataPlaneService("Rooms").definitions()
    with pytest.raises(ConfigurationError, match=r"Trips has no main handler: decorate one with @service.main"):
        ControlPlaneService("Trips").definitions()
