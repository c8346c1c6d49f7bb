"""Play all examples on one engine, a line for each: ``python -m examples``, which is ``make examples``."""

from __future__ import annotations

import asyncio
import sys
import time
import traceback
from difflib import ndiff

from examples._stage import ENGINE, Example, all_examples, quietly
from perdure.testing import Mode, Restate, RestateServer


def main() -> int:
    """Play them; return 0 when each did what its README says."""
    quietly()
    examples = all_examples()
    with RestateServer(install_dir=ENGINE) as server:
        went_well = [_play(server, example) for example in examples]
    print(f"{sum(went_well)} of {len(examples)} examples did what their README says")
    return 0 if all(went_well) else 1


def _play(server: RestateServer, example: Example) -> bool:
    said: list[str] = []
    begun = time.monotonic()
    trouble = ""
    try:
        asyncio.run(example.play_on(Restate(server, Mode.HTTP2), said.append))
    except Exception:  # noqa: BLE001 - the others are played all the same
        trouble = traceback.format_exc()
    else:
        if said != example.printed:
            trouble = "\n".join(ndiff(example.printed, said))
    verdict = "failed" if trouble else "ok"
    print(f"{verdict:6}  {time.monotonic() - begun:4.1f} s  {example.title}", flush=True)
    if trouble:
        print(trouble, file=sys.stderr)
    return not trouble


if __name__ == "__main__":
    sys.exit(main())
