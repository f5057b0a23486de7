"""Who may import whom (ARCHITECTURE.md), read from the source, so that an import inside a function counts as well."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SERVICES = ("control_plane", "executor", "component_host")

PURE = (
    "stepflow/flow",
    "stepflow/run",
    "stepflow/retry.py",
    "stepflow/routing",
    "stepflow/errors.py",
    "stepflow/codec.py",
    "stepflow/pull",
)
"""Files and folders; a name that does not exist is fine as long as its sibling does."""

IMPURE_MODULES = (
    "asyncio", "concurrent", "grpc", "http", "httpx", "logging", "multiprocessing", "obstore", "os", "random", "select",
    "selectors", "shutil", "signal", "socket", "sqlite3", "ssl", "stepflow.store", "stepflow.telemetry", "subprocess",
    "tempfile", "threading", "time", "urllib", "uvloop",
)  # fmt: skip
"""Clocks, randomness, I/O, concurrency: a pure module gets their results as arguments."""

COMPOSITION = "stepflow/embedded/mesh.py"
"""The one module of `stepflow/` that may know the services: it puts them into one process."""


def sources(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return [path for path in found if not path.is_relative_to(ROOT / "stepflow/mesh")]


def imports(path: Path) -> list[tuple[int, str]]:
    return list(imports_in(path.read_text(), path.relative_to(ROOT).parts[:-1]))


def imports_in(source: str, package: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """Yield line and full name of every import, also of those for type checking only."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, node.module) if node.module else base)
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def is_within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def offences(paths: list[Path], banned: tuple[str, ...]) -> list[str]:
    return sorted(
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in paths
        for line, name in imports(path)
        if any(is_within(name, module) for module in banned)
    )


def pure_sources() -> list[Path]:
    found = sources(*(name for name in PURE if (ROOT / name).is_dir()))
    return found + [ROOT / name for name in PURE if (ROOT / name).is_file()]


def test_pure_modules_import_no_clock_no_randomness_no_concurrency_and_no_io() -> None:
    assert offences(pure_sources(), IMPURE_MODULES) == []


def test_shared_code_imports_no_service() -> None:
    shared = [path for path in sources("stepflow") if path != ROOT / COMPOSITION]
    assert offences(shared, SERVICES) == []


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_imports_no_other_service(service: str) -> None:
    others = tuple(other for other in SERVICES if other != service)
    assert offences(sources(service), (*others, "stepflow.embedded", "stepflow.cli")) == []


def test_nothing_imports_the_command_line() -> None:
    others = [path for path in sources("stepflow") if not path.is_relative_to(ROOT / "stepflow/cli")]
    assert offences(others, ("stepflow.cli",)) == []


def test_product_code_imports_no_tests_and_no_benchmarks() -> None:
    assert offences(sources("stepflow", *SERVICES), ("tests", "benchmarks", "pytest", "hypothesis")) == []


def test_the_rules_see_the_code() -> None:
    """An empty list of sources would pass every test above."""
    assert len(pure_sources()) > 5
    assert len(sources("stepflow")) > len(pure_sources())


def test_imports_of_every_form_are_seen() -> None:
    source = """
import a.b
from c import d
def f():
    from e import g
if TYPE_CHECKING:
    import h as i
from . import j
from ..k import l
"""
    found = {name for _, name in imports_in(source, ("top", "sub"))}
    assert found == {"a.b", "c.d", "e.g", "h", "top.sub.j", "top.k.l"}
