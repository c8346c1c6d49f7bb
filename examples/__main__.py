"""Run all examples on one engine: ``python -m examples``, or ``make examples``."""

from __future__ import annotations

import asyncio
import sys
import time
import traceback
from difflib import ndiff

from examples._session import ENGINE, Example, all_examples, silence_logs
from perdure.testing import Mode, Restate, RestateServer


def main() -> int:
    """Run the examples; return 0 if each output matches its README."""
    silence_logs()
    examples = all_examples()
    with RestateServer(install_dir=ENGINE) as server:
        results = [_play(server, example) for example in examples]
    print(f"{sum(results)} of {len(examples)} examples match their README")
    return 0 if all(results) else 1


def _play(server: RestateServer, example: Example) -> bool:
    output: list[str] = []
    started = time.monotonic()
    problem = ""
    try:
        asyncio.run(example.play_on(Restate(server, Mode.HTTP2), output.append))
    except Exception:  # noqa: BLE001 - the other examples run anyway
        problem = traceback.format_exc()
    else:
        if output != example.printed:
            problem = "\n".join(ndiff(example.printed, output))
    verdict = "failed" if problem else "ok"
    print(f"{verdict:6}  {time.monotonic() - started:4.1f} s  {example.title}", flush=True)
    if problem:
        print(problem, file=sys.stderr)
    return not problem


if __name__ == "__main__":
    sys.exit(main())
