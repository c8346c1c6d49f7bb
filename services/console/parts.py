"""The console's parts, put together once a process and found again by each route."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request

from services.console.badge import Badge
from services.console.engine import Engine
from services.console.people.api_keys import ApiKeys
from services.console.people.database import Database
from services.console.people.devices import Devices
from services.console.people.persons import Users
from services.console.people.sessions import Sessions
from services.console.people.signin import SignIn
from services.console.people.streams import Streams
from services.console.settings import ConsoleSettings
from services.console.signing import Signer


@dataclass(frozen=True)
class Parts:
    """What the routes work with.

    Args:
        settings: The settings.
        engine: The way to the engine.
        database: The console's database.
        persons: Who there is.
        sessions: Who is signed in.
        sign_in: Checks who wants to sign in.
        signer: Signs the acts of who is signed in.
        api_keys: Keys of programs, for the gateway.
        badge: How many alerts are open.
        devices: Browsers and addresses that people signed in from before.
        streams: The live pages that are open.
    """

    settings: ConsoleSettings
    engine: Engine
    database: Database
    persons: Users
    sessions: Sessions
    sign_in: SignIn
    signer: Signer
    api_keys: ApiKeys
    badge: Badge
    devices: Devices
    streams: Streams


def parts(request: Request) -> Parts:
    """Return the parts of the application that serves a request."""
    return cast("Parts", request.app.state.parts)


PartsOf = Annotated[Parts, Depends(parts)]


def _engine(found: PartsOf) -> Engine:
    return found.engine


EngineOf = Annotated[Engine, Depends(_engine)]
