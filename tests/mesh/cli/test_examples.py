"""The example flows give the same results through a mesh as embedded."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
from support import ROOT, server_venv
from support.dev import dev_mesh

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("name", ["basic", "durability", "hello"])
def test_an_example_gives_the_same_result_through_the_mesh_as_embedded(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / name
    shutil.copytree(ROOT / "examples" / name, folder, ignore=shutil.ignore_patterns(".stepflow", "ledger.txt"))
    monkeypatch.setenv("STEPFLOW_PY", str(server_venv(["stepflow-py==0.7.0"], "stepflow-py-0.7.0") / "python"))
    given = ["--input", "input.json"] if (folder / "input.json").exists() else ["--input-json", "{}"]
    with dev_mesh(folder) as mesh:
        done = [mesh.cli(command, "--flow", "flow.yaml", *given, "-q") for command in ("run", "submit")]
    embedded, through = (json.loads(one.stdout) for one in done)
    assert embedded == through, [one.stderr for one in done]
    assert embedded["outcome"] == "success"
