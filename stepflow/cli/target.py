"""The target of a command: a mesh, or a folder of runs on this machine. One rule for every command.

1. `--server`, `--store`: one of them.
2. The environment: `STEPFLOW_SERVER`, else `STEPFLOW_STORE`.
3. A live `stepflow dev` of this folder.
4. `.stepflow` in this folder.

A command that only a mesh can answer passes over folders, and asks `DEFAULT_SERVER` at last. A command that only a
folder can answer passes over meshes. A terminal is told the target that it did not name.

Starting is fast: a command line without a target imports nothing that the engine needs.
"""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stepflow.cli import console
from stepflow.cli.options import DEFAULT_FOLDER, DEFAULT_SERVER, DEV_FOLDER

if TYPE_CHECKING:
    from collections.abc import Iterator

PROBE_S = 0.2
"""Longest time to connect to a mesh that the command line does not name."""

GIVEN = "the command line"
DEV = "`stepflow dev` of this folder"
FALLBACK = "the default"


@dataclass(frozen=True, slots=True)
class CliTarget:
    """A mesh (`server`) or a folder of runs (`folder`); the other one is None. `chosen_by` names the rule."""

    server: str | None
    folder: Path | None
    chosen_by: str

    def __str__(self) -> str:
        return str(self.folder) if self.server is None else f"the mesh at {self.server}"

    @property
    def is_usual(self) -> bool:
        """True for the folder that a command finds without an option."""
        return self.chosen_by == FALLBACK and self.folder is not None

    @property
    def option(self) -> str:
        """The option that names the target in a suggested command."""
        if self.server is None:
            assert self.folder is not None
            return f"--store {shlex.quote(str(self.folder))}"
        return f"--server {shlex.quote(self.server)}"


def choose_target(server: str | None = None, store: Path | None = None, *, quiet: bool = False) -> CliTarget:
    """Return the mesh or folder of a command that both can answer; tell a terminal. Raises: Usage (two are named).

    A `server` that equals `STEPFLOW_SERVER` counts as one of the environment: the parser fills it in.
    """
    server = _named(server)
    if server is not None and store is not None:
        raise console.Usage("OPTIONS_EXCLUSIVE", "--server and --store exclude each other; give one of them")
    target = next(_candidates(server, store))
    _tell(target, quiet=quiet)
    return target


def choose_mesh(server: str | None = None, *, quiet: bool = False) -> str:
    """Return the address of the mesh of a command that only a mesh can answer; tell a terminal."""
    target = _mesh(server)
    _tell(target, quiet=quiet)
    assert target.server is not None
    return target.server


def choose_folder(store: Path | None = None, *, quiet: bool = False) -> Path:
    """Return the folder of a command that only a folder can answer; tell a terminal, unless it is the usual one."""
    target = next(each for each in _candidates(None, store) if each.folder is not None)
    if target.chosen_by != FALLBACK:
        _tell(target, quiet=quiet)
    assert target.folder is not None
    return target.folder


def known_mesh() -> str | None:
    """Return the mesh that the environment or a live `stepflow dev` of this folder names."""
    return next((each.server for each in _candidates(None, None) if each.server is not None), None)


def other_targets(target: CliTarget) -> Iterator[CliTarget]:
    """Yield the other places that may have what a target lacks: meshes that accept connections, and folders."""
    seen = {str(target)}
    meshes = CliTarget(DEFAULT_SERVER, None, FALLBACK)
    for each in (*_candidates(None, None), meshes):
        if str(each) not in seen:
            seen.add(str(each))
            if each.server is None or _accepts(each.server):
                yield each


def mesh_option(server: str) -> str:
    """Return the `--server` option of a suggested command that only a mesh answers; empty if it finds it without."""
    return "" if _mesh(None).server == server else f" --server {shlex.quote(server)}"


def folder_option(folder: Path) -> str:
    """Return the `--store` option of a suggested command that only a folder answers; empty if it finds it without."""
    usual = next(each.folder for each in _candidates(None, None) if each.folder is not None)
    return "" if usual.absolute() == folder.absolute() else f" --store {shlex.quote(str(folder))}"


def _named(server: str | None) -> str | None:
    """Return a server that the command line names, and not the environment."""
    return None if server == os.environ.get("STEPFLOW_SERVER") else server


def _mesh(server: str | None) -> CliTarget:
    found = (each for each in _candidates(server, None) if each.server is not None)
    return next(found, CliTarget(DEFAULT_SERVER, None, FALLBACK))


def _candidates(server: str | None, store: Path | None) -> Iterator[CliTarget]:
    """Yield the targets in the order of the rule."""
    if _named(server) is not None:
        yield CliTarget(server, None, GIVEN)
    if store is not None:
        yield CliTarget(None, store, GIVEN)
    if named := os.environ.get("STEPFLOW_SERVER"):
        yield CliTarget(named, None, "STEPFLOW_SERVER")
    if named := os.environ.get("STEPFLOW_STORE"):
        yield CliTarget(None, Path(named), "STEPFLOW_STORE")
    if (DEV_FOLDER / "lock").exists():
        from stepflow.dev.folder import live_server

        if live := live_server(DEV_FOLDER):
            yield CliTarget(live, None, DEV)
    yield CliTarget(None, DEFAULT_FOLDER, FALLBACK)


def _tell(target: CliTarget, *, quiet: bool) -> None:
    if target.chosen_by != GIVEN and not quiet and sys.stderr.isatty():
        console.say(console.styled(f"target: {target} ({target.chosen_by})", "dim"))


def _accepts(server: str) -> bool:
    """Return True if something accepts connections at the first of the addresses."""
    import socket

    host, _, port = server.partition(",")[0].strip().rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), PROBE_S):
            return True
    except (OSError, ValueError):
        return False


__all__ = [
    "CliTarget",
    "choose_folder",
    "choose_mesh",
    "choose_target",
    "folder_option",
    "known_mesh",
    "mesh_option",
    "other_targets",
]
