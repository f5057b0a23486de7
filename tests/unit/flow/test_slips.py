"""Hints about texts that look like templates, and about inner flows without `$literal`."""

from typing import Any

import pytest

from stepflow.flow import flow_from_tree, validate_flow


def hints(given: Any, output: Any = None, component: str = "/x") -> list[tuple[int, str | None]]:
    schemas = {"properties": {"input": {"properties": {"who": {}}}, "variables": {"properties": {"model": {}}}}}
    steps = [{"id": "a", "component": "/x"}, {"id": "b", "component": component, "input": given}]
    found = validate_flow(flow_from_tree({"schemas": schemas, "steps": steps, "output": output}))
    return [(item.code, item.formatted.partition("; write ")[2]) for item in found if item.code in (1904, 1905)]


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("{{ who }}", "{ $input: who }"),
        ("Hello {{who.name}}!", "{ $input: who.name }"),
        ("${inputs.who}", "{ $input: who }"),
        ("${input.who[0].x}", "{ $input: who[0].x }"),
        ("{{ $.who }}", "{ $input: who }"),
        ("{{ steps.a.output.text }}", "{ $step: a, path: text }"),
        ("${a}", "{ $step: a }"),
        ("${a.outputs}", "{ $step: a }"),
        ("${variables.model}", "{ $variable: model }"),
        ("${HOME} {{ model }}", "{ $variable: model }"),
    ],
)
def test_a_template_with_a_known_name_gives_a_hint_with_the_expression(text: str, meant: str) -> None:
    ((code, sentence),) = hints({"text": text})
    assert code == 1904
    assert sentence is not None
    assert sentence.startswith(f"`{meant}` as the whole value")
    assert [code for code, _ in hints(None, output=[text])] == [1904]


@pytest.mark.parametrize(
    "given",
    [
        "{{ nobody }}",
        "${HOME}",
        "{ who }",
        "$who",
        "{{ who | upper }}",
        {"$literal": "{{ who }}"},
        {"template": "Hello {{ who }}", "values": {"who": {"$input": "who"}}},
    ],
)
def test_other_texts_give_none(given: Any) -> None:
    assert hints(given) == []


INNER = {"steps": [{"id": "i", "component": "/x", "input": {"$input": "who"}}]}


@pytest.mark.parametrize(("component", "member"), [("/builtin/map", "workflow"), ("/builtin/iterate", "flow")])
def test_an_inner_flow_with_references_and_without_literal_gives_a_hint(component: str, member: str) -> None:
    assert [code for code, _ in hints({member: INNER}, component=component)] == [1905]
    assert hints({member: {"$literal": INNER}}, component=component) == []
    assert hints({member: {"steps": [{"id": "i", "component": "/x", "input": 1}]}}, component=component) == []
    assert hints({member: INNER}) == []
