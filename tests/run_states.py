"""Generates the page on the phases of a step from the table of transitions in `stepflow/run/phases.py`.

    python tests/run_states.py > docs/explanation/run-states.md

`tests/unit/run/test_phases.py` compares the page with the table.
"""

from __future__ import annotations

import ast
import inspect
from collections import defaultdict

from stepflow.run import phases
from stepflow.run.phases import TRANSITIONS, Phase

HEAD = """\
<!-- Generated: python tests/run_states.py > docs/explanation/run-states.md -->

# States of a step

A step becomes *active* when every value that its input needs is complete. From then on it is in one of the phases
below, until its result is journaled. `stepflow/run/phases.py` holds the table of transitions; a change that the table
lacks is rejected, so this page lists every transition there is.
"""

LIVE = """\
## With a live owner

Labels in lower case are decisions of the owner. The others are journaled entries, which the owner applies once it has
made them.
"""

REPLAY = """\
## During a replay

A new owner applies the journal without repeating the decisions of the previous owners. An entry may therefore find its
step in an earlier phase than it did the first time. Besides the transitions above, a replay makes these:
"""


def page() -> str:
    """Return the whole page."""
    return "\n".join((HEAD, _phases(), LIVE, _diagram(), REPLAY, _replay_table()))


def _phases() -> str:
    rows = [f"| `{phase.name}` | {meaning} |" for phase, meaning in meanings().items()]
    return "\n".join(("| phase | meaning |", "|---|---|", *rows, ""))


def meanings() -> dict[Phase, str]:
    """Return the sentence below each member of `Phase`."""
    (definition,) = ast.parse(inspect.getsource(phases.Phase)).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for member, sentence in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(member, ast.Assign) and isinstance(sentence, ast.Expr):
            (name,) = member.targets
            assert isinstance(name, ast.Name)
            found[Phase[name.id]] = ast.literal_eval(sentence.value)
    return found


def _diagram() -> str:
    edges = [
        f"    {each.source.name} --> {each.target.name}: {each.cause}" for each in TRANSITIONS if not each.replay_only
    ]
    start, end = f"    [*] --> {Phase.READY.name}: inputs complete", f"    {Phase.DONE.name} --> [*]"
    return "\n".join(("```mermaid", "stateDiagram-v2", start, *edges, end, "```", ""))


def _replay_table() -> str:
    sources: dict[tuple[str, Phase], list[str]] = defaultdict(list)
    for each in TRANSITIONS:
        if each.replay_only:
            sources[each.cause, each.target].append(f"`{each.source.name}`")
    rows = [f"| {cause} | {', '.join(found)} | `{target.name}` |" for (cause, target), found in sources.items()]
    return "\n".join(("| entry | from | to |", "|---|---|---|", *rows, ""))


if __name__ == "__main__":
    print(page(), end="")
