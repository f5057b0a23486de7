"""Values of expressions and the steps that they need, by evaluating compiled flows."""

import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stepflow import codec
from stepflow.codec import Json
from stepflow.errors import Code, Failure
from stepflow.flow import CompiledFlow, Env, Expr, compile_flow, flow_from_tree

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # machines are busy

BROKEN = Failure(Code.COMPONENT_FAILED, "it broke", b'{"why":1}')
STEPS = ("a", "b", "c", "d")

UNSET: Any = object()


def compiled(output: Any, variables: Any = None) -> CompiledFlow:
    return compile_flow(
        flow_from_tree(
            {
                "steps": [{"id": step, "component": "/x"} for step in STEPS],
                "output": output,
                "schemas": {"properties": {"variables": variables}},
            }
        )
    )


def env_of(given_input: Any = None, supplied: dict[str, Any] | None = None, **results: Any) -> Env:
    """Make an environment; results are trees, failures, or left out when a step is not complete."""
    found: list[Json | Failure | None] = []
    for step in STEPS:
        result = results.get(step, UNSET)
        found.append(None if result is UNSET else result if isinstance(result, Failure) else json(result))
    return Env(json(given_input), found, {name: json(value) for name, value in (supplied or {}).items()})


def json(tree: Any) -> Json:
    return Json(codec.encode(tree))


def value_of(output: Any, env: Env | None = None, variables: Any = None) -> Any:
    expr = compiled(output, variables).output
    env = env or env_of()
    assert expr.needed(env) == []
    raw = expr.to_json(env)
    if isinstance(raw, Failure):
        assert expr.to_tree(env) == raw
        return raw
    assert codec.compact(raw) == raw
    assert expr.to_tree(env) == codec.decode(raw)
    return codec.decode(raw)


def waits_for(output: Any, env: Env, variables: Any = None) -> list[str]:
    return [STEPS[index] for index in compiled(output, variables).output.needed(env)]


def missing(message: str) -> Failure:
    return Failure(Code.EXPRESSION_FAILURE, message)


# --- literals, objects, arrays -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", [None, True, 0, -1, 2**80, 1.5, 5.0, 1e300, "", "é\n\u2028", [], {}, [[], {}], {"a": [1]}]
)
def test_plain_data_is_worth_itself(value: Any) -> None:
    expr = compiled(value).output
    assert expr.constant == codec.encode(value)
    assert expr.to_json(env_of()) == codec.encode(value)
    assert (expr.refs, expr.lazy) == ((), False)


def test_an_absent_output_is_null() -> None:
    assert value_of(None) is None


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ({"$literal": {"$literal": "x"}}, {"$literal": "x"}),
        ({"$literal": {"$step": "a"}}, {"$step": "a"}),
        ({"$literal": [{"$from": 1}]}, [{"$from": 1}]),
        ({"deep": [{"$literal": {"$if": 1}}]}, {"deep": [{"$if": 1}]}),
    ],
)
def test_a_literal_is_returned_verbatim(written: Any, value: Any) -> None:
    assert value_of(written) == value


def test_other_dollar_names_are_ordinary_members() -> None:
    written = {"$custom": 1, "$template": "x", "$on_skip": 2, "$ref": "#", "v": {"$input": "v"}}
    assert value_of(written, env_of({"v": 3})) == {**written, "v": 3}


def test_the_first_form_in_precedence_wins() -> None:
    env = env_of({"x": "input"}, a="step")
    assert value_of({"$input": "x", "$step": "a"}, env) == "step"
    assert value_of({"$step": "a", "$coalesce": [1]}, env) == 1
    assert value_of({"$coalesce": [1], "$if": False, "then": 2}, env) is None
    assert value_of({"$if": True, "then": 2, "$literal": 3}, env) == 3
    assert value_of({"$variable": "v", "$input": "x"}, env) == "input"


def test_members_keep_their_order_and_constants_stand_between_values() -> None:
    expr = compiled({"z": 1, "a": {"$step": "a"}, "m": [0, {"$input": "i"}, [], {"k": None}], "b": {}}).output
    raw = expr.to_json(env_of({"i": [2]}, a={"y": 1, "b": 2}))
    assert raw == b'{"z":1,"a":{"y":1,"b":2},"m":[0,[2],[],{"k":null}],"b":{}}'


def test_the_first_failure_in_document_order_is_the_result() -> None:
    env = env_of({}, a=BROKEN, b=Failure(Code.TIMEOUT, "late"))
    assert value_of([1, {"x": {"$input": "nope"}}, {"$step": "a"}], env) == missing("Input path $.nope not found")
    assert value_of({"p": {"$step": "b"}, "q": {"$step": "a"}}, env) == Failure(Code.TIMEOUT, "late")


@pytest.mark.parametrize("part", [{"$step": "a"}, {"$step": "a", "path": "text"}])
def test_a_composed_value_is_measured_before_it_is_joined(part: Any) -> None:
    part_bytes = 6_000_000
    env = env_of(a={"text": "x" * part_bytes})
    expr = compiled({"x": [part] * 40}).output
    expr.to_json(env)  # decodes the result, which stays
    tracemalloc.start()
    value = expr.to_json(env)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(value, Failure)
    assert (value.code, "the limit is 16,777,216" in value.message) == (Code.EXPRESSION_FAILURE, True)
    assert peak_bytes < 8 * part_bytes


def test_a_condition_that_is_only_too_large_is_true() -> None:
    env = env_of(a="x" * 6_000_000)
    assert value_of({"$if": {"x": [{"$step": "a"}] * 3}, "then": 1, "else": 2}, env) == 1


def test_numbers_pass_exactly() -> None:
    raw = b'{"int":9007199254740993,"big":123456789012345678901234567890,"f":0.1,"one":1.0,"e":1e300}'
    env = Env(Json(raw), [None] * 4, {})
    for name in ("int", "big", "f", "one", "e"):
        found = compiled({"$input": name}).output.to_json(env)
        assert isinstance(found, bytes)
        assert b'"' + name.encode() + b'":' + found in raw
    assert compiled({"v": {"$input": None}}).output.to_json(env) == b'{"v":' + raw + b"}"


# --- steps and input ---------------------------------------------------------------------------------------------


def test_paths_select_parts_of_the_input() -> None:
    given_input = {"message": "hi", "numbers": {"a": 1}, "items": ["x", "y"]}
    written = {
        "m": {"$input": "message"},
        "n": {"$input": "$.numbers.a"},
        "i": {"$input": "$.items[0]"},
        "all": {"$input": "$.numbers"},
        "whole": {"$input": None},
    }
    assert value_of(written, env_of(given_input)) == {
        "m": "hi",
        "n": 1,
        "i": "x",
        "all": {"a": 1},
        "whole": given_input,
    }


def test_a_missing_path_fails_with_expression_failure() -> None:
    env = env_of({"n": None, "list": [1]}, a={"x": {"y": 1}})
    assert value_of({"$step": "a", "path": "nope"}, env) == missing("Path $.nope not found")
    assert value_of({"$step": "a", "path": "x.y.z"}, env) == missing("Path $.x.y.z not found")
    assert value_of({"$input": "nope"}, env) == missing("Input path $.nope not found")
    assert value_of({"$input": "$['no.pe'][3]"}, env) == missing('Input path $["no.pe"][3] not found')
    assert value_of({"$input": "n.x"}, env) == missing("Input path $.n.x not found")
    assert value_of({"$input": "list.0"}, env) == missing("Input path $.list.0 not found")


def test_a_path_that_ends_at_null_is_null() -> None:
    assert value_of({"$input": "n"}, env_of({"n": None})) is None
    assert value_of({"$step": "a", "path": "n"}, env_of(a={"n": None})) is None


def test_a_null_result_is_null_whatever_the_path() -> None:
    assert value_of({"$step": "a", "path": "$.x[3].y"}, env_of(a=None)) is None
    assert value_of({"$step": "a"}, env_of(a=None)) is None


@pytest.mark.parametrize("path", [None, "x"])
def test_a_failed_step_is_its_failure_unchanged(path: str | None) -> None:
    assert value_of({"$step": "a", "path": path}, env_of(a=BROKEN)) is BROKEN


def test_an_unknown_step_fails() -> None:
    assert value_of([{"$step": "nope"}]) == missing("Unknown step: nope")
    assert compiled({"$step": "nope", "path": "x"}).output.refs == ()


def test_quoted_and_bare_names_are_told_apart() -> None:
    env = env_of({"a.b": 1, "a": {"b": 2}})
    assert value_of({"$input": '$["a.b"]'}, env) == 1
    assert value_of({"$input": "a.b"}, env) == 2


def test_evaluating_too_early_fails_instead_of_guessing() -> None:
    for written in ({"$step": "a"}, {"$step": "a", "path": "x"}):
        raw = compiled(written).output.to_json(env_of())
        assert raw == Failure(Code.ORCHESTRATOR_ERROR, "Step a not completed")


# --- $if and $coalesce -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("condition", [0, "", [], {}, "false", -1, 0.0, True, [None]])
def test_everything_but_null_false_and_failures_is_true(condition: Any) -> None:
    written = {"$if": {"$input": "c"}, "then": "yes", "else": "no"}
    assert value_of(written, env_of({"c": condition})) == "yes"
    assert value_of({**written, "$if": {"$step": "a"}}, env_of(a=condition)) == "yes"
    assert value_of({**written, "$if": {"$literal": condition}}) == "yes"


@pytest.mark.parametrize("condition", [None, False])
def test_null_and_false_are_false(condition: Any) -> None:
    written = {"$if": {"$input": "c"}, "then": "yes", "else": "no"}
    assert value_of(written, env_of({"c": condition})) == "no"
    assert value_of({**written, "$if": {"$step": "a", "path": "c"}}, env_of(a={"c": condition})) == "no"
    assert value_of({**written, "$if": condition}) == "no"


def test_a_condition_that_fails_is_false() -> None:
    env = env_of({}, a=BROKEN)
    for condition in ({"$input": "nope"}, {"$step": "a"}, {"$variable": "v"}, [{"$step": "a"}], {"$step": "nope"}):
        assert value_of({"$if": condition, "then": 1, "else": 2}, env) == 2


def test_without_else_a_false_condition_gives_null() -> None:
    assert value_of({"$if": False, "then": 1}) is None


def test_a_branch_that_fails_is_the_result() -> None:
    assert value_of({"$if": 1, "then": {"$step": "a"}}, env_of(a=BROKEN)) is BROKEN


@pytest.mark.parametrize(
    ("options", "value"),
    [
        ([False, 1], False),
        ([0, 1], 0),
        (["", 1], ""),
        ([None, [], 1], []),
        ([None, {}], {}),
        ([None, None], None),
        ([], None),
    ],
)
def test_coalesce_takes_the_first_that_is_not_null(options: list[Any], value: Any) -> None:
    assert value_of({"$coalesce": options}) == value
    assert value_of({"$coalesce": [{"$input": f"[{n}]"} for n in range(len(options))]}, env_of(options)) == value


def test_an_option_that_fails_ends_the_search() -> None:
    assert value_of({"$coalesce": [{"$input": "nope"}, 1]}, env_of({})) == missing("Input path $.nope not found")
    assert value_of({"$coalesce": [None, {"$step": "a"}, 1]}, env_of(a=BROKEN)) is BROKEN
    assert value_of({"$coalesce": [0, {"$step": "a"}]}, env_of(a=BROKEN)) == 0


# --- variables ---------------------------------------------------------------------------------------------------

VARIABLES = {
    "type": "object",
    "required": ["x", "with_default"],
    "properties": {
        "n": {"type": "number"},
        "i": {"type": "integer", "default": 7},
        "flag": {"type": "boolean"},
        "text": {"type": "string"},
        "maybe": {"type": ["string", "null"]},
        "either": {"type": ["string", "integer"]},
        "o": {"type": "object"},
        "list": {"type": "array"},
        "void": {"type": "null"},
        "any": {},
        "x": {"type": "string"},
        "with_default": {"type": "string", "default": "d"},
        "null_default": {"type": "object", "default": None},
        "tree": {"type": "object", "default": {"y": {"z": 1}}},
    },
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 0),
        ("i", 7),
        ("flag", False),
        ("text", ""),
        ("maybe", None),
        ("with_default", "d"),
        ("null_default", None),
        ("tree.y.z", 1),
    ],
)
def test_an_unset_variable_has_the_default_of_its_schema(name: str, value: Any) -> None:
    assert value_of({"$variable": name}, variables=VARIABLES) == value
    # The schema's default beats the one written at the reference.
    assert value_of({"$variable": name, "default": "inline"}, variables=VARIABLES) == value


@pytest.mark.parametrize("name", ["x", "o", "list", "void", "any", "either", "undeclared"])
def test_a_variable_without_a_value_is_undefined(name: str) -> None:
    assert value_of({"$variable": name}, variables=VARIABLES) == missing(f"Undefined variable: {name}")
    assert value_of({"$variable": name, "default": {"$input": "i"}}, env_of({"i": 3}), VARIABLES) == 3


def test_a_missing_part_of_a_variable_takes_the_default() -> None:
    env = env_of(supplied={"o": {"x": 1}, "tree": {}})
    written = {"$variable": "$.o.y", "default": "D"}
    assert value_of(written, env, VARIABLES) == "D"
    assert value_of({"$variable": "$.o.y"}, env, VARIABLES) == missing("Undefined variable: o")
    assert value_of({"$variable": "o.x", "default": "D"}, env, VARIABLES) == 1
    # The supplied value counts, not the schema's default, even for a part that only the latter has.
    assert value_of({"$variable": "tree.y", "default": "D"}, env, VARIABLES) == "D"


def test_a_supplied_null_beats_every_default() -> None:
    env = env_of(supplied={"i": None, "x": None})
    assert value_of({"$variable": "i", "default": 1}, env, VARIABLES) is None
    assert value_of({"$variable": "x", "default": 1}, env, VARIABLES) is None


def test_supplied_values_are_used_as_they_are() -> None:
    env = env_of(supplied={"undeclared": [1], "i": "no number"})
    assert value_of({"$variable": "undeclared[0]"}, env, VARIABLES) == 1
    assert value_of({"$variable": "i"}, env, VARIABLES) == "no number"


def test_a_variable_needs_a_name() -> None:
    assert value_of({"$variable": ""}) == Failure(Code.ORCHESTRATOR_ERROR, "Variable path is empty")
    assert value_of({"$variable": "$[0]"}) == Failure(Code.ORCHESTRATOR_ERROR, "Variable name must be a string")


def test_an_inline_default_of_null_is_a_value() -> None:
    assert value_of({"$variable": "undeclared", "default": None}) is None


# --- what has to be complete -------------------------------------------------------------------------------------


def ref(step: str, path: str | None = None) -> dict[str, Any]:
    return {"$step": step} if path is None else {"$step": step, "path": path}


def test_members_and_elements_are_awaited_together() -> None:
    expr = compiled({"p": ref("b"), "q": [ref("a"), ref("b", "x"), {"$input": "i"}], "r": ref("nope")}).output
    assert expr.refs == (1, 0)
    assert not expr.lazy
    assert expr.needed(env_of()) == [1, 0]
    assert expr.needed(env_of(b=1)) == [0]
    assert expr.needed(env_of(a=BROKEN, b=1)) == []


def test_only_the_chosen_branch_is_awaited() -> None:
    written = {"$if": ref("a"), "then": ref("b"), "else": ref("c")}
    assert compiled(written).output.lazy
    assert waits_for(written, env_of()) == ["a"]
    assert waits_for(written, env_of(a=True)) == ["b"]
    assert waits_for(written, env_of(a=False)) == ["c"]
    assert waits_for(written, env_of(a=BROKEN)) == ["c"]
    assert waits_for(written, env_of(a=1, b=1)) == []


def test_a_condition_on_the_input_is_decided_at_once() -> None:
    written = {"$if": {"$input": "flag"}, "then": ref("a"), "else": ref("b")}
    assert waits_for(written, env_of({"flag": True})) == ["a"]
    assert waits_for(written, env_of({"flag": False})) == ["b"]
    assert waits_for(written, env_of({})) == ["b"]


def test_alternatives_are_awaited_one_after_the_other() -> None:
    written = {"$coalesce": [ref("a", "x"), ref("b"), ref("c")]}
    assert waits_for(written, env_of()) == ["a"]
    assert waits_for(written, env_of(a={"x": 0})) == []
    assert waits_for(written, env_of(a={"x": None})) == ["b"]
    assert waits_for(written, env_of(a=None)) == ["b"]
    assert waits_for(written, env_of(a={})) == []  # a missing path fails, which ends the search
    assert waits_for(written, env_of(a=BROKEN)) == []
    assert waits_for(written, env_of(a=None, b=None)) == ["c"]
    assert waits_for(written, env_of(a=None, b=None, c=None)) == []


def test_the_default_of_a_variable_is_awaited_only_when_it_is_needed() -> None:
    written = {"$variable": "v.x", "default": ref("a")}
    assert waits_for(written, env_of()) == ["a"]
    assert waits_for(written, env_of(supplied={"v": {"x": 1}})) == []
    assert waits_for(written, env_of(supplied={"v": {}})) == ["a"]
    assert value_of(written, env_of(a=5)) == 5
    # A whole variable whose schema has a default never needs its own.
    always = compiled({"$variable": "i", "default": ref("a")}, VARIABLES).output
    assert (always.refs, always.lazy) == ((), False)


def test_a_lazy_part_does_not_hold_back_its_neighbours() -> None:
    written = {"p": {"$if": ref("a"), "then": ref("b")}, "q": ref("c"), "r": ref("a")}
    assert waits_for(written, env_of()) == ["a", "c"]
    assert waits_for(written, env_of(a=1)) == ["b", "c"]
    assert waits_for(written, env_of(a=False)) == ["c"]


def test_a_shared_step_still_holds_back_a_lazy_neighbour() -> None:
    # `a` is awaited by the first member already; the second must not look past it.
    written = [ref("a"), {"$coalesce": [ref("a"), ref("b")]}, {"$if": ref("a"), "then": ref("c")}]
    assert waits_for(written, env_of()) == ["a"]


def test_laziness_nests() -> None:
    inner = {"$coalesce": [ref("b"), {"$if": ref("c"), "then": ref("d")}]}
    written = {"$if": {"$coalesce": [None, ref("a")]}, "then": [inner]}
    assert waits_for(written, env_of()) == ["a"]
    assert waits_for(written, env_of(a=1)) == ["b"]
    assert waits_for(written, env_of(a=1, b=None)) == ["c"]
    assert waits_for(written, env_of(a=1, b=None, c=1)) == ["d"]
    assert waits_for(written, env_of(a=None)) == []


def test_conditionals_without_steps_are_not_lazy() -> None:
    for written in ({"$if": ref("a"), "then": 1}, {"$coalesce": [ref("a"), 1]}, {"$variable": "v", "default": 1}):
        assert not compiled([written, ref("b")]).output.lazy


def test_touched_are_the_complete_steps() -> None:
    expr = compiled([ref("a"), {"$if": ref("b"), "then": ref("c")}]).output
    assert list(expr.touched(env_of(a=1, c=BROKEN))) == [0, 2]


# --- flows -------------------------------------------------------------------------------------------------------


def test_a_flow_is_compiled_with_its_steps_by_index() -> None:
    plan = compile_flow(
        flow_from_tree(
            {
                "steps": [
                    {"id": "one", "component": "/x", "input": ref("two"), "timeout": "1s", "mustExecute": True},
                    {"id": "two", "component": "/y", "idleTimeout": "2s"},
                ],
                "output": ref("one"),
            }
        )
    )
    assert plan.index_of == {"one": 0, "two": 1}
    assert plan.steps[0].input.refs == (1,)  # a forward reference compiles
    assert (plan.steps[0].timeout_ms, plan.steps[1].idle_timeout_ms) == (1_000, 2_000)
    assert plan.must_execute == (0,)
    assert plan.output.refs == (0,)


def test_a_repeated_id_is_its_last_definition() -> None:
    steps = [{"id": "s", "component": "/first", "mustExecute": True}, {"id": "s", "component": "/last"}]
    plan = compile_flow(flow_from_tree({"steps": steps, "output": ref("s")}))
    assert plan.output.refs == (1,)
    assert plan.must_execute == ()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda inner: {"k": inner},
        lambda inner: [inner],
        lambda inner: {"$if": inner, "then": True},
        lambda inner: {"$if": True, "then": inner},
        lambda inner: {"$if": False, "then": 1, "else": inner},
        lambda inner: {"$variable": "v", "default": inner},
    ],
)
def test_expressions_may_be_as_deep_as_documents(wrap: Callable[[Any], Any]) -> None:
    deep: Any = ref("a")
    for _ in range(codec.JSON_DEPTH_MAX - 2):
        deep = wrap(deep)
    expr = compiled(deep).output
    assert expr.needed(env_of()) == [0]
    assert expr.needed(env_of(a=True)) == []
    assert isinstance(expr.to_json(env_of(a=True)), bytes)


# --- properties --------------------------------------------------------------------------------------------------

plain = st.none() | st.booleans() | st.integers(-2, 2) | st.just({"x": {"y": None}}) | st.just([0, None])
trees = st.recursive(
    plain
    | st.sampled_from([ref(step, path) for step in (*STEPS, "nope") for path in (None, "x", "x.y", "[0]")])
    | st.sampled_from([{"$input": path} for path in (None, "x", "[1]")])
    | st.just({"$variable": "v.x"}),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["p", "q", "$r"]), inner, max_size=3)
        | st.builds(lambda options: {"$coalesce": options}, st.lists(inner, max_size=3))
        | st.builds(lambda c, t, e: {"$if": c, "then": t, "else": e}, inner, inner, inner)
        | st.builds(lambda default: {"$variable": "v.x", "default": default}, inner)
    ),
    max_leaves=10,
)
results = st.dictionaries(st.sampled_from(STEPS), plain | st.just(BROKEN), min_size=4)


def naive(tree: Any, env: Env) -> Any:
    """Evaluate by the letter of the rules, slowly: the model."""
    if isinstance(tree, list) or (
        isinstance(tree, dict) and not any(key in tree for key in ("$if", "$coalesce", "$step", "$input", "$variable"))
    ):
        pairs = list(enumerate(tree)) if isinstance(tree, list) else list(tree.items())
        values = [(key, naive(value, env)) for key, value in pairs]
        for _, value in values:
            if isinstance(value, Failure):
                return value
        return [value for _, value in values] if isinstance(tree, list) else dict(values)
    if not isinstance(tree, dict):
        return tree
    if "$if" in tree:
        condition = naive(tree["$if"], env)
        falsy = condition is None or condition is False or isinstance(condition, Failure)
        return naive(tree["else" if falsy else "then"], env)
    if "$coalesce" in tree:
        for option in tree["$coalesce"]:
            if (value := naive(option, env)) is not None:
                return value
        return None
    if "$variable" in tree:
        v = env.variables["v"].tree
        if isinstance(v, dict) and "x" in v:
            return v["x"]
        return naive(tree["default"], env) if "default" in tree else missing("Undefined variable: v")
    path, source, text = tree.get("path"), env.input, "Input path"
    if "$step" in tree:
        if tree["$step"] not in STEPS:
            return missing(f"Unknown step: {tree['$step']}")
        found, text = env.results[STEPS.index(tree["$step"])], "Path"
        assert found is not None
        if isinstance(found, Failure) or found.tree is None:
            return found if isinstance(found, Failure) else None
        source = found
    else:
        path = tree["$input"]
    value = source.tree
    for name in (path or "").split("."):
        if name == "":
            continue
        at: Any = int(name[1]) if name.startswith("[") else name
        try:
            if isinstance(at, int) is not isinstance(value, list) or not isinstance(value, (list, dict)):
                raise KeyError
            value = value[at]
        except (KeyError, IndexError):
            dot = "" if str(path).startswith("[") else "."
            return missing(f"{text} ${dot}{path} not found")
    return value


@relaxed
@given(trees, results, plain, plain)
def test_evaluation_agrees_with_the_letter_of_the_rules(
    tree: Any, done: dict[str, Any], given_input: Any, v: Any
) -> None:
    env = env_of(given_input, {"v": v}, **done)
    value = compiled(tree).output.to_tree(env)
    assert codec.encode(_comparable(value)) == codec.encode(_comparable(naive(tree, env)))


@relaxed
@given(trees, results, plain, st.permutations(STEPS))
def test_completing_what_is_needed_leads_to_the_value(
    tree: Any, done: dict[str, Any], v: Any, order: list[str]
) -> None:
    """The completion order of the needed steps does not change the value, and unneeded steps do not matter."""
    expr = compiled(tree).output
    full = env_of({}, {"v": v}, **done)
    env = env_of({}, {"v": v})
    for _ in STEPS:
        needed = expr.needed(env)
        assert set(needed) <= set(expr.refs)
        assert not any(env.results[index] is not None for index in needed)
        if not needed:
            break
        first = min(needed, key=lambda index: order.index(STEPS[index]))
        env.results[first] = full.results[first]
    assert expr.needed(env) == []
    assert expr.to_json(env) == expr.to_json(full)


def _comparable(value: Any) -> Any:
    return [value.code, value.message] if isinstance(value, Failure) else {"value": value}


def test_results_are_spliced_without_being_decoded() -> None:
    class Undecodable(Json):
        @property
        def tree(self) -> Any:
            raise AssertionError("nobody may look into it")

    raw = b'{"k":[1,2]}'
    env = Env(Undecodable(raw), [Undecodable(raw), None, None, None], {"v": Undecodable(raw)})
    written = {"s": ref("a"), "i": {"$input": None}, "v": {"$variable": "v"}, "c": {"$coalesce": [None, ref("a")]}}
    written["if"] = {"$if": ref("a"), "then": ref("a")}
    expr: Expr = compiled(written).output
    assert expr.needed(env) == []
    assert expr.to_json(env) == b'{"s":%b,"i":%b,"v":%b,"c":%b,"if":%b}' % ((raw,) * 5)
