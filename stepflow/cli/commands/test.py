"""`stepflow test`: run the cases that flows carry (`test.cases`) and compare the results with what they expect.

What it does is in `cases`.
"""

from pathlib import Path
from typing import Annotated

import typer

from stepflow.cli.options import ConfigOption


def run_tests(
    *,
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="[PATH]...", help="Flow files, or folders to search. Default: here.")
    ] = None,
    config: ConfigOption = None,
    case: Annotated[
        list[str] | None, typer.Option("--case", metavar="NAME", help="Run only the cases of this name (repeatable).")
    ] = None,
    update: Annotated[
        bool, typer.Option("--update", help="Write the actual results of failing cases to the file.")
    ] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Show how the results differ, line by line.")] = False,
    max_concurrency: Annotated[int, typer.Option(min=1, help="Steps of one file in flight at once.")] = 10,
) -> None:
    """Run the test cases of flows and compare the results.

    An expected result may leave out members that do not matter. The exit code is 1 when a case failed.

    \b
    Examples:
      stepflow test flows/
      stepflow test flow.yaml --case "two items" --diff
      stepflow test flow.yaml --update
    """
    from stepflow.cli.testing.cases import Options, test_paths

    test_paths(paths or [Path()], Options(config, tuple(case or ()), update, diff, max_concurrency))
