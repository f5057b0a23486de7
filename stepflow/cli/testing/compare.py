"""How `stepflow test` compares an expected FlowResult with the actual one.

- Both sides are normalised first, because some parts differ between runs: text members named `run_id` become the zero
  UUID, and members named `backtrace` are removed.
- What `--update` writes has neither the step nor the trace that the mesh adds to errors.
- The comparison is *partial*: each expected member must exist and match; actual members without an expected one are
  ignored.
- Arrays must have the same length. Scalars must be equal, numbers by value (`1` equals `1.0`, `true` is no number).

Pure: trees in, texts out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepflow.failure_data import component_data

if TYPE_CHECKING:
    from collections.abc import Iterator

ZERO_UUID = "00000000-0000-0000-0000-000000000000"

SHOWN_CHARS_MAX = 120
"""A longer value in a difference is cut; `--diff` shows it whole."""


def normalise(tree: Any) -> Any:
    """Return the tree without the parts that differ between runs."""
    if isinstance(tree, dict):
        return {
            name: ZERO_UUID if name == "run_id" and isinstance(member, str) else normalise(member)
            for name, member in tree.items()
            if name != "backtrace"
        }
    if isinstance(tree, list):
        return [normalise(member) for member in tree]
    return tree


def without_mesh_data(tree: Any) -> Any:
    """Return a result without what the mesh adds to the data of errors: steps, attempts, hosts, traces."""
    if isinstance(tree, list):
        return [without_mesh_data(member) for member in tree]
    if not isinstance(tree, dict):
        return tree

    error = tree.get("error")
    if tree.get("outcome") == "failed" and isinstance(error, dict) and isinstance(error.get("data"), dict):
        data = component_data(error["data"])
        kept = {name: member for name, member in error.items() if name != "data"}
        return {**tree, "error": {**kept, "data": data} if data else kept}
    return {name: without_mesh_data(member) for name, member in tree.items()}


def sort_members(tree: Any) -> Any:
    """Return the tree with the members of its objects sorted by name, for a line-by-line comparison."""
    if isinstance(tree, dict):
        return {name: sort_members(tree[name]) for name in sorted(tree)}
    if isinstance(tree, list):
        return [sort_members(member) for member in tree]
    return tree


def differences(expected: Any, actual: Any, path: str = "$") -> Iterator[str]:
    """Yield a line per difference between two normalised trees; no line means that the case passes."""
    if isinstance(expected, dict) and isinstance(actual, dict):
        for name, member in expected.items():
            member_path = f"{path}.{name}" if name.replace("_", "").isalnum() else f"{path}[{_shown(name)}]"
            if name in actual:
                yield from differences(member, actual[name], member_path)
            else:
                yield f"{member_path}: expected {_shown(member)}, but there is no such member"
    elif isinstance(expected, list) and isinstance(actual, list):
        if len(expected) != len(actual):
            yield f"{path}: expected {len(expected)} elements, got {len(actual)}"
            return
        for index, pair in enumerate(zip(expected, actual, strict=True)):
            yield from differences(*pair, f"{path}[{index}]")
    elif not _same_scalar(expected, actual):
        yield f"{path}: expected {_shown(expected)}, got {_shown(actual)}"


def _same_scalar(expected: Any, actual: Any) -> bool:
    if isinstance(expected, bool) or isinstance(actual, bool):
        return expected is actual
    return bool(expected == actual)


def _shown(tree: Any) -> str:
    from stepflow.codec import encode

    text = encode(tree).decode()
    return text if len(text) <= SHOWN_CHARS_MAX else f"{text[:SHOWN_CHARS_MAX]}…"
