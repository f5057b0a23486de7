"""The flow and the config of a command."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepflow.cli.console import Usage
from stepflow.cli.input.files import read_file, value_format

if TYPE_CHECKING:
    from pathlib import Path

    from stepflow.config import Config
    from stepflow.flow import Flow


def read_flow(path: Path) -> Flow:
    """Parse a flow file.

    Raises:
        Usage: no such file, an extension that is neither YAML nor JSON.
        Invalid: not a flow (`FlowInvalid`, with line and field), or too large.
    """
    from stepflow.flow import parse_flow

    return parse_flow(read_file(path, what="flow"), source=str(path), format=value_format(path, what="flow"))


def read_config(config: Path | None, flow: Path | None = None, *, test: bool = False) -> Config:
    """Load the named config, else the config next to the flow or in the working directory, else the default config.

    `test` prefers the file names of test configs. Raises: Usage, Invalid.
    """
    from pathlib import Path

    from stepflow.config import default_config, discover, load_config

    if config is not None and not config.is_file():
        raise Usage("FILE_UNREADABLE", f"--config {config}: there is no such file", path=str(config))

    here = Path.cwd()
    folder = flow.parent if flow is not None else here
    found = config or discover(folder, here, test=test)
    return default_config(folder) if found is None else load_config(found)
