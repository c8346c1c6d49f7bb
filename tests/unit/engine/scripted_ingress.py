"""Fake ingress with scripted responses that records requests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
from pydantic import BaseModel

from perdure import IngressClient, Target

URL = "http://ingress.test:8080"


class Order(BaseModel):
    id: str


class Receipt(BaseModel):
    text: str


book = Target("Trips", "run", Order, Receipt)


ping = Target("Trips", "ping", None, None)


Reaction = httpx.Response | Exception | Callable[[httpx.Request], httpx.Response]


class Ingress:
    """Returns the scripted responses in order and records the requests."""

    def __init__(self, *reactions: Reaction) -> None:
        self.requests: list[httpx.Request] = []
        self._reactions = list(reactions)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        reaction = self._reactions.pop(0) if len(self._reactions) > 1 else self._reactions[0]
        if isinstance(reaction, Exception):
            raise reaction
        return reaction if isinstance(reaction, httpx.Response) else reaction(request)

    def client(self, **options: Any) -> IngressClient:
        http = httpx.AsyncClient(transport=httpx.MockTransport(self))
        return IngressClient(URL, http=http, **{"max_attempts": 3, **options})


OK = httpx.Response(200, json={"text": "booked"})


SENT = httpx.Response(202, json={"invocationId": "inv_1", "status": "Accepted"})


def answer(status: int, source: str | None = None, **body: Any) -> httpx.Response:
    headers = {} if source is None else {"x-restate-error-source": source}
    return httpx.Response(status, json={"message": "no", **body}, headers=headers)
