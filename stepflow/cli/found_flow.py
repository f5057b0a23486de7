"""FLOW: a file, `-` for stdin, or a flow stored in a mesh, as NAME[@TAG|@3] or by its id."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stepflow.cli.console import Usage
from stepflow.cli.input.documents import parse_flow_text, read_flow
from stepflow.cli.input.files import read_bounded
from stepflow.errors import NotFound

if TYPE_CHECKING:
    from stepflow.flow import Flow

FILE_SUFFIXES = (".yaml", ".yml", ".json")

STDIN = "-"


@dataclass(frozen=True, slots=True)
class FoundFlow:
    """A flow, and where it is from."""

    flow: Flow
    text: str
    """FLOW as it was given."""
    path: Path | None = None
    """Its file; None of stdin and of a stored flow."""
    flow_id: str = ""
    """Its id in the mesh; empty unless it is stored there."""

    @property
    def label(self) -> str:
        """The place, for the label of a run: an absolute path, or the text."""
        return self.text if self.path is None else str(self.path.absolute())

    @property
    def argument(self) -> str:
        """FLOW of a suggested command."""
        return shlex.quote(self.text)


def flow_file(text: str) -> Path | None:
    """Return the file that FLOW names; None for stdin and for a stored flow."""
    if text == STDIN or (not text.lower().endswith(FILE_SUFFIXES) and not Path(text).is_file()):
        return None
    return Path(text)


def find_flow(text: str, server: str | None = None) -> FoundFlow:
    """Return the flow that FLOW names. A stored one comes from the mesh at `server`, which must be known for it.

    Raises: Usage (no such file), NotFound (no such stored flow), CheckFailed (not a flow), Unavailable (no mesh).
    """
    path = flow_file(text)
    if path is not None:
        return FoundFlow(read_flow(path), text, path)
    if text == STDIN:
        content = read_bounded(sys.stdin.buffer, "the flow on stdin")
        return FoundFlow(parse_flow_text(content, "stdin", "yaml"), text)
    return _stored_flow(text, server)


def check_stdin(flow: str, *values: str | None) -> None:
    """Check that one value at most is read from stdin. Raises: Usage."""
    if [flow, *values].count(STDIN) > 1:
        raise Usage("OPTIONS_EXCLUSIVE", "only one of the flow and the values can be `-`: stdin holds one of them")


def _stored_flow(text: str, server: str | None) -> FoundFlow:
    from stepflow.cli import remote
    from stepflow.cli.target import known_mesh
    from stepflow.flow import flow_from_tree

    files = f"a flow file ends in {', '.join(FILE_SUFFIXES)}"
    found = server or known_mesh()
    if found is None:
        raise Usage(
            "FILE_UNREADABLE",
            f"there is no file {text[:200]} ({files}), and no mesh that could have a flow of this name: name one with "
            "STEPFLOW_SERVER, or start one with `stepflow dev`",
            path=text[:200],
        )
    try:
        flow_id, document = remote.ask(found, lambda client: client.get_flow(text))
    except NotFound as error:
        command = f"stepflow flows list{remote.server_argument(found)}"
        raise NotFound(error.reason, f"{error.message}; `{command}` shows the stored flows, and {files}") from None
    return FoundFlow(flow_from_tree(document), text, flow_id=flow_id)
