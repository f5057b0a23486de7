"""What `run` and `submit` show on terminals of 60, 100 and 200 columns, kept as text in `tests/data/terminal`.

`STEPFLOW_WRITE_SNAPSHOTS=1 pytest tests/mesh/cli/test_terminal.py` writes them. Look at them before you commit.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

import pytest
from support import ROOT
from support.api import api_mesh
from support.terminal import Terminal, lasting

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SNAPSHOTS = ROOT / "tests" / "data" / "terminal"
WIDTHS = (60, 100, 200)

STEPS = 30
QUICK = 15
"""Steps of the flow that end at once."""

NAMES = ("fetch", "summarise_the_whole_document_in_one_paragraph", "rank")


def parallel_flow() -> str:
    steps = [
        {
            "id": f"{NAMES[n % len(NAMES)]}_{n}",
            "component": "/builtin/sleep",
            "input": {"duration_ms": 1 if n < QUICK else 600_000},
        }
        for n in range(STEPS)
    ]
    return json.dumps({"name": "parallel", "steps": steps, "output": [{"$step": step["id"]} for step in steps]})


BATCH_FLOW = """
name: batch
steps:
- id: greet
  component: /builtin/create_messages
  input: {user_prompt: {$input: name}}
- {id: rest, component: /builtin/sleep, input: {duration_ms: 300}}
output: {messages: {$step: greet, path: messages}, rested: {$step: rest}}
"""
"""Items whose name is not a text fail."""

NESTED_FLOW = """
name: nested
steps:
- id: summaries
  component: /builtin/map
  input:
    items: [1, 2]
    workflow:
      $literal:
        steps: [{id: ask, component: /builtin/create_messages, input: {user_prompt: hello}}]
        output: {$step: ask}
- id: ask
  component: /builtin/create_messages
  input: {user_prompt: {$step: summaries, path: "no.such"}}
output: {$step: ask}
"""


COMPONENTS = """
from stepflow.component import component, serve


@component
def talk(topic: str) -> str:
    print(f"a line about {topic} that is long enough to be folded on a terminal of sixty columns, I think")
    print("done talking")
    return topic


serve()
"""

TALK_FLOW = """
name: talks
steps:
- {id: first, component: /talk/talk, input: {topic: weather}}
- {id: second, component: /talk/talk, input: {topic: {$step: first}}}
output: {$step: second}
"""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with api_mesh() as (mesh, _):
        yield mesh.address


@pytest.fixture(params=["run", "submit"])
def verb(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    (tmp_path / "parallel.json").write_text(parallel_flow())
    (tmp_path / "batch.yaml").write_text(BATCH_FLOW)
    (tmp_path / "nested.yaml").write_text(NESTED_FLOW)
    names = [f"person number {n}" if n % 4 else n for n in range(1, 9)]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps({"name": name}) + "\n" for name in names))
    if request.param == "run":
        return ["run"]
    # The mesh of the tests registers no host, so that the check before a run would warn of each component.
    return ["submit", "--no-check", "--server", request.getfixturevalue("server")]


def check(name: str, text: str, columns: int) -> None:
    """Compare a screen with its snapshot."""
    text = lasting(text)
    assert max(map(len, text.splitlines())) <= columns
    path = SNAPSHOTS / f"{name}-{columns}.txt"
    if os.environ.get("STEPFLOW_WRITE_SNAPSHOTS"):
        path.write_text(text)
    assert text == path.read_text(), f"{path} differs; if the change is wanted, write the snapshots anew"


@pytest.mark.parametrize("columns", WIDTHS)
def test_thirty_parallel_steps_are_shown_while_they_run(verb: list[str], columns: int, tmp_path: Path) -> None:
    with Terminal([*verb, "parallel.json", "--max-concurrency", "30"], tmp_path, columns) as terminal:
        shown = terminal.wait_for(lambda text: "15 steps done · 15 under way" in text, "half of the steps have ended")
        check(f"{verb[0]}-parallel", shown, columns)
        terminal.interrupt()
        code, shown = terminal.end()
    assert code == 130
    check(f"{verb[0]}-interrupted", shown, columns)


@pytest.mark.parametrize("columns", WIDTHS)
def test_a_failing_batch_shows_results_and_reasons(verb: list[str], columns: int, tmp_path: Path) -> None:
    with Terminal([*verb, "batch.yaml", "--inputs", "items.jsonl"], tmp_path, columns, lines=60) as terminal:
        code, shown = terminal.end()
    assert code == 1
    check(f"{verb[0]}-batch", shown, columns)


@pytest.mark.parametrize("columns", WIDTHS)
def test_log_lines_stand_above_the_steps(columns: int, tmp_path: Path) -> None:
    (tmp_path / "components.py").write_text(COMPONENTS)
    (tmp_path / "flow.yaml").write_text(TALK_FLOW)
    plugin = {"type": "stepflow", "transport": "stdio", "command": sys.executable, "args": ["components.py"]}
    config = {
        "plugins": {"talk": plugin | {"env": {"PYTHONPATH": str(ROOT)}}},
        "routes": {"/talk": [{"plugin": "talk"}]},
    }
    (tmp_path / "stepflow-config.yml").write_text(json.dumps(config))
    with Terminal(["run", "flow.yaml"], tmp_path, columns) as terminal:
        code, shown = terminal.end()
    assert code == 0, shown
    check("run-logs", shown, columns)
