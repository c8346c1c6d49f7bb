"""`make run` in a project of `perdure new`: the services start, take an order, and reload an edited handler.

`.ci/dist` runs it in a project that has the built wheel in an environment of its own:

    python -m tests.system.new_project FOLDER
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx

from tests.port_offsets import free_offset
from tests.support import until

ORDER = {"customer": "ada", "item": "book", "price": 50, "city": "Oslo"}


def check(project: Path) -> None:
    """Run the project, and raise `AssertionError` if it behaves otherwise.

    Args:
        project: The project's folder, whose environment is installed.
    """
    make = shutil.which("make")
    assert make is not None, "make is not installed"
    offset = free_offset()
    log = project.with_name("run.log")
    handlers = project / "shop" / "orders.py"
    code = handlers.read_text()
    with log.open("wb") as out:
        run = subprocess.Popen(
            [make, "run"],
            cwd=project,
            env={**os.environ, "PERDURE_PORT_OFFSET": str(offset)},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )

    def printed(text: str) -> Callable[[], bool]:
        def found() -> bool:
            assert run.poll() is None, f"make run ended before it printed '{text}':\n{log.read_text()}"
            return text in log.read_text()

        return found

    def place(number: str) -> object:
        url = f"http://127.0.0.1:{8080 + offset}/Orders/{number}/run"
        return httpx.post(url, json=ORDER, timeout=60, trust_env=False).json()

    try:
        until(printed("the project is up"), "project", within=180)
        answer = place("first")
        assert answer == "order first is on its way to Oslo", answer
        handlers.write_text(code.replace("is on its way to", "travels to"))
        until(printed("orders reloaded in "), "reload", within=60)
        answer = place("second")
        assert answer == "order second travels to Oslo", answer
    finally:
        os.killpg(run.pid, signal.SIGINT)
        run.wait(60)
        handlers.write_text(code)
    assert log.read_text().count("stopped\n") == 1, log.read_text()


if __name__ == "__main__":
    check(Path(sys.argv[1]))
