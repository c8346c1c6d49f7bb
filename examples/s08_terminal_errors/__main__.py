"""Withdraw a covered amount, a higher amount, from an unknown account, and an invalid amount."""

from __future__ import annotations

import sys

import httpx

from examples._session import Example, Session
from examples.s08_terminal_errors.app import Withdrawal, accounts, buy, requests, shop


async def play(session: Session) -> None:
    """Run the example."""
    ada, bob = session.key("ada"), session.key("bob")
    answer = await session.ingress.call(buy, Withdrawal(account=ada, amount=20))
    session.print(f"ada: {answer}, after {requests[ada]} requests to the bank")
    answer = await session.ingress.call(buy, Withdrawal(account=bob, amount=70))
    session.print(f"bob: {answer} (asked the bank {requests[bob]} time)")

    nobody = session.key("nobody")
    error = await session.refusal(session.ingress.call(buy, Withdrawal(account=nobody, amount=20)))
    session.print(f"nobody: {error.status_code} {error.code}: {error.message} (asked the bank {requests[nobody]} time)")

    async with httpx.AsyncClient() as http:
        response = await http.post(f"{session.ingress.url}/CornerShop/buy", json={"account": "eve", "amount": -5})
    session.print(f"eve: {response.status_code} {response.json()['message']}")


example = Example("examples.s08_terminal_errors", play, (accounts, shop))

if __name__ == "__main__":
    sys.exit(example.main())
