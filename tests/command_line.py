"""Runs `perdure` in the process of the tests, since a process of its own spends a second of CPU on imports."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from typing import Final
from unittest.mock import patch

from perdure.cli.main import app
from perdure.terminal import run_command_line

_ONE_COMMAND: Final = threading.Lock()  # output and environment belong to the whole process


def run_perdure(*words: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a command as the script `perdure` does. Blocks; a test with an event loop runs it in a thread.

    Args:
        words: The arguments.
        settings: Environment variables, in addition to those of the process.
    """
    out, err = io.StringIO(), io.StringIO()
    with _ONE_COMMAND, redirect_stdout(out), redirect_stderr(err), patch.dict(os.environ, settings):
        hook = sys.excepthook
        try:
            run_command_line("perdure", partial(app, words, prog_name="perdure"), words)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            sys.excepthook = hook
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())
