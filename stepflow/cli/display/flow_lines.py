"""From the document path of a failed expression to a line of the flow file, while the file is the flow that ran."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepflow.errors import Invalid, StepflowError
from stepflow.step_path import parse_step_path

if TYPE_CHECKING:
    from stepflow.cli.display.trees import AnyRun
    from stepflow.failure_data import FailedStep
    from stepflow.flow.document import Tree
    from stepflow.json_problems import Part


class FlowLines:
    """Finds lines in the file of a run's flow. The file is read on the first question."""

    def __init__(self, run: AnyRun) -> None:
        self._run = run
        self._tree: Tree | None = None
        self._read = False

    def locate(self, failed: FailedStep) -> str:
        """Return FILE:LINE of a failed expression; empty if the file is not known, or no longer the flow."""
        if not self._read:
            self._read = True
            self._tree = _read(self._run)
        if self._tree is None:
            return ""

        path = _document_path(self._tree.value, failed)
        return f"{self._tree.source}:{self._tree.nearest(path)[0]}" if path else ""


def _read(run: AnyRun) -> Tree | None:
    from stepflow.cli.input.files import read_file, value_format
    from stepflow.flow import flow_id, parse_flow, parse_tree

    named = str(run.labels.get("flow") or "")
    if not named:
        return None
    try:
        file = Path(named)
        text, kind = read_file(file, what="flow"), value_format(file, what="flow")
        if flow_id(parse_flow(text, source=named, format=kind)) != run.flow_id:
            return None
        return parse_tree(text, source=_shown(file), format=kind, complex_keys=True)
    except (StepflowError, OSError):
        return None


def _shown(file: Path) -> str:
    """Return the file's path, relative to the working directory if it lies below."""
    here = Path.cwd()
    return str(file.relative_to(here) if file.is_absolute() and file.is_relative_to(here) else file)


def _document_path(flow: Any, failed: FailedStep) -> tuple[Part, ...]:
    """Return the path from the root of the document; empty if a sub-run's flow does not stand in it."""
    # The output of a run or sub-run has the path of an item, which a step would follow.
    step = failed.step if failed.component or not failed.step else f"{failed.step}/output"
    try:
        parents = parse_step_path(step).parents if step else ()
    except Invalid:
        return ()

    base: tuple[Part, ...] = ()
    for parent in parents:
        inner = _inner_flow(flow, parent.step_id)
        if inner is None:
            return ()
        path, flow = inner
        base += path
    return (*base, *_parts(failed.expression))


def _inner_flow(flow: Any, step_id: str) -> tuple[tuple[Part, ...], Any] | None:
    """Return path and tree of the flow that a step's input quotes."""
    steps = flow.get("steps") if isinstance(flow, dict) else None
    for index, step in enumerate(steps if isinstance(steps, list) else ()):
        if not isinstance(step, dict) or step.get("id") != step_id:
            continue
        input = step.get("input")
        for name in ("workflow", "flow"):
            if isinstance(input, dict) and isinstance(input.get(name), dict):
                path: tuple[Part, ...] = ("steps", index, "input", name)
                inner = input[name]
                return ((*path, "$literal"), inner["$literal"]) if "$literal" in inner else (path, inner)
    return None


def _parts(expression: str) -> tuple[Part, ...]:
    from stepflow.flow.paths import parse_path

    try:
        return tuple(parse_path("$." + expression).parts)
    except StepflowError:
        return ()


__all__ = ["FlowLines"]
