"""One enquiry that everybody answers, and one that nobody answers."""

from __future__ import annotations

import sys
from datetime import timedelta

from examples._stage import Example, Stage
from examples.s05_races.app import Enquiry, accept, make_offer, offers, suppliers


async def play(stage: Stage) -> None:
    """Play the example."""
    bicycle = stage.key("bicycle")
    await stage.ingress.send(make_offer, Enquiry(item="bicycle"), key=bicycle)
    await stage.ingress.call(accept, "ada", key=bicycle)
    offer = await stage.ingress.attach(make_offer, key=bicycle)
    stage.say(f"bicycle: {offer.price}, estimated: {offer.estimated}, accepted by {offer.accepted_by}")

    enquiry = Enquiry(item="unicorn", patience=timedelta(milliseconds=50))
    offer = await stage.ingress.call(make_offer, enquiry, key=stage.key("unicorn"))
    stage.say(f"unicorn: {offer.price}, estimated: {offer.estimated}, accepted by {offer.accepted_by}")


example = Example("examples.s05_races", play, (offers, suppliers))

if __name__ == "__main__":
    sys.exit(example.main())
