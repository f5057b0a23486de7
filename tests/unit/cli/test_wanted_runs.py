"""The filters of `stepflow runs list`, on a folder: flow, labels, time, and what they refuse."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING

import pytest
from support.runs_folder import CountingFolder

from control_plane.views import RunView
from stepflow.cli.__main__ import main
from stepflow.cli.console import Usage
from stepflow.cli.wanted_runs import WantedRuns, read_labels, read_since
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.rpc.labels import has_labels

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Listed = Callable[..., list[str]]

NOW_MS = 1_800_000_000_000


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CountingFolder:
    for name in ("STEPFLOW_SERVER", "STEPFLOW_STORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return CountingFolder(tmp_path / ".stepflow")


@pytest.fixture
def listed(capfd: pytest.CaptureFixture[str]) -> Listed:
    def run(*options: str) -> list[str]:
        capfd.readouterr()
        assert main(["runs", "list", "--json", *options]) == 0
        return [run["run_id"] for run in json.loads(capfd.readouterr().out)["runs"]]

    return run


def run_view(flow_name: str = "", **labels: object) -> RunView:
    return RunView("0198f3", "f" * 64, flow_name, "failed", 1, 0, 1, 0, NOW_MS, completed_at_ms=NOW_MS, labels=labels)


def test_runs_of_a_folder_are_listed_by_flow_status_and_time(folder: CountingFolder, listed: Listed) -> None:
    greet = asyncio.run(folder.put(flow_name="greet"))
    failed = asyncio.run(folder.put(status=pb.RUN_STATUS_FAILED, flow_name="greet"))
    other = asyncio.run(folder.put(flow_name="other"))
    assert set(listed("--flow", "greet")) == {greet, failed}
    assert listed("--flow", "greet", "--status", "failed") == [failed]
    assert listed("--flow", "gree") == []
    assert listed("--flow", "other", "--limit", "1") == [other], "the limit counts what passes"
    assert listed("--label", "team=red") == []
    assert set(listed("--label", "a=[1]")) == {greet, failed, other}
    assert set(listed("--since", "1970-01-01T00:00:00.001Z")) == {greet, failed, other}
    assert listed("--since", "1970-01-01T00:00:00.002Z") == []


def test_an_empty_list_says_what_was_asked_for(folder: CountingFolder, capfd: pytest.CaptureFixture[str]) -> None:
    asyncio.run(folder.put(flow_name="greet"))
    asked = ("--flow", "x", "--label", "a=1", "--since", "2d", "--status", "failed")
    assert main(["runs", "list", *asked]) == 0
    assert "no failed runs of x with a=1 since 2d in .stepflow\n" in capfd.readouterr().err


def test_a_flow_without_a_name_is_found_by_its_file() -> None:
    wanted = WantedRuns(flow="greet.yaml")
    assert wanted.accepts(run_view(flow="/flows/greet.yaml"), "failed")
    assert not wanted.accepts(run_view("greet", flow="/flows/greet.yaml"), "failed")
    assert wanted.flow_name == "", "a mesh looks for names only"
    assert WantedRuns(flow="greet").flow_name == "greet"


def test_all_labels_must_fit_and_other_values_than_texts_have_a_text() -> None:
    labels = {"team": "red", "batch": True, "count": 1, "empty": ""}
    for texts, expected in (
        (["team=red"], True),
        (["team=red", "count=1", "batch=true", "empty="], True),
        (["team=red", "count=2"], False),
        (["team=Red"], False),
        (["other="], False),
    ):
        assert has_labels(labels, read_labels(texts)) is expected, texts
    assert read_labels(["a=b=c"]) == {"a": "b=c"}


@pytest.mark.parametrize("texts", [["team"], ["=red"], ["team=red", "team=blue"]])
def test_a_label_that_no_run_can_have_is_refused(texts: list[str]) -> None:
    with pytest.raises(Usage, match="--label"):
        read_labels(texts)


def test_since_is_a_duration_or_an_instant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: NOW_MS * 1_000_000)
    assert read_since("24h") == NOW_MS - 24 * 3_600_000
    assert read_since("2d") == NOW_MS - 48 * 3_600_000
    assert read_since("2026-01-31T08:30:00Z") == read_since("2026-01-31T09:30+01:00") == 1_769_848_200_000
    assert read_since("2026-01-31") == int(time.mktime((2026, 1, 31, 0, 0, 0, 0, 0, -1)) * 1_000), "local time"


@pytest.mark.parametrize("text", ["soon", "2", "2026-13-01", "-1d", "9" * 300 + "d"])
def test_a_time_that_is_none_is_refused_with_examples(text: str) -> None:
    with pytest.raises(Usage, match="an instant is 2026-01-31"):
        read_since(text)
