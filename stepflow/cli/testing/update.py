"""`stepflow test --update`: write actual results into a flow file and leave everything else unchanged.

- Only the text of changed `output` members is replaced, at the positions that ruamel.yaml's parser reports. The rest of
  the file keeps its bytes: comments, quotes, order, unknown members.
- The new text is parsed before it is written, and must be the old document with the new outputs. Otherwise (an alias to
  a replaced output, for example) the file is not changed.
- JSON has no comments to keep: the file is written again, indented.
"""

import copy
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stepflow.cli.input.files import read_file, value_format
from stepflow.cli.yaml_edits import block, compose, content_end, member
from stepflow.errors import FailedPrecondition, StepflowError

_BYTE_ORDER_MARK = "\ufeff"
"""Removed: no reader of UTF-8 needs it, and the parser's positions do not count it."""


def update_outputs(path: Path, outputs: Mapping[int, Any]) -> None:
    """Replace the `output` of the test cases at these indexes.

    Raises:
        FailedPrecondition: `UPDATE_REFUSED` (other parts would change), `FILE_UNWRITABLE`.
    """
    from stepflow.flow import parse_tree

    # 1. The document that the file must hold afterwards.
    text = read_file(path, what="flow").decode().removeprefix(_BYTE_ORDER_MARK)
    kind = value_format(path, what="flow")
    wanted = copy.deepcopy(parse_tree(text, source=str(path), format=kind).value)
    for index, output in outputs.items():
        wanted["test"]["cases"][index]["output"] = output

    # 2. Replace the texts of the outputs, and check that they give this document.
    try:
        changed = _to_json(wanted) if kind == "json" else _splice(text, outputs)
        same = parse_tree(changed, source=str(path), format=kind).value == wanted
    except StepflowError:
        same = False

    if not same:
        raise FailedPrecondition(
            "UPDATE_REFUSED",
            f"{path}: the new outputs cannot be written without changing other parts of the file (are there anchors or "
            "aliases in an output?); edit the file by hand",
        )
    _write(path, changed)


def _to_json(tree: Any) -> str:
    import msgspec

    return msgspec.json.format(msgspec.json.encode(tree), indent=2).decode() + "\n"


def _splice(text: str, outputs: Mapping[int, Any]) -> str:
    root = compose(text)
    cases = member(member(root, "test"), "cases").value
    # From the end of the file: a replacement moves the positions behind it.
    for index in sorted(outputs, reverse=True):
        text = _replace_output(text, cases[index], outputs[index])
    return text


def _replace_output(text: str, case: Any, output: Any) -> str:
    """Return the text with the output of one case (a parsed node) replaced, or added after its other members."""
    old = member(case, "output")

    # `{name: a, output: …}`: the output as JSON on the same line.
    if case.flow_style:
        from stepflow.codec import encode

        inline = encode(output).decode()
        if old is not None:
            return text[: old.start_mark.index] + inline + text[old.end_mark.index :]
        end = content_end(case, text) - len("}")
        return f"{text[:end].rstrip()}, output: {inline}{text[end:]}"

    # One member per line: the output as an indented block.
    column = case.value[0][0].start_mark.column
    newline = "\r\n" if "\r\n" in text else "\n"
    indented = block(output, column + 2).replace("\n", newline)
    if old is not None:
        key = next(key for key, _ in case.value if key.value == "output")
        empty = old.start_mark.index == old.end_mark.index
        end = text.index(":", key.end_mark.index) + 1 if empty else content_end(old, text)
        return f"{text[: key.end_mark.index]}:{newline}{indented}{text[end:]}"
    end = content_end(case, text)
    return f"{text[:end]}{newline}{' ' * column}output:{newline}{indented}{text[end:]}"


def _write(path: Path, text: str) -> None:
    """Replace the file atomically."""
    path = path.resolve()
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            file.write(text.encode())
        shutil.copymode(path, file.name)
        os.replace(file.name, path)  # noqa: PTH105  # both are plain paths
    except OSError as error:
        raise FailedPrecondition("FILE_UNWRITABLE", f"cannot write {path}: {error.strerror}") from None
