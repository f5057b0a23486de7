"""The flows below folders, for `stepflow flows store`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from stepflow.cli.found_flow import FILE_SUFFIXES
from stepflow.cli.input.files import read_file, value_format
from stepflow.cli.testing.discovery import FLOW_SCHEMA, find_files
from stepflow.errors import Invalid

if TYPE_CHECKING:
    from collections.abc import Iterable

_FLOW_MEMBER = re.compile(rb"""^(?:  )?["']?(?:steps|output)["']?\s*:""", re.MULTILINE)
"""In the text of a document that cannot be parsed: it is probably a flow."""


def find_flow_files(texts: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return FLOWs, each folder replaced by the flow files below it; and the files there that are no flows.

    A FLOW that names no folder stays as it is, and none is twice in the list.
    """
    flows: dict[str, None] = {}
    others: dict[str, None] = {}
    for text in texts:
        if not Path(text).is_dir():
            flows[text] = None
            continue
        for path in find_files([Path(text)], FILE_SUFFIXES):
            (flows if is_meant_as_flow(path) else others)[str(path)] = None
    return list(flows), [path for path in others if path not in flows]


def is_meant_as_flow(path: Path) -> bool:
    """Return True if a file is a flow, even a wrong one: a mapping with `steps`, `output` or the flow schema."""
    from stepflow.flow import parse_tree

    text = read_file(path, what="flow")
    try:
        tree = parse_tree(text, source=str(path), format=value_format(path, what="flow")).value
    except Invalid:
        return _FLOW_MEMBER.search(text) is not None or FLOW_SCHEMA.encode() in text
    return isinstance(tree, dict) and (bool({"steps", "output"} & tree.keys()) or tree.get("schema") == FLOW_SCHEMA)


__all__ = ["find_flow_files"]
