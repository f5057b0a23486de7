"""Import rules between packages: the contracts of `pyproject.toml` ([tool.importlinter]), checked by import-linter.

Every import counts, including those in functions and under TYPE_CHECKING.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
from support import ROOT

LINTER = Path(sys.executable).with_name("lint-imports")

SERVICES = ("control_plane", "executor", "component_host")

CONTRACTS = {
    contract["id"]: contract["name"]
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
}

CIRCLE = {
    "circle/__init__.py": "",
    "circle/a.py": "def first():\n    from circle.b import second\n",
    "circle/b.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from circle.c import third\n",
    "circle/c.py": "from . import a\n",
}
"""A circle of three kinds of import: inside a function, for types only, at load."""

CIRCLE_CONTRACT = """
[tool.importlinter]
root_packages = ["circle"]
[[tool.importlinter.contracts]]
name = "No circle"
type = "acyclic_siblings"
ancestors = ["circle"]
"""


def lint(folder: Path) -> str:
    """Run the contracts of a folder's `pyproject.toml` and return the report."""
    command = [str(LINTER), "--no-logo", "--no-cache", "pyproject.toml"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, check=False)
    assert "Contracts:" in done.stdout, done.stdout + done.stderr
    return done.stdout


@cache
def report() -> str:
    return lint(ROOT)


def assert_kept(contract_id: str) -> None:
    assert f"{CONTRACTS[contract_id]} KEPT" in report(), report()


def test_pure_modules_import_no_clock_no_randomness_no_concurrency_and_no_io() -> None:
    assert_kept("pure")


def test_shared_code_imports_no_service() -> None:
    assert_kept("services")


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_imports_no_other_service(service: str) -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert service in text[text.index('id = "services"') :].partition("[[")[0], "the contract names this service"
    assert_kept("services")


def test_nothing_imports_the_command_line() -> None:
    assert_kept("shared")


def test_product_code_imports_no_tests_and_no_benchmarks() -> None:
    assert_kept("tests")


def test_the_sdk_brings_nothing_of_the_engine() -> None:
    assert_kept("sdk")


def test_no_import_circle_of_any_kind_exists() -> None:
    assert_kept("circles")


def test_the_rules_see_the_code() -> None:
    """A linter that analysed nothing would pass every test above."""
    files = sum(1 for top in ("stepflow", *SERVICES) for _ in (ROOT / top).rglob("*.py"))
    analysed = int(report().partition("Analyzed ")[2].partition(" files")[0])
    assert files > 200
    assert analysed >= files


def test_imports_of_every_form_are_seen(tmp_path: Path) -> None:
    for name, text in {**CIRCLE, "pyproject.toml": CIRCLE_CONTRACT}.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert "No circle BROKEN" in lint(tmp_path)
