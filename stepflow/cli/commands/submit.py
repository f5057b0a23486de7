"""`stepflow submit`: send a flow to a mesh, and follow the run to its end unless `--no-wait` is given."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stepflow.cli import console
from stepflow.cli.options import (
    JsonOption,
    MaxConcurrencyOption,
    NoCheckOption,
    NoValidateInputOption,
    OutputOption,
    QuietOption,
    RunOptions,
    ServerOption,
    with_run_options,
)
from stepflow.standard_streams import StdoutUnwritable

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepflow.cli.input.given import Given
    from stepflow.client import Client
    from stepflow.errors import Overloaded
    from stepflow.flow import Flow

BUSY_PATIENCE_S = 300.0
"""How long a submission waits for a mesh that is busy."""

FILE_SUFFIXES = (".yaml", ".yml", ".json")


@with_run_options
def submit(
    *,
    flow: Annotated[
        str,
        typer.Option(
            "--flow", "-f", metavar="FILE|NAME", help="A flow file, or a stored flow: NAME[@LABEL|@VERSION] or id."
        ),
    ],
    server: ServerOption = None,
    given: RunOptions,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="Config whose `retry` section applies to the run. "
            "Default: stepflow-config.yml next to the flow, or in the working directory.",
        ),
    ] = None,
    max_concurrency: MaxConcurrencyOption = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the run to its end.")] = True,
    run_id: Annotated[
        str | None,
        typer.Option("--run-id", metavar="UUID", help="Id of the run; repeating the command submits no second run."),
    ] = None,
    patience: Annotated[
        float,
        typer.Option("--patience", min=0, metavar="SECONDS", help="Try again for this long while the mesh is busy."),
    ] = BUSY_PATIENCE_S,
    output: OutputOption = None,
    json: JsonOption = False,
    no_check: NoCheckOption = False,
    no_validate_input: NoValidateInputOption = False,
    quiet: QuietOption = False,
) -> None:
    """Submit a flow to a mesh and print its result as JSON, or a batch as JSONL in the order of the inputs.

    Ctrl-C stops following and prints the command to follow again; the run continues. A second Ctrl-C cancels
    the run. With --no-wait, only the run's id is printed. With --json, the result is an object: the run, and the
    results of its items. The exit code is 1 when the flow (or an item of a batch) failed.

    The mesh checks the flow first: components that do not exist, inputs that cannot fit, missing variables. A mesh that
    is busy refuses new runs for a while: the command tries again for --patience seconds.

    Plugins and routes are those of the mesh; of a config next to the flow, only the `retry` section applies.

    \b
    Examples:
      stepflow submit --flow flow.yaml --input-json '{"name": "Ada"}'
      stepflow submit --flow greet@live --input input.yaml --server mesh:7840
      stepflow submit --flow flow.yaml --inputs items.jsonl --output results.jsonl
      stepflow submit --flow flow.yaml --input input.yaml --no-wait
    """
    from stepflow.cli import remote
    from stepflow.cli.input.documents import read_config
    from stepflow.cli.input.given import read_given
    from stepflow.cli.output import check_output
    from stepflow.ids import new_run_id

    check_output(output)
    no_check = no_check or no_validate_input
    parsed, reference = _find_flow(flow, server, no_check=no_check)
    retry = read_config(config, Path(flow) if flow.endswith(FILE_SUFFIXES) else None).retry
    submission = _Submission(
        flow=flow,
        parsed=parsed,
        reference=reference,
        given=read_given(given, parsed),
        run_id=run_id or new_run_id(),
        concurrency_max=max_concurrency,
        check=not no_check,
        retry=None if retry is None else retry.to_tree(),
        patience_s=patience,
    )

    if wait:
        _follow(submission, server, output, json=json, quiet=quiet)
    else:
        _print_submitted(remote.ask(server, submission.send), server, json=json, quiet=quiet)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Submission:
    """A run to submit. `reference` is the document of a flow file, or the id of a stored flow."""

    flow: str
    parsed: "Flow"
    reference: bytes | str
    given: "Given"
    run_id: str
    concurrency_max: int | None
    check: bool
    retry: Any
    patience_s: float

    async def send(self, client: "Client", on_refused: "Callable[[], None]" = lambda: None) -> str:
        """Submit the run and return its id. Idempotent: the id is chosen before the first attempt.

        `on_refused`: called when the mesh is busy, and the submission begins to wait.
        """
        from stepflow.cli.mesh_check import MeshCheck
        from stepflow.errors import Invalid

        given = self.given

        def on_busy(error: "Overloaded", patience_s: float) -> None:
            on_refused()
            _say_busy(error, patience_s)

        client.busy_patience_s, client.on_busy = self.patience_s, on_busy
        check = MeshCheck(self.parsed)
        if self.check:
            await check.ask(client, self.reference, given.variables, given.overrides)
        try:
            return await client.submit_batch(
                self.reference,
                given.inputs,
                run_id=self.run_id,
                variables=given.variables,
                overrides=given.overrides,
                concurrency_max=self.concurrency_max,
                check_input=self.check,
                labels={"flow": self.flow, "batch": given.inputs.batch},
                retry=self.retry,
                check=self.check,
            )
        except Invalid as error:
            check.show_refusal(error)
            raise


def _say_busy(error: "Overloaded", patience_s: float) -> None:
    from stepflow.cli.display.texts import duration

    console.say(f"the mesh is busy: {error.reason}; trying again for up to {duration(int(patience_s * 1000))}")


def _follow(submission: _Submission, server: str | None, output: Path | None, *, json: bool, quiet: bool) -> None:
    """Submit the run, follow it, and print how it ended."""
    from stepflow.cli.display.follow import Following, follow
    from stepflow.cli.display.outcome import finish
    from stepflow.cli.display.view import choose_view

    inputs, redactor = submission.given.inputs, submission.given.redactor
    following = Following(server, choose_view(redactor.text, quiet=quiet), cancels=True)

    def refused() -> None:
        following.refused = True

    async def begin(client: "Client") -> tuple[str, int]:
        # Before the first await: after a Ctrl-C during `send` the mesh may have the run, and people need its id.
        following.run_id = submission.run_id
        await submission.send(client, refused)
        console.say(f"run_id: {submission.run_id}")
        return submission.run_id, (await client.get(submission.run_id)).items_total if inputs.batch else 1

    finish(follow(following, begin), redactor, output, batch=inputs.batch, json=json)


def _print_submitted(run_id: str, server: str | None, *, json: bool, quiet: bool) -> None:
    from stepflow.cli import remote
    from stepflow.cli.tables import print_json

    try:
        if json:
            print_json({"run_id": run_id})
        else:
            console.out(f"{run_id}\n")
    except StdoutUnwritable:
        console.say(f"run_id: {run_id}")  # the run goes on, and this id is the only way to it
        raise
    if not quiet:
        console.say(f"follow it with: stepflow runs watch {run_id}{remote.server_argument(server)}")


def _find_flow(flow: str, server: str | None, *, no_check: bool) -> "tuple[Flow, bytes | str]":
    """Return a flow and its reference for the server: the document of a file, or the id of a stored flow.

    Raises: NotFound, Usage, Invalid.
    """
    if flow.endswith(FILE_SUFFIXES):
        from stepflow.cli.input.documents import read_flow
        from stepflow.flow import flow_bytes

        parsed = read_flow(Path(flow))
        check_flow(parsed, no_check=no_check)
        return parsed, flow_bytes(parsed)

    from stepflow.cli import remote
    from stepflow.errors import NotFound
    from stepflow.flow import flow_from_tree

    try:
        flow_id, document = remote.ask(server, lambda client: client.get_flow(flow))
    except NotFound as error:
        raise NotFound(
            error.reason,
            f"{error.message}; `stepflow flows list` shows the stored flows, and a flow file ends in "
            f"{', '.join(FILE_SUFFIXES)}",
        ) from None
    return flow_from_tree(document), flow_id


def check_flow(flow: "Flow", *, no_check: bool = False) -> None:
    """Refuse a flow with errors; show the warnings of its text. `no_check`: refuse only fatal findings.

    Raises: Invalid `FLOW_INVALID`, after the diagnostics were printed.
    """
    from stepflow.cli.findings import passes, print_report
    from stepflow.errors import Invalid
    from stepflow.flow import Diagnostics, validate_flow

    diagnostics = Diagnostics(flow.warnings) + validate_flow(flow)
    if diagnostics.num_fatal or not (no_check or passes(diagnostics)):
        print_report(diagnostics)
        raise Invalid("FLOW_INVALID", "the flow was not sent; correct the errors listed above")
    for warning in flow.warnings:
        console.warn(f"{warning.path}: {warning.formatted}")
