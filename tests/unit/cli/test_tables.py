"""Tables of the command line: whole in a pipe, and as wide as the terminal on a terminal."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from control_plane.view_records import RunView
from stepflow.cli import tables
from stepflow.cli.commands.cluster import _print_cluster
from stepflow.cli.display.runs import print_runs
from stepflow.cli.output import write_results
from stepflow.cli.tables import json_text, print_json, print_json_with_list, print_table
from stepflow.client.model import ClusterInfo, ExecutorInfo, HostInfo, PluginInfo, StoreInfo

RUN_ID = "018f0000-0000-7000-8000-0000000000{:02}"


def runs(count: int) -> list[tuple[RunView, str]]:
    return [
        (
            RunView(
                RUN_ID.format(index),
                flow_id="f" * 64,
                flow_name="a-flow-with-a-long-name",
                status="failed",
                items_total=1_000,
                items_completed=900,
                items_failed=100,
                items_cancelled=0,
                created_at_ms=1_000,
                completed_at_ms=3_000_000,
            ),
            "interrupted",
        )
        for index in range(count)
    ]


def shown(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], columns: int | None) -> list[str]:
    monkeypatch.setattr(tables, "_terminal_columns", lambda: columns)
    print_runs(runs(2))
    return capfd.readouterr().out.splitlines()


@pytest.mark.parametrize("columns", [60, 80, 100, 200])
def test_a_list_of_runs_fits_the_terminal_and_each_id_can_be_typed(
    columns: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    heads, *rows = shown(monkeypatch, capfd, columns)
    assert max(map(len, [heads, *rows])) <= columns
    assert heads.split()[:2] == ["RUN_ID", "STATUS"]
    for index, row in enumerate(rows):
        cell, status = row.split()[:2]
        assert RUN_ID.format(index).endswith(cell.removeprefix("…"))
        assert len(cell.removeprefix("…")) >= 8
        assert status == "interrupted"


def test_a_pipe_gets_the_whole_table(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    _, *rows = shown(monkeypatch, capfd, None)
    assert rows[1].startswith(f"{RUN_ID.format(1)}  interrupted  a-flow-with-a-long-name  1000/1000 (100 failed)  ")


def test_the_reason_of_a_queued_run_is_cut_and_no_status(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tables, "_terminal_columns", lambda: 60)
    [(run, _)] = runs(1)
    queued = dataclasses.replace(run, queued_reason="no host for plugin a-plugin-with-a-very-long-name")
    print_runs([(queued, "queued"), (run, "interrupted")])
    lines = capfd.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60
    assert " ".join(lines[1].split()[1:3]).startswith("queued (no")
    assert lines[2].split()[1] == "interrupted"


CLUSTER = ClusterInfo(
    leader_id="control-plane-0",
    control_plane_id="control-plane-0",
    executors=[
        ExecutorInfo(f"executor-{n}-5d8f9c7b6c-x2x8p", "10.244.1.17:7841", 250, 1000, 9, n > 0) for n in range(2)
    ],
    hosts=[
        HostInfo(
            "host-python-7c9d8b5f4-qwert",
            "10.244.1.18:7842",
            64,
            draining=True,
            plugins=[PluginInfo(name, "stepflow", "ready", "", 3) for name in ("builtin", "search", "llm-gateway")],
        )
    ],
    runs_pending=12_345,
    store=StoreInfo(1 << 31, 1 << 32, 1 << 33, 1e7, 1e7, 1_234.5, 1_234.5, 125_000, 1_234, 1_234_567, 1 << 36, 4096),
)


@pytest.mark.parametrize("columns", [60, 80, 100])
def test_the_status_of_a_cluster_fits_the_terminal_and_no_word_is_lost(
    columns: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    _print_cluster(CLUSTER)
    whole = capfd.readouterr().out.partition("\n\n")[0]
    monkeypatch.setattr(tables, "_terminal_columns", lambda: columns)
    _print_cluster(CLUSTER)
    shown = capfd.readouterr().out
    assert max(map(len, shown.splitlines())) <= columns
    assert "draining" in shown
    assert shown.partition("\n\n")[0].split() == whole.split()


def test_the_widest_cells_are_cut_first(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(tables, "_terminal_columns", lambda: 30)
    print_table(("NAME", "TEXT"), [("short", "a text that is much too long for this"), ("other", "x")])
    assert capfd.readouterr().out.splitlines() == [
        "NAME   TEXT",
        "short  a text that is much to…",
        "other  x",
    ]


def test_json_is_compact_in_a_pipe_and_indented_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert json_text({"a": [1]}) == b'{"a":[1]}'
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert json_text({"a": [1]}) == b'{\n  "a": [\n    1\n  ]\n}'


@pytest.mark.parametrize("elements", [[], [1], [{"a": [1, {"b": "x\ny"}], "c": {}}, [], "z"]])
def test_a_list_that_comes_in_parts_is_indented_on_a_terminal_too(
    elements: list[Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    print_json({"run_id": "r", "results": elements})
    whole = capfd.readouterr().out
    print_json_with_list({"run_id": "r"}, "results", iter(elements))
    assert capfd.readouterr().out == whole


def test_a_single_result_is_indented_on_a_terminal_and_those_of_a_batch_are_lines(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    result = {"outcome": "success", "result": [1]}
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    write_results([result], None, batch=False)
    assert capfd.readouterr().out.splitlines()[:2] == ["{", '  "outcome": "success",']
    write_results([result, result], None, batch=True)
    assert len(capfd.readouterr().out.splitlines()) == 2
