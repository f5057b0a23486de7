"""Resolution of a path to a plugin and a component."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepflow import codec
from stepflow.errors import Code
from stepflow.flow import parse_path
from stepflow.routing.table import (
    ENGINE_COMPONENTS,
    REMEMBERED_PATHS_MAX,
    NoRoute,
    PluginComponents,
    RouteTable,
    Rule,
    Target,
    json_equal,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

NOTHING = codec.Json(b"null")
UNREADABLE = codec.Json(b"not json at all")
"""An input that fails when it is decoded."""


def listed(*components: str, **options: Any) -> PluginComponents:
    """A plugin whose component ids are their paths."""
    return PluginComponents(tuple((component, component) for component in components), **options)


def table(routes: Mapping[str, Sequence[Rule]], **plugins: PluginComponents) -> RouteTable:
    return RouteTable(routes, plugins)


def given_input(tree: Any) -> codec.Json:
    return codec.Json(codec.encode(tree))


def when(path: str, value: Any) -> tuple[tuple[Any, Any], ...]:
    return ((parse_path(path), value),)


def reached(found: Target | NoRoute) -> tuple[str, str]:
    assert isinstance(found, Target), found
    return found.plugin, found.component


def reason(found: Target | NoRoute) -> str:
    assert isinstance(found, NoRoute), found
    return found.reason


def test_a_prefix_and_a_listed_path_lead_to_a_component() -> None:
    routes = table({"/mock": [Rule("m")]}, m=listed("/one", "/two"))
    assert routes.resolve("/mock/two", NOTHING) == Target("m", "/two")


def test_component_ids_need_not_be_paths() -> None:
    routes = table({"/py": [Rule("p")]}, p=PluginComponents((("echo", "/echo"),)))
    assert routes.resolve("/py/echo", NOTHING) == Target("p", "echo")


def test_the_root_route_sees_the_whole_path() -> None:
    routes = table({"/": [Rule("b")]}, b=listed("/noop", "/builtin/noop"))
    assert reached(routes.resolve("/noop", NOTHING)) == ("b", "/noop")
    assert reached(routes.resolve("/builtin/noop", NOTHING)) == ("b", "/builtin/noop")


def test_a_prefix_that_leads_nowhere_falls_back_to_the_root_route() -> None:
    routes = table({"/a": [Rule("a")], "/": [Rule("root")]}, a=listed("/x"), root=listed("/a/y", "/a/x"))
    assert reached(routes.resolve("/a/x", NOTHING)) == ("a", "/x")
    assert reached(routes.resolve("/a/y", NOTHING)) == ("root", "/a/y")


def test_a_prefix_alone_means_the_path_slash() -> None:
    routes = table({"/a": [Rule("a")]}, a=listed("/"))
    assert reached(routes.resolve("/a", NOTHING)) == ("a", "/")
    assert reached(routes.resolve("/a/", NOTHING)) == ("a", "/")


def test_a_trailing_slash_makes_another_path() -> None:
    routes = table({"/": [Rule("b")]}, b=listed("/noop"))
    assert reason(routes.resolve("/noop/", NOTHING)) == "not_listed"


def test_the_next_rule_is_tried_when_a_plugin_lacks_the_component() -> None:
    routes = table({"/a": [Rule("first"), Rule("second")]}, first=listed("/x"), second=listed("/x", "/y"))
    assert reached(routes.resolve("/a/x", NOTHING)) == ("first", "/x")
    assert reached(routes.resolve("/a/y", NOTHING)) == ("second", "/y")


def test_a_denied_component_goes_to_the_next_rule() -> None:
    rules = [Rule("first", deny=frozenset({"/x"})), Rule("second")]
    routes = table({"/a": rules}, first=listed("/x", "/y"), second=listed("/x", "/y"))
    assert reached(routes.resolve("/a/x", NOTHING)) == ("second", "/x")
    assert reached(routes.resolve("/a/y", NOTHING)) == ("first", "/y")


def test_what_an_allow_list_lacks_cannot_be_routed() -> None:
    routes = table({"/a": [Rule("p", allow=frozenset({"/x"}))]}, p=listed("/x", "/y"))
    assert reached(routes.resolve("/a/x", NOTHING)) == ("p", "/x")
    assert reason(routes.resolve("/a/y", NOTHING)) == "excluded"


def test_deny_beats_allow() -> None:
    both = Rule("p", allow=frozenset({"/x"}), deny=frozenset({"/x"}))
    assert reason(table({"/a": [both]}, p=listed("/x")).resolve("/a/x", NOTHING)) == "excluded"


def test_an_empty_allow_list_admits_nothing() -> None:
    assert reason(table({"/a": [Rule("p", allow=frozenset())]}, p=listed("/x")).resolve("/a/x", NOTHING)) == "excluded"


def test_a_condition_chooses_by_the_input() -> None:
    rules = [Rule("gpu", when("$.size", "large")), Rule("cpu")]
    routes = table({"/a": rules}, gpu=listed("/x"), cpu=listed("/x"))
    assert reached(routes.resolve("/a/x", given_input({"size": "large"}))) == ("gpu", "/x")
    assert reached(routes.resolve("/a/x", given_input({"size": "small"}))) == ("cpu", "/x")


@pytest.mark.parametrize("tree", [{}, None, [], "text", {"size": {}}, {"size": None}])
def test_a_condition_on_a_path_that_the_input_lacks_does_not_hold(tree: Any) -> None:
    rules = [Rule("gpu", when("$.size.exact", 1)), Rule("cpu")]
    assert reached(table({"/a": rules}, gpu=listed("/x"), cpu=listed("/x")).resolve("/a/x", given_input(tree))) == (
        "cpu",
        "/x",
    )


def test_all_conditions_must_hold() -> None:
    both = when("a", 1) + when("b", 2)
    routes = table({"/a": [Rule("p", both)]}, p=listed("/x"))
    assert reached(routes.resolve("/a/x", given_input({"a": 1, "b": 2}))) == ("p", "/x")
    assert reason(routes.resolve("/a/x", given_input({"a": 1}))) == "condition"


def test_a_null_can_be_a_condition() -> None:
    routes = table({"/a": [Rule("p", when("a", None))]}, p=listed("/x"))
    assert reached(routes.resolve("/a/x", given_input({"a": None}))) == ("p", "/x")
    assert reason(routes.resolve("/a/x", given_input({}))) == "condition"


def test_the_root_route_comes_after_unmet_conditions() -> None:
    routes = table({"/a": [Rule("p", when("a", 1))], "/": [Rule("root")]}, p=listed("/x"), root=listed("/a/x"))
    assert reached(routes.resolve("/a/x", given_input({"a": 1}))) == ("p", "/x")
    assert reached(routes.resolve("/a/x", given_input({}))) == ("root", "/a/x")


def test_a_condition_behind_an_unconditional_rule_is_never_looked_at() -> None:
    rules = [Rule("always"), Rule("never", when("a", 1))]
    routes = table({"/a": rules}, always=listed("/x"), never=listed("/x"))
    assert reached(routes.resolve("/a/x", UNREADABLE)) == ("always", "/x")


def test_an_input_is_not_decoded_when_no_matching_rule_has_conditions() -> None:
    rules = [Rule("elsewhere", when("a", 1)), Rule("p")]
    routes = table({"/a": rules}, elsewhere=listed("/other"), p=listed("/x"))
    assert reached(routes.resolve("/a/x", UNREADABLE)) == ("p", "/x")


def test_a_wildcard_takes_the_rest_of_the_path() -> None:
    routes = table({"/py": [Rule("p")]}, p=PluginComponents((("core", "/core/{*path}"),)))
    assert routes.resolve("/py/core/bar/baz", NOTHING) == Target("p", "core", None, {"path": "bar/baz"})
    assert reason(routes.resolve("/py/core/", NOTHING)) == "not_listed"
    assert reason(routes.resolve("/py/core", NOTHING)) == "not_listed"


def test_a_parameter_takes_one_segment() -> None:
    routes = table({"/py": [Rule("p")]}, p=PluginComponents((("get", "/{kind}/of/{id}"),)))
    assert routes.resolve("/py/users/of/7", NOTHING) == Target("p", "get", None, {"kind": "users", "id": "7"})
    assert reason(routes.resolve("/py/users/of/7/8", NOTHING)) == "not_listed"
    assert reason(routes.resolve("/py/users/of/", NOTHING)) == "not_listed"


def test_literals_beat_parameters_and_parameters_beat_wildcards() -> None:
    offered = PluginComponents((("rest", "/a/{*rest}"), ("one", "/a/{id}"), ("literal", "/a/b")))
    routes = table({"/p": [Rule("p")]}, p=offered)
    assert reached(routes.resolve("/p/a/b", NOTHING)) == ("p", "literal")
    assert reached(routes.resolve("/p/a/c", NOTHING)) == ("p", "one")
    assert reached(routes.resolve("/p/a/c/d", NOTHING)) == ("p", "rest")


def test_a_dead_end_behind_a_literal_falls_back_to_the_parameter() -> None:
    offered = PluginComponents((("x", "/a/b/x"), ("y", "/a/{id}/y"), ("rest", "/{*rest}")))
    routes = table({"/p": [Rule("p")]}, p=offered)
    assert routes.resolve("/p/a/b/y", NOTHING) == Target("p", "y", None, {"id": "b"})
    assert routes.resolve("/p/a/b/z", NOTHING) == Target("p", "rest", None, {"rest": "a/b/z"})


def test_two_parameters_of_different_names_at_one_place_are_both_tried() -> None:
    offered = PluginComponents((("left", "/{a}/left"), ("right", "/{b}/right")))
    routes = table({"/p": [Rule("p")]}, p=offered)
    assert routes.resolve("/p/1/right", NOTHING) == Target("p", "right", None, {"b": "1"})


def test_braces_that_are_no_parameter_are_plain_characters() -> None:
    offered = PluginComponents((("odd", "/a{b}"), ("middle", "/{*all}/x")))
    routes = table({"/p": [Rule("p")]}, p=offered)
    assert reached(routes.resolve("/p/a{b}", NOTHING)) == ("p", "odd")
    assert reason(routes.resolve("/p/a/b/x", NOTHING)) == "not_listed"


def test_an_incomplete_listing_admits_what_it_does_not_list() -> None:
    routes = table({"/py": [Rule("p")]}, p=PluginComponents((("echo", "/echo"),), complete=False))
    assert reached(routes.resolve("/py/echo", NOTHING)) == ("p", "echo")
    assert reached(routes.resolve("/py/core/langchain", NOTHING)) == ("p", "/core/langchain")
    assert reason(routes.resolve("/py", NOTHING)) == "not_listed"


def test_a_plugin_that_was_not_heard_of_admits_any_path() -> None:
    assert reached(table({"/py": [Rule("elsewhere")]}).resolve("/py/echo", NOTHING)) == ("elsewhere", "/echo")


def test_allow_lists_hold_for_unlisted_components_too() -> None:
    routes = table({"/py": [Rule("p", allow=frozenset({"/a"}))]}, p=PluginComponents(complete=False))
    assert reached(routes.resolve("/py/a", NOTHING)) == ("p", "/a")
    assert reason(routes.resolve("/py/b", NOTHING)) == "excluded"


def test_route_parameters_go_with_the_target() -> None:
    routes = table({"/py": [Rule("p", params={"queueName": "gpu"})]}, p=listed("/x"))
    found = routes.resolve("/py/x", NOTHING)
    assert isinstance(found, Target)
    assert found.route_params == {"queueName": "gpu"}


@pytest.mark.parametrize("component", sorted(ENGINE_COMPONENTS))
def test_components_of_the_engine_are_marked(component: str) -> None:
    routes = table({"/builtin": [Rule("b")]}, b=listed("/noop", *ENGINE_COMPONENTS, engine=ENGINE_COMPONENTS))
    found = routes.resolve(f"/builtin{component}", NOTHING)
    assert isinstance(found, Target)
    assert found.engine == component[1:]
    assert routes.may_be_engine(f"/builtin{component}")
    assert not routes.may_be_engine("/builtin/noop")
    assert not routes.may_be_engine("/nowhere")


def test_a_component_of_another_plugin_with_an_engine_name_is_not_the_engines() -> None:
    routes = table({"/mine": [Rule("p")]}, p=listed("/map"))
    assert not routes.may_be_engine("/mine/map")


def test_one_possible_outcome_suffices_for_may_be_engine() -> None:
    plugins = {"b": listed("/map", engine=ENGINE_COMPONENTS), "p": listed("/map")}
    first = RouteTable({"/a": [Rule("b", when("x", 1)), Rule("p")]}, plugins)
    last = RouteTable({"/a": [Rule("p", when("x", 1)), Rule("b")]}, plugins)
    neither = RouteTable({"/a": [Rule("p", when("x", 1)), Rule("p")]}, plugins)
    assert first.may_be_engine("/a/map")
    assert last.may_be_engine("/a/map")
    assert not neither.may_be_engine("/a/map")


@pytest.mark.parametrize("path", ["", "noop", "builtin/noop"])
def test_a_path_without_leading_slash_is_none(path: str) -> None:
    routes = table({"/builtin": [Rule("b")], "/": [Rule("b")]}, b=listed("/noop"))
    assert reason(routes.resolve(path, NOTHING)) == "not_a_path"


@pytest.mark.parametrize("path", ["/", "//", "//noop", "/builtin//noop", "/builtinx/noop"])
def test_odd_paths_lead_nowhere_and_break_nothing(path: str) -> None:
    routes = table({"/builtin": [Rule("b")], "/": [Rule("b")]}, b=listed("/noop"))
    assert reason(routes.resolve(path, NOTHING)) == "not_listed"


def test_an_unknown_prefix_is_told_with_those_that_exist() -> None:
    found = table({"/builtin": [Rule("b")]}, b=listed("/noop")).resolve("/buildin/noop", NOTHING)
    assert isinstance(found, NoRoute)
    assert found.reason == "no_rule"
    assert "`/builtin`" in found.message


def test_no_route_fails_the_step_with_the_text_that_flows_expect() -> None:
    found = table({}).resolve("/x", NOTHING)
    assert isinstance(found, NoRoute)
    failure = found.failure()
    assert failure.code is Code.ORCHESTRATOR_ERROR
    assert failure.message == "error routing component"
    data = codec.decode(failure.data)
    assert data["reason"] == "no_rule"
    assert data["stack"][0]["attachments"] == [found.message]


def test_any_number_of_paths_is_resolved_and_few_are_remembered() -> None:
    routes = table({"/py": [Rule("p")]}, p=PluginComponents(complete=False))
    for number in range(REMEMBERED_PATHS_MAX + 10):
        assert reached(routes.resolve(f"/py/{number}", NOTHING)) == ("p", f"/{number}")
    assert len(routes._remembered) <= REMEMBERED_PATHS_MAX


json_trees = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-5, 5, width=16) | st.text("ab", max_size=2),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text("ab", max_size=1), below, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [
        (1, 1.0, True),
        (0, False, False),
        (1, True, False),
        (True, True, True),
        (None, False, False),
        (None, None, True),
        ("1", 1, False),
        ({"a": 1, "b": [2]}, {"b": [2.0], "a": 1}, True),
        ({"a": [True]}, {"a": [1]}, False),
        ({"a": 1}, {"a": 1, "b": None}, False),
        ([1, 2], [2, 1], False),
        ([], {}, False),
        (2**53 + 1, float(2**53), False),
    ],
)
def test_json_equality_is_numeric_and_keeps_booleans_apart(left: Any, right: Any, equal: bool) -> None:
    assert json_equal(left, right) is equal
    assert json_equal(right, left) is equal


@given(json_trees)
def test_every_tree_equals_itself_after_a_round_trip(tree: Any) -> None:
    assert json_equal(tree, codec.decode(codec.encode(tree)))


@given(json_trees, json_trees)
def test_equality_is_symmetric(left: Any, right: Any) -> None:
    assert json_equal(left, right) is json_equal(right, left)


segments = st.sampled_from(("a", "b", "{x}", "{y}"))
patterns = st.builds(
    lambda parts, rest: "/" + "/".join([*parts, *rest]),
    st.lists(segments, min_size=1, max_size=3),
    st.sampled_from(((), (), ("{*rest}",))),
)
paths = st.lists(st.sampled_from(("a", "b", "c", "")), min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))


def fits(pattern: str, path: str) -> bool:
    wanted, given = pattern.split("/")[1:], path.split("/")[1:]
    if wanted[-1].startswith("{*"):
        head = len(wanted) - 1
        return all(map(fits_segment, wanted[:-1], given)) and len(given) > head and "/".join(given[head:]) != ""
    return len(wanted) == len(given) and all(map(fits_segment, wanted, given))


def fits_segment(wanted: str, given: str) -> bool:
    return given != "" if wanted.startswith("{") else wanted == given


def strength(pattern: str) -> list[int]:
    """Literals before parameters before the wildcard, from the left."""
    return [2 if part.startswith("{*") else 1 if part.startswith("{") else 0 for part in pattern.split("/")[1:]]


def test_the_name_of_a_parameter_does_not_hide_a_stronger_pattern() -> None:
    """`/a/a` fits both; the second has a literal where the first has its wildcard."""
    offered = ("/{x}/{*rest}", "/{y}/a")
    routes = table({"/p": [Rule("p")]}, p=PluginComponents(tuple((pattern, pattern) for pattern in offered)))
    assert reached(routes.resolve("/p/a/a", NOTHING))[1] == "/{y}/a"


@given(st.lists(patterns, max_size=6), paths)
def test_the_strongest_fitting_pattern_wins_whatever_the_order(offered: list[str], path: str) -> None:
    routes = table({"/p": [Rule("p")]}, p=PluginComponents(tuple((pattern, pattern) for pattern in offered)))
    fitting = [strength(pattern) for pattern in offered if fits(pattern, path)]
    found = routes.resolve("/p" + path, NOTHING)
    if not fitting:
        assert reason(found) == "not_listed"
    else:
        assert strength(reached(found)[1]) == min(fitting)


@pytest.mark.parametrize(("route", "path"), [("/py", "/py/gret"), ("/", "/gret")])
def test_a_misspelt_component_is_answered_with_the_nearest_one(route: str, path: str) -> None:
    found = table({route: [Rule("p")]}, p=listed("/greet", "/other")).resolve(path, NOTHING)
    assert isinstance(found, NoRoute)
    assert found.message.endswith(f"has no component for `{path}`; did you mean `{path.replace('gret', 'greet')}`?")
