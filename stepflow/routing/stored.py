"""Rules in the store, `routes/<prefix>`: JSON that hosts write and executors read.

- `decode_rules(encode_rules(rules, types)[0]) == (rules, types)`.
- The hash covers the rules alone, so hosts with the same rules agree on the hash.

Pure. Not here: which host may write which rules (`component_host/registration.py`).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from stepflow.codec import decode, encode
from stepflow.errors import DataLoss
from stepflow.flow.paths import parse_path
from stepflow.routing.table import Rule

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def encode_rules(rules: Sequence[Rule], types: Mapping[str, str]) -> tuple[bytes, str]:
    """Return the JSON text of a prefix's rules and its SHA-256. `types`: the type of each plugin (`builtin`, `mcp`)."""
    text = encode({"rules": [_tree(rule, types) for rule in rules]})
    return text, hashlib.sha256(text).hexdigest()


def decode_rules(text: bytes) -> tuple[tuple[Rule, ...], dict[str, str]]:
    """Return the rules and the types of their plugins. Raises: DataLoss ROUTES_UNREADABLE."""
    try:
        trees = decode(text)["rules"]
        return tuple(_rule(tree) for tree in trees), {tree["plugin"]: tree["type"] for tree in trees}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataLoss("ROUTES_UNREADABLE", f"a route in the store cannot be read: {error}") from None


def _tree(rule: Rule, types: Mapping[str, str]) -> dict[str, Any]:
    tree: dict[str, Any] = {"plugin": rule.plugin, "type": types[rule.plugin]}
    if rule.conditions:
        tree["conditions"] = [{"path": path.text, "value": value} for path, value in rule.conditions]
    if rule.allow is not None:
        tree["allow"] = sorted(rule.allow)
    if rule.deny is not None:
        tree["deny"] = sorted(rule.deny)
    if rule.params:
        tree["params"] = dict(rule.params)
    return tree


def _rule(tree: Mapping[str, Any]) -> Rule:
    allow, deny = tree.get("allow"), tree.get("deny")
    return Rule(
        plugin=tree["plugin"],
        conditions=tuple((parse_path(each["path"]), each["value"]) for each in tree.get("conditions", ())),
        allow=None if allow is None else frozenset(allow),
        deny=None if deny is None else frozenset(deny),
        params=tree.get("params", {}),
    )


__all__ = ["decode_rules", "encode_rules"]
