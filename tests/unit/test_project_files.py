"""Files for contributors and CI: they parse, name existing files, and hold no logic that `make` lacks."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from limits import GENERATED
from support import ROOT

YAML_FILES = sorted([ROOT / ".pre-commit-config.yaml", *(ROOT / ".github").rglob("*.yml")])
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
COMMAND = re.compile(r"\.ci/run|make ([a-z0-9-]+)( [A-Z]+=\S+)*")
"""All that a workflow may run: one command, which a developer can run too."""

PATH = re.compile(r"`((?:[a-z_.*]+/)+(?:[A-Za-z_.*0-9-]+)?)`")


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def targets() -> set[str]:
    return set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text("utf-8"))


@pytest.mark.parametrize("path", YAML_FILES, ids=named)
def test_yaml_parses(path: Path) -> None:
    assert isinstance(load(path), dict)


@pytest.mark.parametrize("path", WORKFLOWS, ids=named)
def test_workflows_run_only_what_make_has(path: Path) -> None:
    commands = [step["run"] for job in load(path)["jobs"].values() for step in job["steps"] if "run" in step]
    assert commands
    for command in commands:
        found = COMMAND.fullmatch(command)
        assert found, command
        assert found[1] is None or found[1] in targets()


@pytest.mark.parametrize("path", WORKFLOWS, ids=named)
def test_workflows_start_without_the_right_to_write(path: Path) -> None:
    assert load(path)["permissions"] == {"contents": "read"}


def test_hooks_before_a_commit_are_targets_of_make() -> None:
    (repo,) = load(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repo["repo"] == "local"
    assert {hook["entry"] for hook in repo["hooks"]} == {"make fmt", "make lint"}
    assert all(hook["language"] == "system" for hook in repo["hooks"])


def test_the_development_container_sets_the_project_up() -> None:
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text("utf-8"))
    assert container["postCreateCommand"] == "make setup"


def test_generated_code_is_marked_for_reviewers() -> None:
    attributes = (ROOT / ".gitattributes").read_text("utf-8").splitlines()
    assert {f"{folder}/** linguist-generated" for folder in GENERATED} <= set(attributes)


def test_the_guide_for_contributors_names_what_exists() -> None:
    paths = PATH.findall((ROOT / "CONTRIBUTING.md").read_text("utf-8"))
    assert len(paths) > 20
    assert [path for path in paths if not any(ROOT.glob(path.rstrip("/")))] == []
