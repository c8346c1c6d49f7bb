"""`perdure completion`: completion of commands and options in a shell."""

from __future__ import annotations

from typing import Annotated, Literal

import typer
from pydantic import BaseModel
from typer._completion_shared import get_completion_script, install  # Typer has no public call

from perdure.cli.options import JsonOption, print_answer
from perdure.terminal import console, multiline_text

Shell = Literal["bash", "zsh", "fish"]


class CompletionScript(BaseModel):
    """Completion of a shell.

    Args:
        shell: The shell.
        script: The script.
        file: The file that loads it; None if it is only printed.
    """

    shell: Shell
    script: str
    file: str | None = None


def completion(
    shell: Annotated[Shell, typer.Argument(help="The shell.", show_default=False)],
    *,
    install_script: Annotated[bool, typer.Option("--install", help="Install it for your user.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Print or install the completion of a shell.

    To try it in bash: source <(perdure completion bash)
    """
    script = get_completion_script(prog_name="perdure", complete_var="_PERDURE_COMPLETE", shell=shell)
    if not install_script:
        if as_json:
            console.print_model(CompletionScript(shell=shell, script=script))
        else:
            console.print(multiline_text(script), soft_wrap=True)
        return
    _, file = install(shell=shell, prog_name="perdure", complete_var="_PERDURE_COMPLETE")
    answer = CompletionScript(shell=shell, script=script, file=str(file))
    print_answer(answer, as_json, f"Completion installed in {file}. Start a new {shell} to use it.")
