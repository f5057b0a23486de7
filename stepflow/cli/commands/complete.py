"""`stepflow completion`: the script with which a shell completes command lines."""

from typing import Annotated

import typer

from stepflow.cli import console
from stepflow.cli.completion import SHELLS, script


def print_script(
    shell: Annotated[
        str, typer.Argument(metavar="|".join(SHELLS), help="The shell.", autocompletion=lambda: list(SHELLS))
    ],
) -> None:
    """Print the script that completes commands in a shell.

    It completes commands, options, run ids, stored flows, component paths and plugins. Put the line for your shell
    into its startup file.

    \b
    Examples:
      eval "$(stepflow completion bash)"                                    # ~/.bashrc
      eval "$(stepflow completion zsh)"                                     # ~/.zshrc, behind compinit
      stepflow completion fish > ~/.config/fish/completions/stepflow.fish   # once
    """
    console.out(f"{script(shell)}\n")
