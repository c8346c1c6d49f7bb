"""An enquiry with answers, and one without."""

from __future__ import annotations

import sys
from datetime import timedelta

from examples._session import Example, Session
from examples.s05_races.app import Enquiry, accept, make_offer, offers, suppliers


async def play(session: Session) -> None:
    """Run the example."""
    bicycle = session.key("bicycle")
    await session.ingress.send(make_offer, Enquiry(item="bicycle"), key=bicycle)
    await session.ingress.call(accept, "ada", key=bicycle)
    offer = await session.ingress.attach(make_offer, key=bicycle)
    session.print(f"bicycle: {offer.price}, estimated: {offer.estimated}, accepted by {offer.accepted_by}")

    enquiry = Enquiry(item="unicorn", patience=timedelta(milliseconds=50))
    offer = await session.ingress.call(make_offer, enquiry, key=session.key("unicorn"))
    session.print(f"unicorn: {offer.price}, estimated: {offer.estimated}, accepted by {offer.accepted_by}")


example = Example("examples.s05_races", play, (offers, suppliers))

if __name__ == "__main__":
    sys.exit(example.main())
