"""The contents of the image: the wheel, installed outside of the checkout, and the Dockerfile."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
from typing import TYPE_CHECKING, Any
from uuid import uuid4
from zipfile import ZipFile

import pytest
from support import ROOT, free_port, server_venv, text_of, wait_until
from support.etcd import running_etcd
from support.health import SERVING, health_of

from stepflow.process_privacy import SWITCH
from stepflow.rpc.health import READINESS

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(400)  # the first test installs our dependencies

DOCKERFILE = ROOT / "deploy" / "k8s" / "Dockerfile"
SERVICES = ("control_plane", "executor", "component_host")

BUILD_TIMEOUT_S = 120
READY_S = 60.0


def checked(command: list[str], **options: Any) -> str:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=BUILD_TIMEOUT_S,
        check=False,
        stdin=subprocess.DEVNULL,
        **options,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions with their arguments, continued lines joined."""
    text = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE))
    lines = (line.strip().partition(" ") for line in text.splitlines() if line.strip())
    return [(name, arguments.strip()) for name, _, arguments in lines]


def copied() -> list[str]:
    """Return what the Dockerfile copies from the checkout."""
    return [
        source
        for name, arguments in instructions()
        if name == "COPY" and not arguments.startswith("--from")
        for source in arguments.split()[:-1]
    ]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the wheel, built as in the image: from a folder that has what the Dockerfile copies, and nothing else."""
    context, out = tmp_path_factory.mktemp("context"), tmp_path_factory.mktemp("wheels")
    for source in copied():
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, context / source, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, context / source)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    pip = server_venv(project["build-system"]["requires"], "stepflow-mesh-build") / "pip"
    flags = ["--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--quiet"]
    checked([str(pip), "wheel", *flags, "--wheel-dir", str(out), str(context)])
    (made,) = out.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Return a Python with the project's dependencies but not the project, and an environment that adds the wheel."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bin_folder = server_venv(project["dependencies"], "stepflow-mesh-dependencies")
    site = tmp_path_factory.mktemp("site")
    flags = ["--no-deps", "--no-index", "--disable-pip-version-check", "--quiet"]
    checked([str(bin_folder / "pip"), "install", *flags, "--target", str(site), str(wheel)])
    env = {"PATH": os.defpath, "PYTHONPATH": str(site), "HOME": str(tmp_path_factory.mktemp("home"))}
    return bin_folder / "python", env


def test_the_wheel_has_the_four_packages_and_nothing_else(wheel: Path) -> None:
    names = ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"stepflow", *SERVICES}
    assert [name for name in names if name.endswith(".pyc")] == []


@pytest.mark.parametrize("service", SERVICES)
def test_the_entry_points_start_from_the_wheel(
    installed: tuple[Path, dict[str, str]], tmp_path: Path, service: str
) -> None:
    python, env = installed
    assert "--health-listen" in checked([str(python), "-m", service, "--help"], cwd=tmp_path, env=env)
    where = checked([str(python), "-c", f"import {service}; print({service}.__file__)"], cwd=tmp_path, env=env)
    assert where.startswith(env["PYTHONPATH"])


def test_the_three_services_run_from_the_wheel(installed: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    python, env = installed
    started: list[subprocess.Popen[bytes]] = []
    with running_etcd(tmp_path / "etcd", "--unsafe-no-fsync") as etcd:
        try:
            for service in SERVICES:
                probed = f"127.0.0.1:{free_port()}"
                options = ["--etcd", etcd.endpoint, "--etcd-prefix", f"{uuid4().hex[:8]}/", "--health-listen", probed]
                options += ["--listen", "127.0.0.1:0", "--blobs", str(tmp_path / "blobs")]
                out, log = tmp_path / f"{service}.out", tmp_path / f"{service}.log"
                with out.open("wb") as out_file, log.open("wb") as log_file:
                    process = subprocess.Popen(
                        [str(python), "-m", service, *options], cwd=tmp_path, env=env, stdout=out_file, stderr=log_file
                    )
                started.append(process)
                wait_until(lambda: text_of(out) or process.poll() is not None, f"{service} says ready", READY_S)  # noqa: B023  # called before the next turn
                assert process.poll() is None, text_of(log)
                assert json.loads(text_of(out))["service"] == service
                assert health_of(probed, READINESS) == SERVING
            for process in started:
                process.terminate()
            assert [process.wait(30) for process in started] == [0, 0, 0]
        finally:
            for process in started:
                process.kill()


# -- the Dockerfile -----------------------------------------------------------------------------------------------


def test_what_the_dockerfile_copies_is_there_and_not_ignored() -> None:
    ignored = (DOCKERFILE.parent / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    assert set(copied()) == allowed
    assert [source for source in copied() if not (ROOT / source).exists()] == []


def test_the_image_keeps_the_environment_of_a_host_from_its_component_servers() -> None:
    environment = " ".join(arguments for name, arguments in instructions() if name == "ENV").split()
    assert f"{SWITCH}=1" in environment


def test_the_last_stages_are_small_and_nobodys_root() -> None:
    stages: dict[str, list[tuple[str, str]]] = {}
    bases: dict[str, str] = {}
    name = ""
    for instruction, arguments in instructions():
        if instruction == "FROM":
            name = arguments.split()[-1]
            bases[name] = arguments.split()[0]
            stages[name] = []
        elif name:
            stages[name].append((instruction, arguments))
    assert bases["runtime-base"] == bases["build"] == "${PYTHON}"
    base = dict(stages["runtime-base"])
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", base["USER"]), "a number: Kubernetes cannot check names"
    assert base["STOPSIGNAL"] == "SIGTERM"
    assert base["COPY"] == "--from=build /opt/stepflow /opt/stepflow"
    assert "uninstall --yes wheel setuptools pip" in base["RUN"]
    targets = {"control-plane": "control_plane", "executor": "executor", "component-host": "component_host"}
    for target, module in targets.items():
        assert bases[target] == "runtime-base"
        assert json.loads(dict(stages[target])["ENTRYPOINT"]) == ["python", "-m", module]
    assert list(stages)[-1] == "runtime", "what a build without --target makes, and the manifests use"
    assert bases["runtime"] == "runtime-base"
    assert [one for stage in stages for one in stages[stage] if one[0] == "USER"] == [("USER", base["USER"])]
