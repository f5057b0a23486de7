"""`stepflow runs prune` on a folder: what it deletes, what it says, and what it never touches."""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING

import pytest
from support.runs_folder import CountingFolder

from stepflow.cli.__main__ import main
from stepflow.mesh.v1 import journal_pb2 as pb

if TYPE_CHECKING:
    from pathlib import Path

DAY_S = 24 * 3600


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CountingFolder:
    monkeypatch.delenv("STEPFLOW_SERVER", raising=False)
    monkeypatch.delenv("STEPFLOW_STORE", raising=False)
    monkeypatch.chdir(tmp_path)
    return CountingFolder(tmp_path / ".stepflow")


def end(folder: CountingFolder, ago_s: float) -> str:
    return asyncio.run(folder.end(ago_s=ago_s, blob_bytes=10))


def left(folder: CountingFolder) -> set[str]:
    return set(folder.run_ids())


def test_a_dry_run_says_what_a_prune_deletes_and_deletes_nothing(
    folder: CountingFolder, capfd: pytest.CaptureFixture[str]
) -> None:
    old, young = [end(folder, 3 * DAY_S), end(folder, 2 * DAY_S)], end(folder, 3600)
    command = ["runs", "prune", "--older-than", "1d", "--json"]

    assert main([*command, "--dry-run"]) == 0
    shown = capfd.readouterr()
    assert json.loads(shown.out) == {"run_ids": old, "deleted": False}
    assert [line.split(",")[0] for line in shown.err.splitlines()[:2]] == [f"would delete {run_id}" for run_id in old]
    assert left(folder) == {*old, young}

    assert main(command) == 0
    shown = capfd.readouterr()
    assert json.loads(shown.out) == {"run_ids": old, "deleted": True}
    assert "deleted 2 run(s) in .stepflow" in shown.err
    assert left(folder) == {young}
    assert {path.name for path in (folder.folder / "blobs").iterdir()} == {young}


def test_live_and_interrupted_runs_and_those_of_the_last_minute_stay(
    folder: CountingFolder, capfd: pytest.CaptureFixture[str]
) -> None:
    recent = end(folder, 5)
    interrupted = asyncio.run(folder.put(status=pb.RUN_STATUS_RUNNING))
    locked = end(folder, 9 * DAY_S)
    with folder.lock(locked) as held:
        assert held
        assert main(["runs", "prune", "--older-than", "1ms"]) == 0
    assert left(folder) == {recent, interrupted, locked}
    assert "deleted 0 run(s)" in capfd.readouterr().err


def test_a_run_whose_process_was_killed_at_its_end_is_found(folder: CountingFolder) -> None:
    killed = asyncio.run(folder.put(ended_at_ms=2))
    assert killed in left(folder)
    assert main(["runs", "prune", "--older-than", "1d", "-q"]) == 0
    assert left(folder) == set()


def test_all_of_many_runs_are_deleted_at_once(
    folder: CountingFolder, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("stepflow.embedded.folder_retention.RUNS_REMOVED_MAX", 2)
    monkeypatch.setattr("stepflow.embedded.folder_retention.RUNS_EXAMINED_MAX", 2)
    for _ in range(5):
        asyncio.run(folder.put(ended_at_ms=2))
    assert main(["runs", "prune", "--older-than", "1d"]) == 0
    assert len(re.findall(r"^deleted [0-9a-f-]{36}, ended", capfd.readouterr().err, re.MULTILINE)) == 5


@pytest.mark.parametrize("text", ["", "7", "soon", "0d", "-1d"])
def test_a_wrong_duration_deletes_nothing(text: str, folder: CountingFolder, capfd: pytest.CaptureFixture[str]) -> None:
    old = end(folder, 9 * DAY_S)
    assert main(["runs", "prune", f"--older-than={text}"]) == 2
    assert "--older-than" in capfd.readouterr().err
    assert left(folder) == {old}


def test_the_age_must_be_given(folder: CountingFolder) -> None:
    assert main(["runs", "prune"]) == 2
