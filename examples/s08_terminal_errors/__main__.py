"""Buy for an amount that is there, one that isn't, from an account that isn't, and for one that makes no sense."""

from __future__ import annotations

import sys

import httpx

from examples._stage import Example, Stage
from examples.s08_terminal_errors.app import Withdrawal, accounts, buy, requests, shop


async def play(stage: Stage) -> None:
    """Play the example."""
    ada, bob = stage.key("ada"), stage.key("bob")
    answer = await stage.ingress.call(buy, Withdrawal(account=ada, amount=20))
    stage.say(f"ada: {answer}, after {requests[ada]} requests to the bank")
    answer = await stage.ingress.call(buy, Withdrawal(account=bob, amount=70))
    stage.say(f"bob: {answer} (asked the bank {requests[bob]} time)")

    nobody = stage.key("nobody")
    error = await stage.refusal(stage.ingress.call(buy, Withdrawal(account=nobody, amount=20)))
    stage.say(f"nobody: {error.status_code} {error.code}: {error.message} (asked the bank {requests[nobody]} time)")

    async with httpx.AsyncClient() as http:
        response = await http.post(f"{stage.ingress.url}/CornerShop/buy", json={"account": "eve", "amount": -5})
    stage.say(f"eve: {response.status_code} {response.json()['message']}")


example = Example("examples.s08_terminal_errors", play, (accounts, shop))

if __name__ == "__main__":
    sys.exit(example.main())
