"""The check reports nothing about flows that work: those of the repository and of its documentation."""

import re
from pathlib import Path

import pytest
from support import ROOT

from stepflow.check import check_against
from stepflow.config import default_config, discover, load_config
from stepflow.embedded.known_components import catalogue_of
from stepflow.flow import Flow, FlowInvalid, flow_from_tree, parse_flow, parse_tree
from stepflow.flow.source import DocumentInvalid

FOLDERS = ("examples", "stepflow/cli/template", "tests/data/flows")
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^```ya?ml\n(.*?)^```", re.MULTILINE | re.DOTALL)

UNKNOWN_ROUTE = 2901
"""Flows whose configuration is elsewhere: a page, or a mesh."""


def flow_files() -> list[Path]:
    found = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.y*ml"))
    return sorted(path for path in found if re.search(r"^(steps|output):", path.read_text("utf-8"), re.MULTILINE))


def flows_of(page: Path) -> list[Flow]:
    found = []
    for text in BLOCK.findall(page.read_text("utf-8")):
        if "# error" in text:
            continue  # wrong on purpose
        try:
            tree = parse_tree(text, source=page.name, format="yaml").value
            if isinstance(tree, dict) and "steps" in tree:
                found.append(flow_from_tree(tree))
        except (DocumentInvalid, FlowInvalid):
            continue  # parts of flows
    return found


@pytest.mark.parametrize("path", flow_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_flow_of_the_repository_has_no_findings(path: Path) -> None:
    flow = parse_flow(path.read_bytes(), source=str(path), format="yaml")
    found = discover(path.parent, path.parent)
    config = default_config(path.parent) if found is None else load_config(found)
    findings = check_against(flow, catalogue=catalogue_of(config, has_all_routes=False))
    assert [item.formatted for item in findings if item.code != UNKNOWN_ROUTE] == []


@pytest.mark.parametrize("page", [page for page in PAGES if flows_of(page)], ids=lambda page: page.name)
def test_a_flow_of_the_documentation_has_no_findings(page: Path) -> None:
    for flow in flows_of(page):
        findings = check_against(flow, catalogue=catalogue_of(default_config(ROOT), has_all_routes=False))
        assert [item.formatted for item in findings if item.code != UNKNOWN_ROUTE] == []


def test_flows_are_found() -> None:
    assert len(flow_files()) >= 10
    assert sum(len(flows_of(page)) for page in PAGES) >= 3
