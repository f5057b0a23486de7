"""`stepflow call`: one component or MCP tool, called by hand."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from stepflow.cli import console
from stepflow.cli.completion import complete_component
from stepflow.cli.options import ConfigOption, EnvFileOption, OutputOption

if TYPE_CHECKING:
    from stepflow.client import Client
    from stepflow.flow import Flow


def call(
    *,
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH",
            help="The component, as in a flow: /builtin/openai, /tools/search.",
            autocompletion=complete_component,
        ),
    ],
    value: Annotated[
        str,
        typer.Option("--input", metavar="VALUE", help="The input: JSON text, a file, or - for stdin. Default: {}."),
    ] = "{}",
    config: ConfigOption = None,
    server: Annotated[
        str | None,
        typer.Option("--server", metavar="HOST:PORT", help="Call it in this mesh instead of on this machine."),
    ] = None,
    output: OutputOption = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not print the id of a run in a mesh.")] = False,
    env_file: EnvFileOption = None,  # noqa: ARG001  # handled by its callback, before any other option
) -> None:
    """Call one component or MCP tool, and print its result as JSON.

    Starts the servers of the component's plugin, calls it once, and stops them; nothing is stored. With --server, the
    call is a run of one step in the mesh. The exit code is 1 when the component failed.

    \b
    Examples:
      stepflow call /builtin/create_messages --input '{"user_prompt": "Hello"}'
      stepflow call /tools/search --input query.json
      stepflow call /greet/hello --input '{"name": "Ada"}' --server mesh:7840
    """
    from stepflow.cli.input.files import compact_tree
    from stepflow.cli.input.values import value_tree
    from stepflow.cli.output import check_output, write_results

    check_output(output)
    flow, given = _one_step(path), compact_tree(value_tree(value, "input"), "input")
    result = _call_here(flow, given, config) if server is None else _call_in_mesh(flow, given, server, quiet=quiet)

    if result["outcome"] == "success":
        write_results([result["result"]], output, batch=False)
        return
    error = result["error"]
    console.say(f"{error['code']}: {_reason(error)}")
    raise typer.Exit(console.EXIT_FAILED)


def _one_step(path: str) -> "Flow":
    """Return a flow whose only step calls the component with the input of the run. Raises: Usage."""
    from stepflow.flow import flow_from_tree

    if not path.startswith("/"):
        raise console.Usage("OPTION_INVALID", f"PATH is a component as in a flow, /{path}; it begins with a slash")
    step = {"id": "call", "component": path, "input": {"$input": "$"}}
    return flow_from_tree({"name": f"call {path}", "steps": [step], "output": {"$step": "call"}})


def _call_here(flow: "Flow", given: bytes, config: Any) -> dict[str, Any]:
    from stepflow.cli.input.documents import read_config
    from stepflow.cli.interruptible import run_or_exit
    from stepflow.embedded.mesh import run_flow_once

    [result] = run_or_exit(run_flow_once(flow, [given], config=read_config(config)))
    return result


def _call_in_mesh(flow: "Flow", given: bytes, server: str, *, quiet: bool) -> dict[str, Any]:
    from stepflow.cli import remote
    from stepflow.cli.display.trees import result_tree
    from stepflow.codec import Json, LargeJson
    from stepflow.errors import FailedPrecondition
    from stepflow.flow import flow_bytes

    async def work(client: "Client") -> dict[str, Any]:
        run_id = await client.submit_batch(flow_bytes(flow), [Json(given)])
        if not quiet:
            console.say(f"run_id: {run_id}")
        run = await client.wait(run_id)
        [outcome] = [remote.outcome_of(item) async for item in client.items(run_id)]
        if isinstance(outcome, LargeJson):
            command = remote.results_command(server, run_id)
            raise FailedPrecondition("RESULT_TOO_LARGE", f"{outcome.text_bytes:,} bytes; this prints them: {command}")
        return result_tree(outcome, run.status)

    return remote.ask(server, work)


def _reason(error: dict[str, Any]) -> str:
    """Return why a call failed: the message, and the innermost note of the engine or of the component."""
    from stepflow.cli.display.texts import plain

    data = error.get("data")
    stack = data.get("stack") if isinstance(data, dict) else None
    notes = stack[0].get("attachments") if isinstance(stack, list) and stack and isinstance(stack[0], dict) else None
    note = str(notes[-1]) if isinstance(notes, list) and notes else ""
    message = str(error["message"])
    return plain(message if not note or note in message else f"{message}: {note}", str)
