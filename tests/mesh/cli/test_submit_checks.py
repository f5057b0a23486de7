"""`stepflow submit` against a mesh: slips are named before any component is called, in the words of `run`."""

from __future__ import annotations

import re
import shutil
import sys
from typing import TYPE_CHECKING

import pytest
from support import wait_until
from support.mesh import processes
from support.slips import COMPONENTS, Slip, options, slips_of, write

from stepflow import telemetry
from stepflow.cli.__main__ import main
from stepflow.client import BlockingClient

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.etcd import EtcdServer
    from support.mesh import Processes, Service

OF_COMPONENTS = slips_of(COMPONENTS)
REFUSED_BY_RUN = "the flow was not run; correct the errors listed above\n"
REFUSED = "the flow was not submitted; correct the errors listed above\n"
WAIT_S = 30.0


@pytest.fixture(autouse=True)
def default_logging() -> Iterator[None]:
    yield
    telemetry.configure()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the working folder of the mesh, with the server of the slips."""
    folder = tmp_path_factory.mktemp("mesh")
    config = (COMPONENTS / "stepflow-config.yml").read_text("utf-8")
    (folder / "stepflow-config.yml").write_text(config.replace("command: python", f"command: {sys.executable}"))
    shutil.copy(COMPONENTS / "components.py", folder)
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


def submit(control: str, *options: str) -> int:
    return main(["submit", "--flow", "flow.yaml", "--server", control, "--quiet", *options])


@pytest.mark.parametrize("slip", OF_COMPONENTS, ids=lambda slip: slip.name)
def test_a_slip_is_named_before_a_component_is_called_and_its_correction_runs(
    slip: Slip,
    control: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)

    # 1. The mesh refuses errors with the text of `run`; no run exists, and no component was called.
    write(slip.wrong)
    with BlockingClient(control) as client:
        before = [run.run_id for run in client.list_runs()]
        status = submit(control, *options(slip.variables))
        # gRPC reports readers of one process in each other's way, which is harmless.
        lines = capfd.readouterr().err.splitlines(keepends=True)
        shown = "".join(line for line in lines if "PollerCompletionQueue" not in line)
        if slip.exit_code:
            code = "error[VARIABLES_INVALID]: " if slip.exit_code == 2 else "error[FLOW_INVALID]: "
            findings = slip.shown.removesuffix(f"{code}{REFUSED_BY_RUN}")
            assert (shown, status) == (findings + code + REFUSED, slip.exit_code)
            assert [run.run_id for run in client.list_runs()] == before
            assert not (folder / "called").exists()
        else:
            first, *_ = shown.splitlines()
            assert first.removeprefix("warning: ") in slip.shown.replace("  WARNING ", "")

    # 2. The corrected flow runs.
    write(slip.corrected)
    assert submit(control, *options(slip.corrected_variables)) == 0
    (folder / "called").unlink(missing_ok=True)


WRONG = "steps: [{id: a, component: /mine/akk, input: {question: why}}]\noutput: {$step: a}\n"
RIGHT = WRONG.replace("/mine/akk", "/mine/ask")


def submit_text(control: str, text: str, *options: str) -> int:
    write({"flow.yaml": text})
    return submit(control, *options)


def test_validate_asks_a_mesh_for_its_components_and_types(
    control: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write({"flow.yaml": f"name: n\ndescription: d\n{WRONG}"})
    asked = ["validate", "--flow", "flow.yaml", "--server", control]
    assert main(asked) == 1
    assert "Step 'a' calls `/mine/akk`, which does not exist; did you mean `/mine/ask`?" in capfd.readouterr().err

    write({"flow.yaml": f"name: n\ndescription: d\n{RIGHT}"})
    assert main([*asked, "--type-check", "--strict"]) == 0
    assert capfd.readouterr().err == "✅ Validation passed with no errors\n"
    assert main([*asked, "--servers"]) == 2


@pytest.mark.parametrize("option", ["--no-check", "--no-validate-input"])
def test_an_unchecked_flow_is_run_and_fails_at_its_step(
    option: str,
    control: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert submit_text(control, WRONG, option) == 1
    assert "plugin `mine` has no component for `/mine/akk`" in capfd.readouterr().err


def test_missing_variables_are_an_error_of_the_command_line(
    control: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = RIGHT.replace("why", "{$variable: what}")
    assert submit_text(control, text) == 2
    said = capfd.readouterr().err
    assert "Variable 'what' has no value" in said
    assert "error[VARIABLES_INVALID]: the flow was not submitted" in said
    assert submit_text(control, text, "--variables-json", '{"what": "why"}') == 0


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
    assert submit_text(plane.address, RIGHT, "--no-wait") == 0
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
