"""`perdure completion`: completion of commands and options in a shell.

It imports no client of the engine, since shells run it at their start.
"""

from __future__ import annotations

from typing import Annotated, Literal

import typer
from pydantic import BaseModel
from typer._completion_shared import get_completion_script, install  # Typer has no public call

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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print or install the completion of a shell.

    To try it in bash: source <(perdure completion bash)
    """
    program = {"prog_name": "perdure", "complete_var": "_PERDURE_COMPLETE", "shell": shell}
    answer = CompletionScript.model_validate({"shell": shell, "script": get_completion_script(**program)})
    if install_script:
        answer.file = str(install(**program)[1])
    if as_json:
        console.print_model(answer)
    elif answer.file is None:
        console.print(multiline_text(answer.script), soft_wrap=True)
    else:
        console.say(f"Completion installed in {answer.file}. Start a new {shell} to use it.")
