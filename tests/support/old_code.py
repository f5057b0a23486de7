"""The code of the last landed version, from git, for tests of updates."""

from __future__ import annotations

import io
import subprocess
import tarfile
from typing import TYPE_CHECKING

import pytest

from . import ROOT

if TYPE_CHECKING:
    from pathlib import Path

OLD_COMMIT = "138f12d18758c0edff455ce7d92a793d169f2d8c"
"""The last landed version before this one. Raise it with each landing, so that every update is tried from its
predecessor."""

BEFORE_SEGMENTS = "9ad76989e1a201151c5446c7a0ded131d5036d62"
"""The last landed version that kept ended runs in the store, and whose engine had version 1."""

OLD_PATHS = ("stepflow", "control_plane", "executor", "component_host", "tests/data/servers")


def old_checkout(folder: Path, commit: str = OLD_COMMIT) -> Path:
    """Write old code into a folder and return it. Skips the test if the history does not have it."""
    command = ["git", "archive", "--format=tar", commit, *OLD_PATHS]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, timeout=60)
    except FileNotFoundError:
        pytest.skip("git is not installed, so the old code cannot be taken from the history")
    if done.returncode != 0:
        pytest.skip(f"the history has no commit {commit}: {done.stderr.decode(errors='replace').strip()}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


__all__ = ["BEFORE_SEGMENTS", "OLD_COMMIT", "old_checkout"]
