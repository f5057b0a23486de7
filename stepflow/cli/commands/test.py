"""`stepflow test`: run the test cases of flows and compare the results with the expected ones.

The work is done in `stepflow.cli.testing`.
"""

from pathlib import Path
from typing import Annotated

import typer

from stepflow.cli.options import ConfigOption, EnvFileOption


def run_tests(
    *,
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[PATH]...", help="Flow files, or folders with them. Default: here."),
    ] = None,
    config: ConfigOption = None,
    case: Annotated[
        list[str] | None, typer.Option("--case", metavar="NAME", help="Run only cases with this name (repeatable).")
    ] = None,
    update: Annotated[
        bool, typer.Option("--update", help="Write the actual results of failed cases into the flow files.")
    ] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Show the differences of results line by line.")] = False,
    max_concurrency: Annotated[int, typer.Option(min=1, help="Steps of a file in flight at once.")] = 10,
    env_file: EnvFileOption = None,  # noqa: ARG001  # handled by its callback, before any other option
) -> None:
    """Run the test cases of flows and compare the results.

    Only the members of the expected result are compared. The exit code is 1 when a case failed.

    \b
    Examples:
      stepflow test flows/
      stepflow test flow.yaml --case "two items" --diff
      stepflow test flow.yaml --update
    """
    from stepflow.cli.testing.cases import CaseOptions, test_paths

    test_paths(paths or [Path()], CaseOptions(config, tuple(case or ()), update, diff, max_concurrency))
