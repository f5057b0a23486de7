"""`stepflow submit` against a mesh: slips are named before any component is called, in the words of `run`."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

import pytest
from support import ROOT, wait_until
from support.mesh import processes

from stepflow import telemetry
from stepflow.cli.__main__ import main
from stepflow.client import BlockingClient

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.etcd import EtcdServer
    from support.mesh import Processes, Service

FOLDER = ROOT / "tests" / "data" / "slips" / "components"
SLIPS = sorted(FOLDER.glob("*.slip"))
SECTION = re.compile(r"^--- (wrong|shown|corrected),? ?(.*)\n", re.MULTILINE)
WAIT_S = 30.0


@pytest.fixture(autouse=True)
def default_logging() -> Iterator[None]:
    yield
    telemetry.configure()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the working folder of the mesh, with the server of the slips."""
    folder = tmp_path_factory.mktemp("mesh")
    for name in ("components.py", "stepflow-config.yml"):
        shutil.copy(FOLDER / name, folder)
    return folder


@pytest.fixture(scope="module")
def mesh(etcd: EtcdServer, folder: Path) -> Iterator[tuple[Processes, Service, Service]]:
    """Give a mesh, its control plane and its host."""
    with processes(etcd, folder, "slips/") as mesh:
        host = mesh.host(folder / "stepflow-config.yml")
        mesh.executor()
        yield mesh, mesh.control_plane(), host


@pytest.fixture
def control(mesh: tuple[Processes, Service, Service]) -> str:
    return mesh[1].address


def sections(slip: Path) -> list[tuple[str, str, str]]:
    _, *parts = SECTION.split(slip.read_text("utf-8"))
    return list(zip(parts[::3], parts[1::3], parts[2::3], strict=True))


def submit(control: str, folder: Path, text: str, *options: str) -> int:
    (folder / "flow.yaml").write_text(text, "utf-8")
    return main(["submit", "--flow", "flow.yaml", "--server", control, "--quiet", *options])


@pytest.mark.parametrize("slip", SLIPS, ids=lambda slip: slip.stem)
def test_a_slip_is_named_before_a_component_is_called_and_its_correction_runs(
    slip: Path,
    control: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    found = {kind: (name, text) for kind, name, text in sections(slip)}
    with BlockingClient(control) as client:
        before = len(list(client.list_runs()))

        status = submit(control, tmp_path, found["wrong"][1])
        name, shown = found["shown"]
        assert capfd.readouterr().err.startswith(shown)
        assert f"exit code {status}" == name
        assert len(list(client.list_runs())) == before
        assert not (folder / "called").exists()

    assert submit(control, tmp_path, found["corrected"][1]) == 0
    (folder / "called").unlink(missing_ok=True)


WRONG = "steps: [{id: a, component: /mine/akk, input: {question: why}}]\noutput: {$step: a}\n"
RIGHT = WRONG.replace("/mine/akk", "/mine/ask")


@pytest.mark.parametrize("option", ["--no-check", "--no-validate-input"])
def test_an_unchecked_flow_is_run_and_fails_at_its_step(
    option: str,
    control: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert submit(control, tmp_path, WRONG, option) == 1
    assert "plugin `mine` has no component for `/mine/akk`" in capfd.readouterr().err


def test_missing_variables_are_an_error_of_the_command_line(
    control: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = RIGHT.replace("why", "{$variable: what}")
    assert submit(control, tmp_path, text) == 2
    said = capfd.readouterr().err
    assert "Variable 'what' has no value" in said
    assert "error[VARIABLES_INVALID]: the flow was not submitted" in said
    assert submit(control, tmp_path, text, "--variables-json", '{"what": "why"}') == 0


def test_a_flow_without_a_host_for_its_plugin_is_queued_with_the_reason_until_one_comes(
    mesh: tuple[Processes, Service, Service],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    parts, plane, host = mesh
    monkeypatch.chdir(tmp_path)
    assert host.end() == 0
    assert submit(plane.address, tmp_path, RIGHT, "--no-wait") == 0
    captured = capfd.readouterr()
    run_id = captured.out.strip()
    assert captured.err.startswith("warning: Step 'a' calls `/mine/ask`, and no live host offers plugin `mine`")

    with BlockingClient(plane.address) as client:
        wait_until(lambda: client.get(run_id).queued_reason, "the run is queued", WAIT_S)
        assert (client.get(run_id).status, client.get(run_id).queued_reason) == ("queued", "no host for plugin mine")
        assert [run.run_id for run in client.list_runs(statuses=["queued"])] == [run_id]

        assert main(["runs", "get", run_id, "--server", plane.address]) == 0
        assert re.search(r"^status: +queued \(no host for plugin mine\)$", capfd.readouterr().out, re.MULTILINE)
        assert main(["runs", "list", "--server", plane.address]) == 0
        assert "queued (no host for plugin mine)" in capfd.readouterr().out

        parts.host(folder / "stepflow-config.yml")
        ended = client.wait(run_id, timeout_s=WAIT_S)
        assert (ended.status, ended.queued_reason) == ("completed", "")
