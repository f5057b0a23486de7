"""The MCP project's conformance suite against this project's bridge as the client.

Out of scope, and why:
- `auth/…`: OAuth needs a user or a registration; the bridge takes its token from the configuration.
- `elicitation-…`: a step has no user to answer a server's questions, so the bridge declines them.
"""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from support import ROOT, node_packages

if TYPE_CHECKING:
    from pathlib import Path

SUITE = ["@modelcontextprotocol/conformance@0.1.16"]
SCENARIOS = ["initialize", "tools_call", "sse-retry"]
OUT_OF_SCOPE = re.compile(r"auth/|elicitation-")
CLIENT = f"{sys.executable} -m support.mcp_conformance_client"


def conformance(*args: str) -> str:
    node, folder = node_packages(SUITE, "mcp-conformance")
    done = subprocess.run(
        [node, str(folder / "node_modules" / ".bin" / "conformance"), *args],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.timeout(400)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_scenario_passes(scenario: str, tmp_path: Path) -> None:
    output = conformance("client", "--command", CLIENT, "--scenario", scenario, "--output-dir", str(tmp_path))
    assert "OVERALL: PASSED" in output


@pytest.mark.timeout(400)
def test_every_scenario_is_run_or_out_of_scope() -> None:
    listed = re.findall(r"^  - (\S+)", conformance("list").partition("Client scenarios")[2], re.MULTILINE)
    assert len(listed) > 20
    assert [name for name in listed if not OUT_OF_SCOPE.match(name)] == SCENARIOS
