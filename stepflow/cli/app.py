"""The `stepflow` command: its global options, and the conversion of errors to messages and exit codes.

- Exit codes: `stepflow.cli.exits`.
- Tracebacks are shown at log level debug only.
- Starting is fast: command modules import typer and options at the top, and everything else inside the commands. Help
  is rendered without rich: importing rich would double the time.
"""

import os
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from stepflow import __version__, process_privacy, telemetry
from stepflow.cli import completion, console, options
from stepflow.cli.commands import (
    call,
    cluster,
    complete,
    components,
    dev,
    flows,
    former,
    infer,
    init,
    restart,
    run,
    runs,
    schema,
    submit,
    test,
    validate,
)
from stepflow.cli.exits import exit_code
from stepflow.cli.strict import StrictTyper
from stepflow.errors import FailedPrecondition, StepflowError
from stepflow.standard_streams import StdoutUnwritable, prepare_streams

app = StrictTyper(
    name="stepflow",
    help="Run AI workflows that survive crashes: flows in YAML or JSON, steps in any component server.",
    epilog="\b\nExamples:\n  stepflow init hello\n  stepflow test hello\n  stepflow COMMAND --help",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

completion.attach(options.FlowOption, completion.complete_flow)
completion.attach(options.FlowsOption, completion.complete_flow)
completion.attach(options.RunArgument, completion.complete_run)
completion.attach(options.RunArguments, completion.complete_run)

app.command("init")(init.init)
app.command("validate")(validate.validate)
app.command("infer")(infer.infer)
app.command("schema")(schema.schema)
app.command("test")(test.run_tests)
app.command("list-components", hidden=True)(components.list_components)
app.command("call")(call.call)
app.command("run")(run.run)
app.command("resume")(run.resume)
app.command("dev")(dev.dev)
app.command("submit")(submit.submit)
runs.app.command("get", hidden=True)(former.get_run)
runs.app.command("steps", hidden=True)(former.list_steps)
app.add_typer(runs.app, name="runs")
app.add_typer(flows.app, name="flows")
cluster.components_app.command("restart")(restart.restart)
app.add_typer(cluster.components_app, name="components")
app.add_typer(cluster.app, name="cluster")
app.command("completion")(complete.print_script)


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
        typer.Option(help="Lowest level to log: debug, info, warning, error.", envvar="STEPFLOW_LOG_LEVEL"),
    ] = None,
    log_format: Annotated[
        str, typer.Option(help="Format of log lines: text, json.", envvar="STEPFLOW_LOG_FORMAT")
    ] = "text",
) -> None:
    level = log_level.lower() if log_level else ("warning", "info", "debug")[min(verbose, 2)]
    try:
        process_privacy.apply_switch()
        telemetry.configure(level=level, format=log_format)
    except StepflowError as error:
        raise console.Usage(error.reason, error.message) from None


def run_command_line(args: Sequence[str] | None = None) -> int:
    """Run a command line (default: the arguments of this process) and return the exit code."""
    prepare_streams()
    completion.prepare()
    try:
        app(args=args, prog_name="stepflow")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else console.EXIT_OK if end.code is None else console.EXIT_FAILED
    except KeyboardInterrupt:
        return console.EXIT_INTERRUPTED
    except StdoutUnwritable as error:
        # Not after `stepflow … | head`, which typer turns into an exit with code 1: the reader has what it wanted.
        return report(FailedPrecondition("STDOUT_UNWRITABLE", f"cannot write to stdout: {error.strerror}"))
    except Exception as error:  # the last boundary: every error becomes a message
        return report(error)
    return console.EXIT_OK


def report(error: Exception) -> int:
    """Print an error and return the exit code."""
    known = _find_known(error)
    if telemetry.is_enabled("debug"):
        traceback.print_exception(error)
    if known is not None:
        console.error(known)
        return exit_code(known)

    # The text of an unexpected exception may quote a payload or a secret: show its type and location only.
    hint = "report the traceback above" if telemetry.is_enabled("debug") else "rerun with --log-level debug"
    text = f"internal error: {type(error).__name__} at {_location(error)} (this is a bug; {hint})"
    console.error(StepflowError("INTERNAL", text))
    return console.EXIT_FAILED


def _find_known(error: BaseException) -> StepflowError | None:
    """Return a `StepflowError` unchanged, or the first in an exception group (tasks fail in groups)."""
    if isinstance(error, StepflowError):
        return error
    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, map(_find_known, error.exceptions)), None)
    return None


def _location(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"{os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else "an unknown location"  # noqa: PTH119  # a text, not a file
