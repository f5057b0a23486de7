"""Rules that no linter checks: sizes of files, banned words, a reason for each ignore, links."""

import ast
import io
import os
import re
import tokenize
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

CODE = ("stepflow", "control_plane", "executor", "component_host")
ALL_CODE = (*CODE, "tests", "benchmarks", "examples", "scripts")
SKIPPED_FOLDERS = {
    ".venv",
    ".cache",
    ".git",
    ".stepflow",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    ".hypothesis",
    ".import_linter_cache",
    "__pycache__",
}

GENERATED = ("stepflow/mesh/v1", "stepflow/etcd/v1", "stepflow/pull/v1")
"""Written by `make proto`."""

LINES_MAX = 600
TEST_LINES_MAX = 900
"""Tests are looked up, not read from top to bottom."""

LONG_FILES: dict[str, str] = {}
"""Path → why this long file is one idea. Keep it short: it is the list of the project's debts."""

CLASS_METHODS_MAX = 15
CLASS_LINES_MAX = 300

LARGE_CLASSES: dict[str, str] = {
    "BlockingClient": "public API: the blocking twin of each method of Client",
    "Client": "public API: one method per call of five services",
    "Context": "the public context of a component: one method per fact or request",
    "SqliteStore": "`Store` with all its operations, on both sides of a thread",
    "Engine": "the operations of a transaction, over one connection",
    "Batch": "the same, for the requests of one commit",
    "FencedWriter": "one protocol: fence, cursor, order, retry",
    "EtcdWatch": "one protocol: resume, relist, progress",
    "PartitionDriver": "facts, decisions and output commit change one state between two awaits",
    "HostPool": "the one face of `hosts/` to drivers, streams and routes",
    "Ownership": "the table of partitions, and the guard around each of them",
    "StepflowHttpServer": "the pool's protocol (9 methods) and its connection's (3)",
    "StepflowStdioServer": "the pool's protocol (9 methods) over one process",
    "StdioExecutes": "executes by id: room, replies and call-backs must agree",
    "TaskQueue": "who has which task: one table with three keys",
}
"""Class → why it exceeds the limits on methods or lines. Keep it short, too."""

MACHINE_WORDS = re.compile("/wor" "k/|(?<![a-z])[.]lib" "rary|/tmp/br" "ief")  # fmt: skip
"""Paths that exist only on an author's machine; split, so that this file passes."""

IGNORE = re.compile(r"#\s*(type:\s*ignore|noqa)(?P<code>\[[^\]]+\]|:\s*[A-Z]+[0-9]+(?:,\s*[A-Z]+[0-9]+)*)?(?P<rest>.*)")
BACKTICKED_PATH = re.compile(r"`([a-z][\w./-]*)`")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|^\[[^\]]+\]:\s*(\S+)", re.MULTILINE)


def is_generated(path: Path) -> bool:
    return any(path.is_relative_to(ROOT / folder) for folder in GENERATED)


def python_files(*folders: str) -> list[Path]:
    return [path for path in files("*.py", *folders) if not is_generated(path)]


def files(pattern: str, *folders: str) -> list[Path]:
    return [
        path
        for path in all_files()
        if fnmatch(path.name, pattern) and (not folders or path.relative_to(ROOT).parts[0] in folders)
    ]


@cache
def all_files() -> list[Path]:
    found = []
    for folder, below, names in os.walk(ROOT):
        below[:] = sorted(set(below) - SKIPPED_FOLDERS)
        found += [Path(folder, name) for name in sorted(names)]
    return found


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def comments(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and text of each comment, only for files with an ignore, since tokenizing is slow."""
    text = path.read_text()
    if IGNORE.search(text):
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string


def test_no_file_is_longer_than_one_idea() -> None:
    too_long = {name(path): count for path in python_files(*ALL_CODE) if (count := line_count(path)) > lines_max(path)}
    assert {path: count for path, count in too_long.items() if path not in LONG_FILES} == {}
    assert [path for path in LONG_FILES if path not in too_long] == [], "these are short now: take them off the list"


def lines_max(path: Path) -> int:
    return TEST_LINES_MAX if path.is_relative_to(ROOT / "tests") else LINES_MAX


def line_count(path: Path) -> int:
    return len(path.read_text().splitlines())


def classes(*folders: str) -> Iterator[tuple[Path, ast.ClassDef]]:
    for path in python_files(*folders):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                yield path, node


def test_a_class_name_means_one_class() -> None:
    found: dict[str, list[str]] = {}
    for path, node in classes(*CODE):
        found.setdefault(node.name, []).append(name(path))
    assert {each: paths for each, paths in found.items() if len(paths) > 1} == {}


def test_no_class_holds_more_than_one_idea() -> None:
    large = {
        node.name: f"{methods_of(node)} methods, {lines_of(node)} lines in {name(path)}"
        for path, node in classes(*CODE)
        if methods_of(node) > CLASS_METHODS_MAX or lines_of(node) > CLASS_LINES_MAX
    }
    assert {each: size for each, size in large.items() if each not in LARGE_CLASSES} == {}
    assert [each for each in LARGE_CLASSES if each not in large] == [], "these are small now: take them off the list"


def methods_of(node: ast.ClassDef) -> int:
    """Count methods with a body: an interface may name what it likes."""
    if any(isinstance(base, ast.Name) and base.id == "Protocol" for base in node.bases):
        return 0
    return sum(isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef) for each in node.body)


def lines_of(node: ast.ClassDef) -> int:
    return (node.end_lineno or 0) - node.lineno + 1


def test_nothing_names_the_machine_it_was_written_on() -> None:
    patterns = ("*.py", "*.md", "*.toml", "*.y*ml", "*.json", "*.proto", "*.sh", "Makefile")
    found = [
        f"{name(path)}:{number}"
        for pattern in patterns
        for path in files(pattern)
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1)
        if MACHINE_WORDS.search(line)
    ]
    assert found == []


def test_every_module_says_what_it_is_for() -> None:
    missing = [
        name(path)
        for path in python_files(*CODE, "tests", "benchmarks")
        if path.read_text().strip() and ast.get_docstring(ast.parse(path.read_text())) is None
    ]
    assert missing == []


def test_the_head_of_a_package_lists_its_modules() -> None:
    """A reader finds the module of an idea from folder names and package docstrings alone."""
    missing = [
        f"{name(path)} does not mention {each}"
        for path in python_files(*CODE)
        if path.name == "__init__.py"
        for each in modules_beside(path)
        if not re.search(rf"`{each}/?`|[|`]{each}/?`", ast.get_docstring(ast.parse(path.read_text())) or "")
    ]
    assert missing == []


def modules_beside(head: Path) -> list[str]:
    files = [each.stem for each in head.parent.glob("*.py") if each.stem not in ("__init__", "__main__")]
    return sorted(files + [each.parent.name for each in head.parent.glob("*/__init__.py")])


def test_every_ignore_has_a_code_and_a_reason() -> None:
    found = [
        f"{name(path)}:{number}: {comment}"
        for path in python_files(*ALL_CODE)
        for number, comment in comments(path)
        if not is_explained(comment)
    ]
    assert found == []


def is_explained(comment: str) -> bool:
    """Return True if an ignore in the comment has the form `# noqa: CODE  # why` or `# type: ignore[code]  # why`."""
    found = IGNORE.search(comment)
    if found is None:
        return True
    reason = IGNORE.sub(r"\g<rest>", comment)
    return found["code"] is not None and any(character.isalpha() for character in reason)


@pytest.mark.parametrize(
    ("comment", "explained"),
    [
        ("# noqa", False),
        ("# noqa: E501", False),
        ("# noqa: E501  # a table", True),
        ("# noqa: E501, S101  # a table", True),
        ("# type: ignore", False),
        ("# type: ignore[arg-type]", False),
        ("# type: ignore[arg-type]  # bytes count bytes", True),
        ("# type: ignore  # why", False),
        ("# a comment", True),
    ],
)
def test_the_check_of_ignores_tells_them_apart(comment: str, explained: bool) -> None:
    assert is_explained(comment) is explained


def test_nothing_runs_data_as_code() -> None:
    found = [
        f"{name(path)}:{node.lineno}"
        for path in python_files(*CODE)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec")
    ]
    assert found == []


def test_every_link_in_the_documents_leads_to_a_file() -> None:
    broken = [
        f"{name(path)}: {link}"
        for path in files("*.md")
        for link in links(path)
        if not (path.parent / link.partition("#")[0]).exists()
    ]
    assert broken == []


def test_the_index_lists_every_page() -> None:
    index = ROOT / "docs" / "index.md"
    listed = {(index.parent / link.partition("#")[0]).resolve() for link in links(index)}
    pages = [path for path in files("*.md", "docs") if path.parent.name != "decisions"]
    assert [name(path) for path in pages if path not in listed | {index}] == []


def links(path: Path) -> Iterator[str]:
    """Yield the relative links outside of code blocks; those to a place in the same file are taken for granted."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    for found in LINK.finditer(re.sub(r"`[^`\n]*`", "", text)):
        link = found[1] or found[2]
        if not re.match(r"[a-z][a-z0-9+.-]*:|#", link):
            yield link


def test_the_architecture_names_paths_that_exist() -> None:
    missing = [
        f"line {number}: {path}"
        for number, line in enumerate((ROOT / "ARCHITECTURE.md").read_text("utf-8").splitlines(), start=1)
        for path, found in paths_named(line)
        if not found
    ]
    assert missing == []


def test_the_architecture_has_the_layers_of_the_import_rules() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    shared = next(contract for contract in contracts if contract["id"] == "shared")
    declared = [set(re.findall(r"\w+", layer)) for layer in shared["layers"]]

    text = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    table = text[text.index("### Shared code") : text.index("### The services")]

    drawn: list[set[str]] = []
    for row in re.findall(r"^\| (\d*) ?\| (.*?) \|", table, re.MULTILINE):
        drawn += [set()] if row[0] else []
        drawn[-1].update(re.findall(r"`stepflow/(\w+)", row[1]))
    assert drawn[: len(declared)] == declared


def test_the_architecture_names_every_room() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    rooms = {path.parent for path in files("__init__.py", *CODE) if not is_generated(path.parent)}
    rooms = {room for room in rooms if len(room.relative_to(ROOT).parts) <= 2}
    rooms -= {ROOT / "stepflow", ROOT / "stepflow" / "mesh", ROOT / "stepflow" / "etcd"}  # generated, but for the first
    assert [name(room) for room in sorted(rooms) if f"`{name(room)}/`" not in text] == []


def paths_named(line: str) -> Iterator[tuple[str, bool]]:
    """Yield each path of a line in backticks, and whether it exists: from the root, or below the line's first path."""
    named = [path for path in BACKTICKED_PATH.findall(line) if "/" in path or path.endswith(".py")]
    for path in named:
        yield path, (ROOT / path).exists() or (ROOT / named[0] / path).exists()


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("`stepflow/cli/` owns `commands/` and `no_such/`", [True, True, False]),
        ("`stepflow/no_such.py`", [False]),
        ("`apply` and `.stepflow/`", []),
    ],
)
def test_the_check_of_paths_tells_them_apart(line: str, found: list[bool]) -> None:
    assert [each for _, each in paths_named(line)] == found


def test_the_checks_see_the_code_and_the_documents() -> None:
    """Empty lists would pass every test above."""
    assert len(python_files(*CODE)) > 10
    assert len(files("*.md")) > 0
