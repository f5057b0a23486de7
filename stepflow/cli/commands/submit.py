"""`stepflow submit`: send a flow to a mesh, and follow the run to its end unless `--no-wait` is given."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stepflow.cli import console
from stepflow.cli.options import (
    FlowOption,
    JsonOption,
    MaxConcurrencyOption,
    NoCheckOption,
    OutputOption,
    QuietOption,
    RunOptions,
    ServerOption,
    with_flow,
    with_run_options,
)
from stepflow.standard_streams import StdoutUnwritable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from stepflow.cli.found_flow import FoundFlow
    from stepflow.cli.input.given import Given
    from stepflow.client import Client
    from stepflow.errors import Overloaded
    from stepflow.flow import Flow

BUSY_PATIENCE_S = 300.0
"""How long a submission waits for a mesh that is busy."""

KEY_CHARS_MAX = 512

KEY_NAMESPACE = "5b1c3f7e-52d0-4f3c-9d43-0d8f6f0f1c2e"
"""Of the ids that are made of keys. It never changes: a repeated command must find the run of an earlier version."""


@with_flow
@with_run_options
def submit(
    *,
    flow: FlowOption,
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
    timeout: Annotated[
        str | None,
        typer.Option("--timeout", metavar="D", help="Stop following after this time, 30s or 5m; the run goes on."),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="KEY", help="Repeating the command with this key submits no second run."),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", metavar="K=V", help="A label of the run (repeatable); `runs show` has them."),
    ] = None,
    patience: Annotated[
        float,
        typer.Option("--patience", min=0, metavar="SECONDS", help="Try again for this long while the mesh is busy."),
    ] = BUSY_PATIENCE_S,
    output: OutputOption = None,
    json: JsonOption = False,
    no_check: NoCheckOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run a flow in a mesh. Print its result as JSON, or those of a batch as JSONL while it runs.

    Ctrl-C stops following and prints the command to follow again; the run continues. A second Ctrl-C cancels
    the run. After --timeout, following stops too, with exit code 124. With --no-wait, only the run's id is printed.
    With --json, the result is an object: the run, and the results of its items. The exit code is 1 when the flow
    (or an item of a batch) failed.

    The mesh checks the flow first: components that do not exist, inputs that cannot fit, missing variables. A mesh that
    is busy refuses new runs for a while: the command tries again for --patience seconds.

    Plugins and routes are those of the mesh; of a config next to the flow, only the `retry` section applies.

    \b
    Examples:
      stepflow submit flow.yaml --input '{"name": "Ada"}'
      stepflow submit greet@live --input input.yaml --server mesh:7840
      stepflow submit flow.yaml --inputs items.jsonl --output results.jsonl
      stepflow submit flow.yaml --input input.yaml --key order-17 --no-wait
    """
    from stepflow.cli import remote
    from stepflow.cli.found_flow import check_stdin, find_flow
    from stepflow.cli.input.documents import read_config
    from stepflow.cli.input.given import read_given
    from stepflow.cli.output import check_output
    from stepflow.cli.target import choose_mesh
    from stepflow.ids import new_run_id

    # 1. Check the whole command line.
    check_output(output)
    check_stdin(flow, *given.values)
    timeout_s = _seconds(timeout)
    labels = _labels(label or ())
    server = choose_mesh(server, quiet=quiet)
    found = find_flow(flow, server)
    retry = read_config(config, found.path).retry
    submission = _Submission(
        flow=flow,
        parsed=found.flow,
        reference=_reference(found, no_check=no_check),
        given=read_given(given, found.flow, stdin_taken=flow == "-"),
        run_id=_run_id_of(key) if key else new_run_id(),
        labels=labels,
        concurrency_max=max_concurrency,
        check=not no_check,
        retry=None if retry is None else retry.to_tree(),
        patience_s=patience,
    )

    # 2. Submit the run.
    if wait:
        _follow(submission, server, output, timeout_s, json=json, quiet=quiet, unordered=given.unordered)
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
    labels: dict[str, str]
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
                labels=self.labels | {"flow": self.flow, "batch": given.inputs.batch},
                retry=self.retry,
                check=self.check,
            )
        except Invalid as error:
            check.show_refusal(error)
            raise


def _say_busy(error: "Overloaded", patience_s: float) -> None:
    from stepflow.cli.display.texts import duration

    console.say(f"the mesh is busy: {error.reason}; trying again for up to {duration(int(patience_s * 1000))}")


def _follow(
    submission: _Submission,
    server: str,
    output: Path | None,
    timeout_s: float | None,
    *,
    json: bool,
    quiet: bool,
    unordered: bool,
) -> None:
    """Submit the run, follow it, and print how it ended."""
    from stepflow.cli.display.follow import Following, follow
    from stepflow.cli.display.outcome import finish
    from stepflow.cli.display.streamed import ResultStream
    from stepflow.cli.display.view import choose_view

    inputs, redactor = submission.given.inputs, submission.given.redactor
    following = Following(server, choose_view(redactor.text, quiet=quiet), cancels=True, timeout_s=timeout_s)
    if inputs.batch and not json:
        following.stream = ResultStream(output, following.view, ordered=not unordered)

    def refused() -> None:
        following.refused = True

    async def begin(client: "Client") -> tuple[str, int]:
        # Before the first await: after a Ctrl-C during `send` the mesh may have the run, and people need its id.
        following.run_id = submission.run_id
        await submission.send(client, refused)
        console.say(f"run_id: {submission.run_id}")
        return submission.run_id, (await client.get(submission.run_id)).items_total if inputs.batch else 1

    finish(follow(following, begin), redactor, output, batch=inputs.batch, json=json, stream=following.stream)


def _print_submitted(run_id: str, server: str, *, json: bool, quiet: bool) -> None:
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


def _reference(found: "FoundFlow", *, no_check: bool) -> bytes | str:
    """Return the reference of a flow for the server: its document, or the id of a stored flow. Raises: Invalid."""
    if found.flow_id:
        return found.flow_id
    from stepflow.cli.findings import check_flow
    from stepflow.flow import flow_bytes

    check_flow(found.flow, no_check=no_check)
    return flow_bytes(found.flow)


def _run_id_of(key: str) -> str:
    """Return the id of the run with a key: the key itself if it is a UUID, else a UUID made of it. Raises: Invalid."""
    from uuid import UUID, uuid5

    from stepflow.errors import Invalid
    from stepflow.ids import parse_run_id

    if len(key) > KEY_CHARS_MAX:
        raise Invalid("RUN_ID_INVALID", f"--key has {len(key):,} characters; the limit is {KEY_CHARS_MAX:,}")
    try:
        UUID(key)
    except ValueError:
        return str(uuid5(UUID(KEY_NAMESPACE), key))
    return parse_run_id(key)


def _seconds(timeout: str | None) -> float | None:
    """Return a duration in seconds. Raises: Usage."""
    if timeout is None:
        return None
    from stepflow.errors import Invalid
    from stepflow.flow.duration import parse_duration_ms

    try:
        return parse_duration_ms(timeout) / 1_000
    except Invalid as error:
        raise console.Usage("OPTION_INVALID", f"--timeout: {error.message}") from None


def _labels(texts: "Iterable[str]") -> dict[str, str]:
    """Return the labels of `--label`. Raises: Usage."""
    from stepflow.cli.display.runs import STEPFLOW_LABELS
    from stepflow.cli.wanted_runs import read_labels

    labels = read_labels(texts)
    for name in labels:
        if name in STEPFLOW_LABELS:
            raise console.Usage("OPTION_INVALID", f"--label {name}: this label is stepflow's own; take another name")
    return labels
