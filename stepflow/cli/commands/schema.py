"""`stepflow schema`: the JSON Schemas of flows and configs, for editors and other tools."""

from pathlib import Path
from typing import Annotated

import typer

from stepflow.cli import console
from stepflow.errors import FailedPrecondition

KINDS = ("flow", "config")


def schema(
    kind: Annotated[str, typer.Argument(metavar="flow|config", help="The kind of document.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="File of the schema. Default: stdout.")
    ] = None,
) -> None:
    """Print the JSON Schema of flows or configs (draft 2020-12).

    An editor with a YAML language server checks and completes a file whose first line is
    `# yaml-language-server: $schema=FILE`, with FILE relative to the file.

    \b
    Examples:
      stepflow schema flow
      stepflow schema flow -o .schemas/flow.json
      stepflow schema config -o .schemas/config.json
    """
    console.check_choice("KIND", kind, KINDS)
    text = schema_text(kind)
    if output is None:
        console.out(text)
        return

    from stepflow.whole_file import whole_file

    try:
        with whole_file(output) as file:
            file.write(text)
    except OSError as error:
        raise FailedPrecondition("FILE_UNWRITABLE", f"cannot write to {output}: {error.strerror}") from None


def schema_text(kind: str) -> bytes:
    """Return the schema of `flow` or `config` documents as JSON text."""
    import msgspec

    if kind == "flow":
        from stepflow.flow.flow_schema import flow_schema

        tree = flow_schema()
    else:
        from stepflow.config import config_schema

        tree = config_schema()
    return msgspec.json.format(msgspec.json.encode(tree), indent=2) + b"\n"
