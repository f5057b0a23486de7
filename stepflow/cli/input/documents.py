"""The flow and the config of a command. What is wrong in them is `CheckFailed` (exit code 1)."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Literal

from stepflow.cli.console import CheckFailed, Usage
from stepflow.cli.input.files import read_file, value_format
from stepflow.errors import Invalid

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from stepflow.config import Config
    from stepflow.flow import Flow


def read_flow(path: Path) -> Flow:
    """Parse a flow file.

    Raises:
        Usage: no such file, an extension that is neither YAML nor JSON.
        CheckFailed: not a flow (with line and field), or too large.
    """
    kind = value_format(path, what="flow")
    with checked_document():
        return parse_flow_text(read_file(path, what="flow"), str(path), kind)


def parse_flow_text(text: bytes, source: str, kind: Literal["yaml", "json"]) -> Flow:
    """Parse the text of a flow. Raises: CheckFailed."""
    from stepflow.flow import parse_flow

    with checked_document():
        return parse_flow(text, source=source, format=kind)


@contextlib.contextmanager
def checked_document() -> Iterator[None]:
    """Turn what is wrong in a document into CheckFailed; errors of the command line stay as they are."""
    try:
        yield
    except (Usage, CheckFailed):
        raise
    except Invalid as error:
        raise CheckFailed(error.reason, error.message, **error.details) from error


def read_config(config: Path | None, flow: Path | None = None, *, test: bool = False) -> Config:
    """Load the named config, else the config next to the flow or in the working directory, else the default config.

    `test` prefers the file names of test configs. Raises: Usage, CheckFailed.
    """
    from pathlib import Path

    from stepflow.config import default_config, discover, load_config

    if config is not None and not config.is_file():
        raise Usage("FILE_UNREADABLE", f"--config {config}: there is no such file", path=str(config))

    here = Path.cwd()
    folder = flow.parent if flow is not None else here
    found = config or discover(folder, here, test=test)
    if found is None:
        return default_config(folder)
    with checked_document():
        return load_config(found)
