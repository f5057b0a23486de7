"""Former words that go on working, hidden: `runs get` and `runs steps`, now `runs show`."""

from typing import Annotated

import typer

from stepflow.cli import console
from stepflow.cli.commands.runs import print_facts, print_result
from stepflow.cli.options import JsonOption, OutputOption, RunArgument, TargetServerOption, TargetStoreOption


def get_run(
    *,
    run_id: RunArgument,
    server: TargetServerOption = None,
    store: TargetStoreOption = None,
    steps: Annotated[bool, typer.Option("--steps", help="Show the steps that have started.")] = False,
    json: JsonOption = False,
    result: Annotated[
        bool, typer.Option("--result", help="Print the result of an ended run instead, of any size, as `run` does.")
    ] = False,
    item: Annotated[
        int | None, typer.Option("--item", min=0, metavar="N", help="Print the result of this item of a batch, from 0.")
    ] = None,
    output: OutputOption = None,
) -> None:
    """Show a run, with --steps also its steps: the former `stepflow runs show`."""
    if result or item is not None or output is not None:
        if steps or json:
            raise console.Usage("OPTION_INVALID", "--result, --item and --output exclude --steps and --json")
        print_result(run_id, server, store, item, output)
        return

    print_facts(run_id, server, store, steps=steps, json=json)


def list_steps(
    *, run_id: RunArgument, server: TargetServerOption = None, store: TargetStoreOption = None, json: JsonOption = False
) -> None:
    """List the steps of a run that have started; `stepflow runs show` shows them, too."""
    from stepflow.cli.display.runs import print_steps
    from stepflow.cli.display.trees import step_tree
    from stepflow.cli.sources import choose
    from stepflow.cli.tables import print_json

    shown = choose(server, store).read(run_id, steps=True, results=json)
    if json:
        print_json({"run_id": shown.run.run_id, "steps": [step_tree(step) for step in shown.steps]})
    else:
        print_steps(shown.steps, shown.redactor)
