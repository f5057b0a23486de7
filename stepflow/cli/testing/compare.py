"""How `stepflow test` compares an expected FlowResult with the actual one.

Both sides are normalised first, since some parts differ from run to run: a text member named `run_id` becomes the zero
UUID, and members named `backtrace` are left out. Then the comparison is *partial*: each expected member must be there
and match, and actual members that are not expected do not count. Arrays have the same length; scalars are equal,
numbers by value (`1` and `1.0` are one number, `true` is none).

Pure: trees in, texts out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

ZERO_UUID = "00000000-0000-0000-0000-000000000000"

SHOWN_CHARS_MAX = 120
"""A value in the text of a difference is cut after this; the whole is what `--diff` is for."""


def normalise(tree: Any) -> Any:
    """Return the tree without what differs from run to run."""
    if isinstance(tree, dict):
        return {
            name: ZERO_UUID if name == "run_id" and isinstance(member, str) else normalise(member)
            for name, member in tree.items()
            if name != "backtrace"
        }
    if isinstance(tree, list):
        return [normalise(member) for member in tree]
    return tree


def sort_members(tree: Any) -> Any:
    """Return the tree with the members of its objects sorted by name, so that two of them can be read side by side."""
    if isinstance(tree, dict):
        return {name: sort_members(tree[name]) for name in sorted(tree)}
    if isinstance(tree, list):
        return [sort_members(member) for member in tree]
    return tree


def differences(expected: Any, actual: Any, path: str = "$") -> Iterator[str]:
    """Yield a line for each place where the actual tree is not what was expected; none means that it passes.

    Both trees are normalised already.
    """
    if isinstance(expected, dict) and isinstance(actual, dict):
        for name, member in expected.items():
            place = f"{path}.{name}" if name.replace("_", "").isalnum() else f"{path}[{_shown(name)}]"
            if name in actual:
                yield from differences(member, actual[name], place)
            else:
                yield f"{place}: expected {_shown(member)}, but there is no such member"
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
