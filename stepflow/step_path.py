"""Step paths: the place of a step in a run, as people write and read it.

    7/summaries[0]/ask      item 7 of a batch; item 0 of the step `summaries` (a `map`); the step `ask` of its flow
    greet                   a step of a run of one input

- The first part is the item of a batch, from 0. A run of one input has no such part.
- Each part between is a step that opened a sub-run. Its index tells sub-runs of one step apart: item of a `map`,
  iteration of an `iterate`, number of a call-back (`agent[2]`; `agent[2.5]`: its item 5). `eval` has none.
- The last part is the step.
- A step id that would be read otherwise stands in quotes, as JSON text: `"a/b"[0]/ask`.

`parse_step_path(str(path)) == path`. Pure.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from stepflow.errors import Invalid

STEP_PATH_CHARS_MAX = 16_384
"""A longer text is refused unread: sub-runs nest at most 64 deep, and step ids are short."""

_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")
_PLAIN = re.compile(r'[^\s/\[\]"]+')
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_INDEX = re.compile(r"\[((?:0|[1-9][0-9]{0,8})(?:\.(?:0|[1-9][0-9]{0,8}))?)\]")


@dataclass(frozen=True, slots=True)
class SubRunStep:
    """A step that opened a sub-run, with the index of the sub-run: no number, one, or two of a call-back."""

    step_id: str
    index: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class StepPath:
    """The place of a step. `item` is None in a run of one input; `parents` are the steps above, the outermost first."""

    step_id: str
    parents: tuple[SubRunStep, ...] = ()
    item: int | None = None

    def __str__(self) -> str:
        """Return the text that `parse_step_path` reads."""
        path = "" if self.item is None else str(self.item)
        for parent in self.parents:
            path = parent_path(path, parent.step_id, parent.index)
        return path_of_step(path, self.step_id)


def path_of_step(above: str, step_id: str) -> str:
    """Return the text of a path. `above`: the text of its item and parents; empty without."""
    shown = _shown(step_id)
    return f"{above}/{shown}" if above else shown


def parent_path(above: str, step_id: str, index: tuple[int, ...] = ()) -> str:
    """Return the text of a sub-run: `above`, the step that opened it, and its index."""
    if index:
        return f"{path_of_step(above, step_id)}[{'.'.join(map(str, index))}]"
    # A first part of digits alone would be read as an item.
    if not above and _NUMBER.fullmatch(step_id) is not None:
        return json.dumps(step_id)
    return path_of_step(above, step_id)


def parse_step_path(text: str) -> StepPath:
    """Parse the text of a step path. Raises: Invalid `STEP_PATH_INVALID`."""
    if len(text) > STEP_PATH_CHARS_MAX:
        raise Invalid("STEP_PATH_INVALID", f"a step path has at most {STEP_PATH_CHARS_MAX:,} characters")
    parts: list[SubRunStep] = []
    item: int | None = None
    position = 0
    while True:
        start = position
        step_id, position = _read_id(text, position)
        found = _INDEX.match(text, position)
        index: tuple[int, ...] = ()
        if found is not None:
            index, position = tuple(map(int, found[1].split("."))), found.end()

        if position == len(text):
            if index:
                raise _invalid(text, "it ends in an index; a step of that sub-run follows, as in 7/summaries[0]/ask")
            return StepPath(step_id, tuple(parts), item)
        if text[position] != "/":
            raise _invalid(text, f"character {position + 1} is not expected")
        if start == 0 and _NUMBER.fullmatch(text[:position]):
            item = int(step_id)
        else:
            parts.append(SubRunStep(step_id, index))
        position += 1


def _read_id(text: str, position: int) -> tuple[str, int]:
    """Return the step id at a position, and the position behind it. Raises: Invalid."""
    quoted = _QUOTED.match(text, position)
    if quoted is not None:
        try:
            step_id = json.loads(quoted[0], strict=False)
        except ValueError:
            raise _invalid(text, f"{quoted[0]} is not a JSON text") from None
        if step_id:
            return str(step_id), quoted.end()
    plain = _PLAIN.match(text, position)
    if plain is None:
        raise _invalid(text, "a step id is missing" if position >= len(text) else f"at character {position + 1}")
    return plain[0], plain.end()


def _shown(step_id: str) -> str:
    return step_id if _PLAIN.fullmatch(step_id) else json.dumps(step_id, ensure_ascii=False)


def _invalid(text: str, problem: str) -> Invalid:
    return Invalid(
        "STEP_PATH_INVALID", f"{text[:200]!r} is not a step: {problem}; a step is written like 7/summaries[0]/ask"
    )


__all__ = ["StepPath", "SubRunStep", "parent_path", "parse_step_path", "path_of_step"]
