"""`stepflow init`: write a small flow with its config and a component, as a starting point.

The files are copies of `template/`. If one of them exists, nothing is written. `.schemas/` gets the JSON Schemas that
their first lines name for editors: in the folder, so that they work offline and fit the installed version.
"""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from stepflow.cli import console
from stepflow.cli.commands.schema import KINDS, schema_text
from stepflow.errors import AlreadyExists, FailedPrecondition

FILES = {
    "flow.yaml": "the flow: its steps and a test case",
    "stepflow-config.yml": "the config: plugins and routes",
    "components.py": "two components of your own",
}
SCHEMAS = ".schemas"
_TEMPLATE = Path(__file__).parents[1] / "template"


def init(
    directory: Annotated[
        Path, typer.Argument(metavar="[DIR]", help="Target folder, created if missing. Default: the working directory.")
    ] = Path(),
) -> None:
    """Write a small project: a flow, a config and a component.

    \b
    Examples:
      stepflow init
      stepflow init hello
    """
    taken = [name for name in FILES if (directory / name).exists()]
    if taken:
        raise AlreadyExists(
            "FILE_EXISTS",
            f"{' and '.join(str(directory / name) for name in taken)} already exist; name another folder: "
            "stepflow init FOLDER",
        )

    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            with (directory / name).open("xb") as file:
                file.write((_TEMPLATE / name).read_bytes())
        write_schemas(directory / SCHEMAS)
    except OSError as error:
        raise FailedPrecondition("FILE_UNWRITABLE", f"cannot write to {directory}: {error.strerror}") from None

    _print_next_steps(directory)


def write_schemas(folder: Path) -> None:
    """Write the JSON Schemas of flows and configs into a folder. Raises: OSError."""
    folder.mkdir(exist_ok=True)
    for kind in KINDS:
        (folder / f"{kind}.json").write_bytes(schema_text(kind))


def _print_next_steps(directory: Path) -> None:
    for name, purpose in FILES.items():
        console.say(f"wrote {directory / name}  ({purpose})")
    console.say(f"wrote {directory / SCHEMAS}  (JSON Schemas, for editors)")
    flow = shlex.quote(str(directory / "flow.yaml"))
    console.say("\nRun the flow, then test it:")
    console.say(console.styled(f'  stepflow run {flow} --input \'{{"name": "Ada"}}\'', "bold"))
    console.say(console.styled(f"  stepflow test {flow}", "bold"))
