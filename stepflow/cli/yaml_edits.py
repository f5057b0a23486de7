"""Edits of a YAML text that keep the rest of its bytes: comments, quotes, order, unknown members.

The positions come from ruamel.yaml's parser. Callers parse the new text and compare it with the wanted document.
"""

from __future__ import annotations

from io import StringIO
from typing import TYPE_CHECKING, Any

from stepflow.errors import FailedPrecondition

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_OLD_BREAKS = frozenset("\x85\u2028\u2029")


def compose(text: str) -> Any:
    """Return the root node of a text."""
    from ruamel.yaml import YAML

    return YAML(typ="safe", pure=True).compose(text)


def member(mapping: Any, name: str) -> Any:
    """Return the node of a member, or None."""
    return next((value for key, value in mapping.value if key.value == name), None)


def add_members(text: str, path: Sequence[str], members: Mapping[str, Any], *, before: str = "") -> str:
    """Add members at the end of the mapping at `path`, which is made if it is missing or empty.

    `before`: at the root, add in front of this member.

    Raises:
        FailedPrecondition: `UPDATE_REFUSED`, the text has no place for them (an alias, for example).
    """
    root = node = compose(text)
    for depth, name in enumerate(path):
        below = member(node, name)
        if below is not None and below.id == "mapping" and below.value:
            node = below
            continue
        tree: dict[str, Any] = dict(members)
        for key in reversed(path[depth + 1 :]):
            tree = {key: tree}
        if below is not None:
            return _replaced(text, node, name, tree)
        return _added(text, node, {name: tree}, before if node is root else "")
    return _added(text, node, dict(members), before if node is root else "")


def _replaced(text: str, mapping: Any, name: str, tree: dict[str, Any]) -> str:
    """Replace an empty member: `null`, `{}` or nothing."""
    key, old = next(pair for pair in mapping.value if pair[0].value == name)
    if old.id != "mapping" and old.value not in ("", "null", "~", "Null", "NULL"):
        raise FailedPrecondition("UPDATE_REFUSED", f"`{name}` is not a mapping")

    start = text.index(":", key.end_mark.index) + 1
    end = max(start, content_end(old, text)) if old.start_mark.index != old.end_mark.index else start
    if mapping.flow_style:
        return f"{text[:start]} {_inline(tree)}{text[end:]}"
    newline = _newline(text)
    column = mapping.value[0][0].start_mark.column
    return text[:start] + newline + block(tree, column + 2).replace("\n", newline) + text[end:]


def _added(text: str, mapping: Any, members: dict[str, Any], before: str) -> str:
    if mapping.flow_style:
        end = content_end(mapping, text) - len("}")
        return f"{text[:end].rstrip()}, {_inline(members)[1:-1]}{text[end:]}"

    newline = _newline(text)
    column = mapping.value[0][0].start_mark.column
    added = block(members, column).replace("\n", newline)
    keys = [key.value for key, _ in mapping.value]
    at = keys.index(before) if before in keys else len(keys)
    if at == 0:
        start = mapping.value[0][0].start_mark.index
        return f"{text[:start]}{added.lstrip()}{newline}{newline}{text[start:]}"

    end = _pair_end(mapping.value[at - 1], text)
    # Comments that end the line stay with their member.
    line_end = text.find("\n", end)
    rest = text[end : line_end if line_end >= 0 else len(text)].strip()
    if rest.startswith("#"):
        end = line_end if line_end >= 0 else len(text)
    gap = newline if before and at < len(keys) else ""
    return f"{text[:end].rstrip(chr(13))}{newline}{gap}{added}{text[end:]}"


def _pair_end(pair: Any, text: str) -> int:
    key, value = pair
    if value.id == "scalar" and value.start_mark.index == value.end_mark.index:
        return text.index(":", key.end_mark.index) + 1
    return content_end(value, text)


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _inline(tree: Any) -> str:
    from stepflow.codec import encode

    return encode(tree).decode()


def content_end(node: Any, text: str) -> int:
    """Return the position after the last character of a node.

    The end mark of a block is not that position: it comes after the comments that follow, before the next token. The
    same holds for an empty value, which ends where its key or dash ends.
    """
    # The last scalar or inline node, and the position before it.
    last, before = node, node.start_mark.index
    while last.id != "scalar" and not last.flow_style and last.value:
        if last.id == "mapping":
            key, last = last.value[-1]
            before = text.index(":", key.end_mark.index) + 1
        else:
            last = last.value[-1]
            before = text.rfind("-", 0, last.start_mark.index) + 1

    if not node.start_mark.index <= last.start_mark.index <= node.end_mark.index:
        raise FailedPrecondition("UPDATE_REFUSED", "a replaced value ends with an alias")

    end: int = last.end_mark.index
    if last.id == "scalar" and last.start_mark.index == end:
        return int(before)
    if last.id == "scalar" and last.style in ("|", ">"):
        return len(text[:end].rstrip())
    return end


def block(tree: Any, indent: int) -> str:
    """Return a tree as an indented YAML block without a final line break. Each text stays on one line."""
    from ruamel.yaml import YAML
    from ruamel.yaml.representer import RoundTripRepresenter

    class Representer(RoundTripRepresenter):
        def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002  # a repeated subtree is data, not a reference
            return True

    Representer.add_representer(type(None), lambda self, _: self.represent_scalar("tag:yaml.org,2002:null", "null"))
    writer = YAML()
    writer.Representer = Representer
    writer.width = 4096
    stream = StringIO()
    writer.dump(_with_quotes(tree), stream)
    return "\n".join(" " * indent + line for line in stream.getvalue().removesuffix("\n").split("\n"))


def _with_quotes(tree: Any) -> Any:
    """Mark texts with YAML 1.1 line breaks for double quotes: in single quotes the breaks would be written raw."""
    from ruamel.yaml.scalarstring import DoubleQuotedScalarString

    if isinstance(tree, dict):
        return {_with_quotes(name): _with_quotes(each) for name, each in tree.items()}
    if isinstance(tree, list):
        return [_with_quotes(each) for each in tree]
    if isinstance(tree, str) and not _OLD_BREAKS.isdisjoint(tree):
        return DoubleQuotedScalarString(tree)
    return tree
