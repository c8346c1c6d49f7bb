"""Terminal output that escapes untrusted text.

In error messages, names and reasons, an escape sequence could clear the screen or forge a line, and Rich would
interpret brackets as markup. All commands print through `TerminalConsole`, which escapes text before layout.
"""

from __future__ import annotations

import io
import sys
import traceback
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from perdure._runtime.lazy import lazy_names
from perdure._runtime.plain_text import check_visible, shorten

if TYPE_CHECKING:
    from perdure._runtime.text_console import TerminalConsole, console, error_console, multiline_text

# Rich is loaded when a command prints, and not by a help text.
__getattr__, __dir__ = lazy_names(
    __name__, {"perdure._runtime.text_console": "TerminalConsole console error_console multiline_text"}
)

__all__ = ["TerminalConsole", "console", "error_console", "multiline_text", "run_command_line"]


def run_command_line(program: str, commands: Callable[[], Any], arguments: Sequence[str] | None = None) -> None:
    """Run a command line. An error is printed to standard error.

    The exit code is 0 after a success, 1 after an error or a finding that requires an action, and 2 after a wrong use:
    an unknown command, a missing or invalid option.

    Args:
        program: The program's name, for messages.
        commands: Runs the commands.
        arguments: Command-line arguments; by default those of the process.

    Raises:
        SystemExit: A command failed.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for terminals without UTF-8
    sys.excepthook = _print_traceback
    for argument in sys.argv[1:] if arguments is None else arguments:
        # Usage errors print arguments. JSON may contain line breaks and tabs, file names surrogates.
        try:
            check_visible(argument.encode("utf-8", "replace").decode(), allowed="\n\r\t\u200c\u200d\ufe0e\ufe0f")
        except ValueError as error:
            _errors().say(f"{program}: the argument '{argument[:200]}' {error}")
            sys.exit(2)
    try:
        commands()
    except Exception as error:
        explanation = _explanation(error)
        if explanation is None:
            raise
        _errors().print_lines(f"{program}: {explanation}")
        sys.exit(getattr(error, "exit_code", 1))


def _errors() -> TerminalConsole:
    from perdure._runtime.text_console import error_console  # noqa: PLC0415 - loads Rich

    return error_console


def _explanation(error: Exception) -> str | None:
    """Return the text of an error that the user can correct; None for a fault of the program."""
    # Imported here, since they load Restate's SDK, and a help text needs none.
    from pydantic import ValidationError  # noqa: PLC0415

    from perdure._runtime.serdes import invalid_input  # noqa: PLC0415
    from perdure.errors import PerdureError, TerminalError  # noqa: PLC0415

    if isinstance(error, ValidationError):
        return invalid_input(error).message
    if isinstance(error, UnicodeEncodeError):
        return f"'{shorten(error.object, 200)}' is not UTF-8; pass UTF-8 text, or set LC_ALL=C.UTF-8"
    return str(error) if isinstance(error, PerdureError | TerminalError | OSError) else None


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an unexpected error as Python does, escaped and indented."""
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    for entry in traceback.format_exception(kind, error, trace):
        _errors().print_lines(entry.rstrip("\n"))
