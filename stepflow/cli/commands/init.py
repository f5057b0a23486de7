"""`stepflow init`: write a small flow with its config and a component, for people to change.

The files are those in `template/`, as they are. Nothing is overwritten, and nothing written when one of them exists.
"""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from stepflow.cli import console
from stepflow.errors import Exists, Refused

FILES = {
    "flow.yaml": "the flow: what is done, and its test case",
    "stepflow-config.yml": "where components come from",
    "components.py": "two components of your own",
}
_TEMPLATE = Path(__file__).parents[1] / "template"


def init(
    directory: Annotated[
        Path, typer.Argument(metavar="[DIR]", help="Where to; made if needed. Default: here.")
    ] = Path(),
) -> None:
    """Write a flow, a config and a component that run, as a place to start from.

    \b
    Examples:
      stepflow init
      stepflow init hello
    """
    taken = [name for name in FILES if (directory / name).exists()]
    if taken:
        raise Exists(
            "FILE_EXISTS",
            f"{' and '.join(str(directory / name) for name in taken)} exist already; name another folder: "
            "stepflow init FOLDER",
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            with (directory / name).open("xb") as file:
                file.write((_TEMPLATE / name).read_bytes())
    except OSError as error:
        raise Refused("FILE_UNWRITABLE", f"cannot write to {directory}: {error.strerror}") from None
    _say_what_next(directory)


def _say_what_next(directory: Path) -> None:
    for name, purpose in FILES.items():
        console.say(f"wrote {directory / name}  ({purpose})")
    flow = shlex.quote(str(directory / "flow.yaml"))
    console.say("\nNow run it, then test it:")
    console.say(console.styled(f'  stepflow run --flow {flow} --input-json \'{{"name": "Ada"}}\'', "bold"))
    console.say(console.styled(f"  stepflow test {flow}", "bold"))
