"""The `stepflow` command: its global options, and the one place where errors become messages and exit codes.

- Exit codes: 0 success, 1 the flow failed or is invalid (or anything else went wrong), 2 usage, 130 Ctrl-C.
- No error shows a traceback, unless the log level is debug.
- Starting is cheap: the modules of the commands import typer and what they need for their options, and everything else
  inside the commands. Help is rendered without rich, which alone would cost as much as all of the rest.
"""

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from stepflow import __version__, telemetry
from stepflow.cli import console
from stepflow.cli.commands import cluster, components, dev, flows, init, run, runs, submit, test, validate
from stepflow.errors import StepflowError

app = typer.Typer(
    name="stepflow",
    help="Run AI workflows that survive crashes: flows in YAML or JSON, steps by any component server.",
    epilog="\b\nExamples:\n  stepflow init hello\n  stepflow test hello\n  stepflow COMMAND --help",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

app.command("init")(init.init)
app.command("validate")(validate.validate)
app.command("test")(test.run_tests)
app.command("list-components")(components.list_components)
app.command("run")(run.run)
app.command("resume")(run.resume)
app.command("dev")(dev.dev)
app.command("submit")(submit.submit)
app.add_typer(runs.app, name="runs")
app.add_typer(flows.app, name="flows")
app.add_typer(cluster.components_app, name="components")
app.add_typer(cluster.app, name="cluster")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"stepflow {__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    *,
    version: Annotated[  # noqa: ARG001  # handled by its callback, before any command
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
    verbose: Annotated[
        int,
        typer.Option("--verbose", "-v", count=True, help="Log more: -v for info, -vv for debug.", show_default=False),
    ] = 0,
    log_level: Annotated[
        str | None,
        typer.Option(help="Log from this level on: debug, info, warning, error.", envvar="STEPFLOW_LOG_LEVEL"),
    ] = None,
    log_format: Annotated[
        str, typer.Option(help="How log lines look: text, json.", envvar="STEPFLOW_LOG_FORMAT")
    ] = "text",
) -> None:
    level = log_level.lower() if log_level else ("warning", "info", "debug")[min(verbose, 2)]
    try:
        telemetry.configure(level=level, format=log_format)
    except StepflowError as error:
        raise console.Usage(error.reason, error.message) from None


def main(args: Sequence[str] | None = None) -> int:
    """Run a command line (that of the process by default) and return its exit code."""
    try:
        app(args=args, prog_name="stepflow")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else console.EXIT_OK if end.code is None else console.EXIT_FAILED
    except KeyboardInterrupt:
        return console.EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone (`stepflow … | head`); stdout must not be flushed again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return console.EXIT_FAILED
    except Exception as error:  # the last boundary: whatever it is, people get a message
        return report(error)
    return console.EXIT_OK


def report(error: Exception) -> int:
    """Show an error to people and return the exit code that it means."""
    known = _find_known(error)
    if telemetry.is_enabled("debug"):
        traceback.print_exception(error)
    if known is not None:
        console.error(known)
        return console.EXIT_USAGE if isinstance(known, console.Usage) else console.EXIT_FAILED
    # The text of a stray exception may quote a payload or a secret: its type and place have to do.
    console.error(StepflowError("INTERNAL", f"{type(error).__name__} at {_place(error)}, which is a mistake of ours"))
    if not telemetry.is_enabled("debug"):
        console.say("Please report it with the traceback that `stepflow --log-level debug …` shows.")
    return console.EXIT_FAILED


def _find_known(error: BaseException) -> StepflowError | None:
    """Return the error of ours that this is, or the first one in a group (tasks fail in groups)."""
    if isinstance(error, StepflowError):
        return error
    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, map(_find_known, error.exceptions)), None)
    return None


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"{os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else "an unknown place"  # noqa: PTH119  # a text, not a file


if __name__ == "__main__":
    sys.exit(main())
