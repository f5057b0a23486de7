"""The reference pages are complete: every reason, failure code and limit has an entry, and there are no others."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import limits
import pytest
from support import ROOT

ERRORS_PAGE = ROOT / "docs" / "reference" / "errors.md"
LIMITS_PAGE = ROOT / "docs" / "reference" / "limits.md"

REASON = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*")
ENTRY = re.compile(r"^### `([A-Z0-9_<>]+)`$", re.MULTILINE)

REASON_ARGUMENT = {
    "_unreachable": 0,
    "unreachable": 0,
    "start_error": 0,
    "_start_error": 0,
    "_check": 0,
    "parse_uuid": 1,
}
"""Functions that build an error, and the position of the reason among their arguments."""

COMPUTED = {
    # The reason of another error, passed on.
    "error.reason": (),
    "first.reason": (),
    "problem.reason": (),
    "plugin.error.reason": (),
    "info.reason": (),
    # A parameter or variable; the literals are at the callers.
    "reason": (),
    # Routing reasons have lower case, and a table of their own.
    "self.reason": (),
    "f'CALL_{code.name}'": ("CALL_<STATUS>",),
    "f'{what.upper()}_TOO_LARGE'": ("OVERRIDES_TOO_LARGE", "LABELS_TOO_LARGE"),
    "program.reason('PACKAGE_GONE')": ("ETCD_PACKAGE_GONE",),
    "program.reason('NOT_FETCHABLE')": ("ETCD_NOT_FETCHABLE",),
    "program.reason('CHECKSUM')": ("ETCD_CHECKSUM",),
    "program.reason('FETCH_FAILED')": ("ETCD_FETCH_FAILED",),
}
"""Expressions that give a reason → the reasons that they can give beyond the literals."""


def sources() -> Iterator[Path]:
    for folder in limits.CODE:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not any(path.is_relative_to(ROOT / each) for each in limits.GENERATED):
                yield path


@cache
def trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text("utf-8")) for path in sources()}


@cache
def nodes() -> tuple[tuple[Path, ast.AST], ...]:
    kinds = (ast.ClassDef, ast.Call, ast.Dict, ast.Assign, ast.FunctionDef, ast.AsyncFunctionDef)
    return tuple((path, node) for path, tree in trees().items() for node in ast.walk(tree) if isinstance(node, kinds))


def last_name(node: ast.expr) -> str:
    return ast.unparse(node).rpartition(".")[2]


@cache
def error_classes() -> frozenset[str]:
    """Return the names of all error classes: subclasses of `StepflowError`, and aliases of them."""
    found = {"StepflowError"}
    while True:
        before = len(found)
        for _, node in nodes():
            if isinstance(node, ast.ClassDef) and found & {last_name(base) for base in node.bases}:
                found.add(node.name)
            elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Name) and node.value.id in found:
                found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        if len(found) == before:
            return frozenset(found)


@cache
def constants() -> dict[str, str]:
    """Return the module-level constants that hold a text, such as `SERVER_EXITED = "SERVER_EXITED"`."""
    return {
        target.id: node.value.value
        for tree in trees().values()
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def fixed_reasons() -> dict[str, ast.expr]:
    """Return the error classes whose constructor gives the reason itself, with that reason."""
    return {
        node.name: call.args[0]
        for _, node in nodes()
        if isinstance(node, ast.ClassDef) and node.name in error_classes()
        for call in ast.walk(node)
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "super().__init__" and call.args
        if isinstance(call.args[0], ast.Constant)
    }


def reason_expressions() -> Iterator[tuple[Path, ast.expr]]:
    """Yield every expression that stands where a reason is expected."""
    fixed = fixed_reasons()
    classes = error_classes() - set(fixed)
    for path, node in nodes():
        match node:
            case ast.ClassDef(name=name) if name in fixed:
                yield path, fixed[name]
            case ast.Call():
                yield from ((path, each) for each in reasons_of_call(node, classes))
            case ast.Dict():
                members = zip(node.keys, node.values, strict=True)
                yield from (
                    (path, value) for key, value in members if isinstance(key, ast.Constant) and key.value == "reason"
                )
            case ast.Assign() if any(is_reason(target) for target in node.targets):
                yield from ((path, each) for each in literals_in(node.value))
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                yield from ((path, each) for each in default_reasons(node))


def reasons_of_call(node: ast.Call, classes: frozenset[str]) -> Iterator[ast.expr]:
    name = last_name(node.func)
    if name in classes and node.args:
        yield node.args[0]
    at = REASON_ARGUMENT.get(name)
    if at is not None and len(node.args) > at:
        yield from literals_in(node.args[at])
    for keyword in node.keywords:
        if keyword.arg == "reason":
            yield from literals_in(keyword.value)


def default_reasons(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[ast.expr]:
    """Yield the default of a parameter that is called `reason`."""
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    missing = len(arguments) - len(node.args.defaults) - len(node.args.kwonlyargs)
    values = [*[None] * missing, *node.args.defaults, *node.args.kw_defaults]
    for argument, value in zip(arguments, values, strict=True):
        if argument.arg == "reason" and value is not None:
            yield from literals_in(value)


def is_reason(target: ast.expr) -> bool:
    return last_name(target) == "reason" or ast.unparse(target) == "_INVALID"


def literals_in(node: ast.expr) -> Iterator[ast.expr]:
    """Yield the texts and constants in an expression that could be a reason."""
    if ast.unparse(node) in COMPUTED:
        yield node
        return
    for each in ast.walk(node):
        if (isinstance(each, ast.Constant) and isinstance(each.value, str) and REASON.fullmatch(each.value)) or (
            isinstance(each, ast.Name) and REASON.fullmatch(constants().get(each.id, ""))
        ):
            yield each


@cache
def reasons() -> tuple[frozenset[str], tuple[str, ...]]:
    """Return the reasons in the source, and the expressions that nothing is known of."""
    found: set[str] = set()
    unknown: list[str] = []
    for path, node in reason_expressions():
        text = ast.unparse(node)
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
        elif isinstance(node, ast.Name) and node.id in constants():
            found.add(constants()[node.id])
        elif text in COMPUTED:
            found.update(COMPUTED[text])
        else:
            unknown.append(f"{path.relative_to(ROOT)}:{node.lineno}: {text}")
    return frozenset(reason for reason in found if REASON.match(reason)), tuple(unknown)


def failure_codes() -> set[str]:
    tree = trees()[ROOT / "stepflow" / "errors.py"]
    code = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Code")
    return {ast.unparse(node.targets[0]) for node in code.body if isinstance(node, ast.Assign)}


def entries(section: str) -> list[str]:
    """Return the headings of the page's entries: `codes` or `reasons`."""
    before, _, rest = ERRORS_PAGE.read_text("utf-8").partition("\n## Failure codes\n")
    codes, _, listed = rest.partition("\n## ")
    assert ENTRY.findall(before) == []
    return ENTRY.findall(codes if section == "codes" else listed)


def test_every_reason_is_a_literal_or_known() -> None:
    assert reasons()[1] == (), "add the expression to COMPUTED, with the reasons that it can give"


def test_every_reason_has_an_entry_and_every_entry_a_reason() -> None:
    found = reasons()[0]
    documented = set(entries("reasons"))
    assert sorted(found - documented) == [], f"explain these in {ERRORS_PAGE.relative_to(ROOT)}"
    assert sorted(documented - found) == [], "no code gives these any more"


def test_every_failure_code_has_an_entry_and_every_entry_a_code() -> None:
    assert sorted(entries("codes")) == sorted(failure_codes())


def test_no_reason_is_explained_twice() -> None:
    assert len(entries("reasons")) == len(set(entries("reasons")))
    assert len(entries("reasons")) > 100, "the page has lost its entries"


def test_the_search_for_reasons_sees_the_code() -> None:
    found = reasons()[0]
    assert {"RUN_NOT_FOUND", "STALE_EPOCH", "DETAILS_TOO_LARGE", "SERVER_EXITED", "EXPRESSION_INVALID"} <= found
    assert {"ETCD_CHECKSUM", "LABELS_TOO_LARGE", "FLOW_INVALID", "CONFIG_INVALID", "STORE_REFUSED"} <= found


BOUND = re.compile(r"([A-Z0-9]+_)+MAX")


def test_every_bound_has_a_row_or_an_exemption() -> None:
    rows = [(limits.place_of(limit.constant), limit.constant.partition(" ")[2]) for limit in limits.LIMITS]
    exempt = {
        (place, constant.partition(" ")[2])
        for constants in limits.EXEMPT.values()
        for constant in constants
        for place in limits.places_of(constant)
    }
    bounds = {bound for bound in limits.defined() if BOUND.fullmatch(bound[1])}
    assert [row for row, count in Counter(rows).items() if count > 1] == []
    assert sorted(bounds - set(rows) - exempt) == [], "give these a row or an exemption in tests/limits.py"


def test_the_page_of_limits_is_current() -> None:
    text = LIMITS_PAGE.read_text("utf-8")
    assert text == limits.page(), "run: PYTHONPATH=.:tests python tests/limits.py > docs/reference/limits.md"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (16 * 1024 * 1024, "bytes", "16 MiB"),
        (1536 * 1024, "bytes", "1.5 MiB"),
        (900.0, "s", "15 min"),
        (2**32 - 1, "ms", "49.7 days"),
        (5.0, "s", "5 s"),
        (0.7, "share", "70 %"),
        (100_000, "", "100,000"),
    ],
)
def test_limits_are_shown_as_people_read_them(value: float, unit: str, text: str) -> None:
    assert limits.shown(value, unit) == text
