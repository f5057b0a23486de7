"""The MCP project's own conformance suite against our bridge as the client.

Out of scope, and why:
- `auth/…`: they play OAuth, where a person or a registration is needed. A token comes from the configuration here.
- `elicitation-…`: they need a client that answers a server's questions. A step has nobody to ask, so they are declined.
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
