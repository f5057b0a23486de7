"""Find and load a configuration file.

Starts no process and opens no connection. A plain file is read without pydantic. The full reader, and pydantic with it,
is imported with the first file that is not plain.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepflow.codec import PAYLOAD_BYTES_MAX
from stepflow.config.model import BuiltinPlugin, Config, ConfigInvalid, digest_of
from stepflow.errors import NotFound
from stepflow.routing.table import Rule

if TYPE_CHECKING:
    from collections.abc import Iterator

FILE_NAMES = ("stepflow-config.yml", "stepflow-config.yaml", "stepflow_config.yml", "stepflow_config.yaml")
"""Recognised file names; two of them in one folder are ambiguous."""

TEST_FILE_NAMES = (
    "stepflow-config.test.yml",
    "stepflow-config.test.yaml",
    "stepflow_config.test.yml",
    "stepflow_config.test.yaml",
)
"""File names that `stepflow test` prefers, in the folder of the flow only."""

FILE_BYTES_MAX = PAYLOAD_BYTES_MAX
"""Mock behaviours hold payloads, so a configuration may be as large as one."""


def default_config(working_directory: Path) -> Config:
    """Return the configuration used without a file: the builtin components at `/builtin`."""
    return Config(
        working_directory=working_directory.absolute(),
        plugins={"builtin": BuiltinPlugin()},
        routes={"/builtin": (Rule("builtin"),)},
        digest=digest_of({}),
    )


def load_config(path: Path | str) -> Config:
    """Read a configuration file.

    Raises:
        NotFound: CONFIG_NOT_FOUND.
        ConfigInvalid: with file, line and key; one message holds all problems of the file.
    """
    from stepflow.flow.document import parse_tree
    from stepflow.flow.source import DocumentInvalid

    path = Path(path)
    label = str(path)
    text = _read(path, label)
    try:
        tree = parse_tree(
            text, source=label, format="json" if path.suffix in (".json", ".jsonl") else "yaml", complex_keys=True
        )
    except DocumentInvalid as error:
        raise ConfigInvalid(
            error.message, source=label, field=error.field, line=error.line or None, column=error.column or None
        ) from None
    return replace(config_from_tree(tree, source=label, base_dir=path.absolute().parent), source=path.absolute())


def reload_config(path: Path) -> Config:
    """Read a configuration file again, in a process that must not wait for it. Raises: as `load_config`.

    A pipe is refused: at a start it may be the output of a command, and later nothing writes to it.
    """
    if path.exists() and not path.is_file():
        raise ConfigInvalid(f"{path}: not a regular file; it is read only at the start", source=str(path))
    return load_config(path)


def config_from_tree(tree: Any, *, source: str, base_dir: Path) -> Config:
    """Read a configuration from a plain tree, or from a `stepflow.flow.document.Tree`, which has line numbers.

    `source` names the configuration in messages; relative paths start at `base_dir`. Raises: ConfigInvalid.
    """
    from stepflow.config.plain_reader import read_plain_config
    from stepflow.flow.document import Tree

    value = tree.value if isinstance(tree, Tree) else tree
    plain = read_plain_config(value, source=source, base_dir=base_dir.absolute())
    if plain is not None:
        return plain

    with _no_pydantic_plugins():
        from stepflow.config.reader import read_config

    return read_config(tree, source=source, base_dir=base_dir.absolute())


def config_schema() -> dict[str, Any]:
    """Return the JSON Schema of configuration files."""
    with _no_pydantic_plugins():
        from stepflow.config.file_schema import config_schema as make_schema

    return make_schema()


@contextlib.contextmanager
def _no_pydantic_plugins() -> Iterator[None]:
    """Skip pydantic's search for plugins in all installed packages while models are made: 40 ms of every run."""
    switch = "PYDANTIC_DISABLE_PLUGINS"
    before = os.environ.get(switch)
    os.environ[switch] = "__all__"
    try:
        yield
    finally:
        if before is None:
            del os.environ[switch]
        else:
            os.environ[switch] = before


def discover(flow_dir: Path, cwd: Path, *, test: bool = False) -> Path | None:
    """Find the configuration for a flow: in its folder, then in the current folder.

    With `test`, a test configuration in the folder of the flow comes first.

    Raises:
        ConfigInvalid: two candidates in one folder.
    """
    if test:
        found = _only_candidate(flow_dir, TEST_FILE_NAMES)
        if found is not None:
            return found
    return _only_candidate(flow_dir, FILE_NAMES) or _only_candidate(cwd, FILE_NAMES)


def _only_candidate(folder: Path, names: tuple[str, ...]) -> Path | None:
    candidates = [folder / name for name in names if (folder / name).is_file()]
    if len(candidates) > 1:
        both = " and ".join(f"`{candidate.name}`" for candidate in candidates)
        raise ConfigInvalid(f"{folder}: {both} are both there; keep one, or name one with --config", source=str(folder))
    return candidates[0] if candidates else None


def _read(path: Path, label: str) -> bytes:
    try:
        with path.open("rb") as file:  # a device, and a file that grows, have no size
            text = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        raise NotFound("CONFIG_NOT_FOUND", f"configuration {label} does not exist", source=label) from None
    except OSError as error:
        raise ConfigInvalid(f"{label}: cannot be read: {error.strerror}", source=label) from None

    if len(text) > FILE_BYTES_MAX:
        raise ConfigInvalid(f"{label}: too large; the limit is {FILE_BYTES_MAX:,} bytes", source=label)
    return text
