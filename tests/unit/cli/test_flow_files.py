"""The files below a folder that `stepflow flows store` takes for flows."""

from __future__ import annotations

from pathlib import Path

import pytest

from stepflow.cli.flow_files import find_flow_files

FLOWS = {
    "a.yaml": "name: a\noutput: 1\n",
    "deep/b.json": '{"steps": []}',
    "deep/c.yml": "schema: https://stepflow.org/schemas/v1/flow.json\n",
    "wrong.yaml": "steps: 1\n",
    "wrong/syntax.yaml": "name: x\nsteps:\n- {id: a\n",
    "wrong/syntax.json": '{\n  "steps": [,]\n}\n',
}
OTHERS = {
    "stepflow-config.yml": "plugins: {b: {type: builtin}}\nroutes: {}\n",
    "list.yaml": "- steps: 1\n",
    "compose.yaml": "name: x\nservices: {}\n",
    "manifests.yaml": "kind: Pod\n---\nkind: Pod\n",
    "package.json": '{"name": "x"}',
}
UNSEEN = {".hidden/a.yaml": FLOWS["a.yaml"], "notes.txt": "steps: 1\n"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in {**FLOWS, **OTHERS, **UNSEEN}.items():
        path = Path("flows") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_flows_are_found_with_their_mistakes_and_other_files_are_left_out() -> None:
    flows, left_out = find_flow_files(["flows"])
    assert flows == sorted((f"flows/{name}" for name in FLOWS), key=Path)
    assert left_out == sorted((f"flows/{name}" for name in OTHERS), key=Path)


def test_a_file_that_is_named_is_a_flow_whatever_it_holds_and_none_is_found_twice() -> None:
    named = "flows/stepflow-config.yml"
    flows, left_out = find_flow_files(["greet@live", "-", named, "flows", "flows/deep"])
    assert flows[:3] == ["greet@live", "-", named]
    assert len(flows) == len(set(flows)) == 3 + len(FLOWS)
    assert named not in left_out


def test_a_missing_file_stays_in_the_list_for_the_reader_to_refuse() -> None:
    assert find_flow_files(["flows/none.yaml"]) == (["flows/none.yaml"], [])
