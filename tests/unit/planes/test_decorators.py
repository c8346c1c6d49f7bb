"""Decorators of services: what was written wrong is refused where it was written, not by the first call."""

from __future__ import annotations

from typing import Any

import pytest
import restate as sdk

from perdure import ControlPlaneService, DataPlaneService
from perdure.errors import ConfigurationError


def services() -> tuple[ControlPlaneService, DataPlaneService[Any, Any]]:
    return ControlPlaneService("Trips"), DataPlaneService("Rooms")


@pytest.mark.parametrize(("service", "decorator"), [(0, "main"), (0, "handler"), (0, "compensation"), (1, "handler")])
def test_parentheses_that_were_forgotten_are_asked_for(service, decorator):
    async def book(ctx: sdk.Context, room: str) -> None:
        """Do nothing."""

    with pytest.raises(ConfigurationError, match=rf"book: write @….{decorator}\(\), with parentheses"):
        getattr(services()[service], decorator)(book)


def test_a_service_without_a_handler_is_not_served():
    _, rooms = services()
    with pytest.raises(ConfigurationError, match=r"Rooms has no handler to serve: decorate one with @service.handler"):
        rooms.definitions()
