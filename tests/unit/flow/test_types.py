"""Types of flows: whether one fits another, projections, unions, and bounds for schemas of other people."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepflow.flow.schema import InputValidator
from stepflow.flow.types import TypeScope, Verdict, fits, type_text
from stepflow.flow.types.make import ANY, NEVER, TYPE_NODES_MAX, UNION_MAX, is_any, literal_type, union
from stepflow.flow.types.scope import ALTERNATIVES_MAX

YES, MAYBE, NO, UNKNOWN = Verdict.YES, Verdict.MAYBE, Verdict.NO, Verdict.UNKNOWN

STRING, INTEGER, NUMBER, BOOLEAN, NULL = ({"type": kind} for kind in ("string", "integer", "number", "boolean", "null"))


def obj(*required: str, closed: bool = False, **properties: Any) -> dict[str, Any]:
    """An object schema."""
    made: dict[str, Any] = {"type": "object", "properties": properties, "required": list(required)}
    return {**made, "additionalProperties": False} if closed else made


def arr(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


TREE = {"$ref": "#/$defs/Tree", "$defs": {"Tree": obj("kids", kids=arr({"$ref": "#/$defs/Tree"}))}}
LIST = {"$ref": "#/$defs/List", "$defs": {"List": obj("kids", kids=arr({"$ref": "#/$defs/List"}))}}
OTHER = {"$ref": "#/$defs/Tree", "$defs": {"Tree": obj("kids", kids=arr(STRING))}}

MATRIX: list[tuple[str, Any, Any, Verdict]] = [
    # any and never
    ("any wanted", STRING, {}, YES),
    ("true wanted", STRING, True, YES),
    ("annotations alone want nothing", STRING, {"description": "a text", "title": "T"}, YES),
    ("any offered", {}, STRING, UNKNOWN),
    ("true offered", True, STRING, UNKNOWN),
    ("never offered", False, STRING, YES),
    ("never wanted", STRING, False, NO),
    ("any for any", {}, {}, YES),
    # type keywords
    ("equal types", STRING, STRING, YES),
    ("string for integer", STRING, INTEGER, NO),
    ("integer for number", INTEGER, NUMBER, YES),
    ("number for integer", NUMBER, INTEGER, NO),
    ("whole float for integer", {"type": "number", "const": 2.0}, INTEGER, YES),
    ("fraction for integer", {"type": "number", "const": 2.5}, INTEGER, NO),
    ("boolean for integer", BOOLEAN, INTEGER, NO),
    ("null for string", NULL, STRING, NO),
    # type lists
    ("string for string or null", STRING, {"type": ["string", "null"]}, YES),
    ("integer for number or null", INTEGER, {"type": ["number", "null"]}, YES),
    ("integer for string or null", INTEGER, {"type": ["string", "null"]}, NO),
    ("string or null for string", {"type": ["string", "null"]}, STRING, MAYBE),
    ("string or null for integer", {"type": ["string", "null"]}, INTEGER, NO),
    ("string or null for both", {"type": ["string", "null"]}, {"type": ["null", "string"]}, YES),
    # objects
    ("required and there", obj("a", a=STRING), obj("a", a=STRING), YES),
    ("required and missing", obj("a", a=STRING), obj("b", b=STRING), NO),
    ("required and missing in a closed object", obj("a", closed=True, a=STRING), obj("b"), NO),
    ("required, and nothing is said", {"type": "object"}, obj("b", b=STRING), UNKNOWN),
    ("required, and optional there", obj(a=STRING), obj("a", a=STRING), UNKNOWN),
    ("shared members differ", obj("a", a=STRING), obj(a=INTEGER), NO),
    ("shared optional members differ", obj(a=STRING), obj(a=INTEGER), MAYBE),
    ("an extra member", obj("a", "b", a=STRING, b=STRING), obj("a", a=STRING), YES),
    ("an extra member for a closed object", obj("a", "b", a=STRING, b=STRING), obj("a", closed=True, a=STRING), NO),
    ("an extra optional member for a closed object", obj("a", a=STRING, b=STRING), obj(closed=True, a=STRING), MAYBE),
    ("extra members of a wanted type", obj("b", b=STRING), {"type": "object", "additionalProperties": STRING}, YES),
    ("extra members of another type", obj("b", b=STRING), {"type": "object", "additionalProperties": INTEGER}, NO),
    ("a map for a map", {"type": "object", "additionalProperties": INTEGER}, {"additionalProperties": NUMBER}, YES),
    ("a map for members", {"type": "object", "additionalProperties": INTEGER}, obj(a=STRING), MAYBE),
    ("a map for required members", {"type": "object", "additionalProperties": STRING}, obj("a", a=STRING), UNKNOWN),
    (
        "patterns of names are not read",
        obj("a", a=STRING),
        {"type": "object", "patternProperties": {"^b": {}}},
        UNKNOWN,
    ),
    ("object for list", obj(), arr(STRING), NO),
    # lists
    ("covariant", arr(INTEGER), arr(NUMBER), YES),
    ("other items", arr(STRING), arr(NUMBER), NO),
    ("any items offered", {"type": "array"}, arr(NUMBER), UNKNOWN),
    ("any items wanted", arr(STRING), {"type": "array"}, YES),
    ("items that may be null", arr({"type": ["string", "null"]}), arr(STRING), MAYBE),
    ("a tuple for a list", {"type": "array", "prefixItems": [INTEGER, STRING], "items": False}, arr(NUMBER), NO),
    ("no items", {"type": "array", "items": False}, arr(NUMBER), YES),
    # enum and const
    ("a constant of the list", {"type": "string", "const": "a"}, {"enum": ["a", "b"]}, YES),
    ("a constant beyond the list", {"type": "string", "const": "c"}, {"type": "string", "enum": ["a", "b"]}, NO),
    ("a list within the list", {"enum": ["a"]}, {"enum": ["a", "b"]}, YES),
    ("a list partly within", {"type": "string", "enum": ["a", "c"]}, {"enum": ["a", "b"]}, MAYBE),
    ("any text for the list", STRING, {"type": "string", "enum": ["a"]}, UNKNOWN),
    ("true is not one", {"type": "boolean", "const": True}, {"enum": [1]}, NO),
    ("one is 1.0", {"type": "integer", "const": 1}, {"const": 1.0}, YES),
    # limits of values count for constants
    ("too small", {"type": "integer", "const": -1}, {"type": "integer", "minimum": 0}, NO),
    ("too short", {"type": "string", "const": ""}, {"type": "string", "minLength": 1}, NO),
    ("any integer", INTEGER, {"type": "integer", "minimum": 0}, YES),
    # anyOf, oneOf, allOf, on both sides
    ("some option", STRING, {"anyOf": [INTEGER, STRING]}, YES),
    ("no option", NULL, {"anyOf": [INTEGER, STRING]}, NO),
    ("some option of oneOf", STRING, {"oneOf": [INTEGER, STRING]}, YES),
    ("an unknown option", {}, {"anyOf": [INTEGER, STRING]}, UNKNOWN),
    ("one option does not fit", {"anyOf": [STRING, INTEGER]}, STRING, MAYBE),
    ("no offered option fits", {"oneOf": [STRING, INTEGER]}, NULL, NO),
    ("each offered option fits", {"anyOf": [STRING, INTEGER]}, {"oneOf": [INTEGER, STRING, NULL]}, YES),
    ("all parts", obj("a", "b", a=STRING, b=STRING), {"allOf": [obj("a", a=STRING), obj("b", b=STRING)]}, YES),
    ("not all parts", obj("a", a=STRING), {"allOf": [obj("a", a=STRING), obj("b", b=STRING)]}, NO),
    ("merged parts", {"allOf": [obj("a", a=STRING), obj("b", b=INTEGER)]}, obj("a", "b", b=NUMBER), YES),
    ("parts with options", {"allOf": [{"anyOf": [STRING, NULL]}]}, {"type": ["string", "null"]}, YES),
    ("parts that contradict", {"allOf": [STRING, INTEGER]}, NULL, UNKNOWN),
    (
        "beside options",
        obj("a", a=STRING),
        {"type": "object", "anyOf": [{"required": ["b"]}, {"required": ["a"]}]},
        YES,
    ),
    # references
    ("a reference", {"$ref": "#/$defs/A", "$defs": {"A": STRING}}, STRING, YES),
    ("a wanted reference", INTEGER, {"$ref": "#/$defs/A", "$defs": {"A": STRING}}, NO),
    ("an old definition", {"$ref": "#/definitions/A", "definitions": {"A": STRING}}, INTEGER, NO),
    ("a reference to a member", obj("b", a=STRING, b={"$ref": "#/properties/a"}), obj(b=INTEGER), NO),
    ("a reference elsewhere", {"$ref": "https://example.com/a.json"}, STRING, UNKNOWN),
    ("a missing reference", STRING, {"$ref": "#/$defs/Missing"}, YES),
    ("a recursive type for itself", TREE, TREE, YES),
    ("a recursive type for an equal one", TREE, LIST, YES),
    ("a recursive type for another one", TREE, OTHER, NO),
    ("a reference to itself", {"$ref": "#"}, STRING, UNKNOWN),
    # not interpreted
    ("not", STRING, {"not": INTEGER}, UNKNOWN),
    ("if", STRING, {"type": "string", "if": {"minLength": 2}, "then": {"pattern": "a"}}, UNKNOWN),
]


@pytest.mark.parametrize(("offered", "wanted", "verdict"), [row[1:] for row in MATRIX], ids=[row[0] for row in MATRIX])
def test_a_type_fits_or_does_not(offered: Any, wanted: Any, verdict: Verdict) -> None:
    scope = TypeScope()
    found = fits(scope, scope.adopt(offered), scope.adopt(wanted))
    assert found.verdict is verdict
    assert bool(found.problems) == (verdict in (MAYBE, NO))


LEAVES = st.sampled_from([None, True, 0, 1, -3, 1.5, "", "a", "text"])
VALUES = st.recursive(
    LEAVES, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.sampled_from("abc"), v, max_size=3), max_leaves=6
)
PLAIN = st.sampled_from([STRING, INTEGER, NUMBER, BOOLEAN, NULL, {"type": ["string", "null"]}, {"enum": ["a", 1]}, {}])
SCHEMAS = st.recursive(
    PLAIN,
    lambda s: st.one_of(
        st.builds(arr, s),
        st.builds(lambda a, b, closed: obj("a", closed=closed, a=a, b=b), s, s, st.booleans()),
        st.builds(lambda a, b: {"anyOf": [a, b]}, s, s),
        st.builds(lambda a, b: {"allOf": [a, b]}, s, s),
    ),
    max_leaves=4,
)


@settings(max_examples=300, deadline=None)
@given(VALUES, SCHEMAS)
def test_a_literal_fits_as_a_check_of_its_value_says(value: Any, schema: Any) -> None:
    scope = TypeScope()
    verdict = fits(scope, literal_type(value, exact=True), scope.adopt(schema)).verdict
    valid = InputValidator(schema).check(value) is None
    assert verdict is not NO or not valid
    assert verdict is not YES or valid


@settings(max_examples=300, deadline=None)
@given(VALUES, SCHEMAS, SCHEMAS)
def test_the_verdict_on_a_type_holds_for_each_of_its_values(value: Any, offered: Any, wanted: Any) -> None:
    if InputValidator(offered).check(value) is not None:
        return
    scope = TypeScope()
    verdict = fits(scope, scope.adopt(offered), scope.adopt(wanted)).verdict
    valid = InputValidator(wanted).check(value) is None
    assert verdict is not YES or valid


def test_a_problem_has_the_place_in_the_value() -> None:
    scope = TypeScope()
    offered = literal_type({"a": [{"b": 1}]}, exact=True)
    (problem,) = fits(scope, offered, scope.adopt(obj(a=arr(obj(b=STRING))))).problems
    assert (problem.path, problem.text) == (("a", 0, "b"), "integer does not fit string")


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (["name"], "string"),
        (["list", 3], "integer"),
        (["tuple", 0], "string"),
        (["map", "x"], "boolean"),
        (["maybe", "name"], "string"),
        (["tree", "kids", 0, "kids"], "Tree[]"),
        (["free", "x"], "any"),
    ],
)
def test_a_path_leads_to_the_type_of_a_part(parts: list[str | int], expected: str) -> None:
    scope = TypeScope()
    schema = obj(
        name=STRING,
        list=arr(INTEGER),
        tuple={"type": "array", "prefixItems": [STRING], "items": False},
        map={"type": "object", "additionalProperties": BOOLEAN},
        maybe={"anyOf": [NULL, obj(name=STRING)]},
        tree={"$ref": "#/$defs/Tree"},
        free={"type": "object"},
    )
    found = scope.project(scope.adopt({**schema, "$defs": TREE["$defs"]}), parts)
    assert (found.missing, type_text(found.type)) == (None, expected)


@pytest.mark.parametrize(
    ("schema", "parts", "is_certain"),
    [
        (obj(closed=True, a=STRING), ["b"], True),
        (obj(a=STRING), ["b"], False),
        (STRING, ["b"], True),
        (obj(), [0], True),
        ({"type": "array", "prefixItems": [STRING], "items": False}, [1], True),
        ({"anyOf": [obj(closed=True), obj(a=STRING)]}, ["b"], False),
    ],
)
def test_a_path_that_cannot_exist_is_certain_for_closed_types_only(
    schema: Any, parts: list[str | int], is_certain: bool
) -> None:
    scope = TypeScope()
    found = scope.project(scope.adopt(schema), parts)
    assert (found.missing, found.is_certain) == (0, is_certain)


def test_a_path_of_a_null_output_is_null() -> None:
    scope = TypeScope()
    assert scope.project(NULL, ["a"], null_stays=True).type == NULL
    assert type_text(scope.project(union([obj(a=STRING), NULL]), ["a"], null_stays=True).type) == "string | null"


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        ([STRING, {}], ANY),
        ([STRING, NEVER], STRING),
        ([], NEVER),
        ([STRING, STRING], STRING),
        ([STRING, {"type": "string", "const": "a"}], STRING),
        ([INTEGER, NUMBER], NUMBER),
        ([STRING, NULL], {"anyOf": [STRING, NULL]}),
        ([{"anyOf": [STRING, NULL]}, NULL], {"anyOf": [STRING, NULL]}),
        ([{"type": "integer", "const": number} for number in range(UNION_MAX + 1)], INTEGER),
    ],
)
def test_a_union_is_the_smallest_type_that_holds_all(types: list[Any], expected: Any) -> None:
    assert union(types) == expected


def test_names_of_definitions_stay_apart_between_schemas() -> None:
    scope = TypeScope()
    first = scope.adopt({"$ref": "#/$defs/Item", "$defs": {"Item": STRING}})
    second = scope.adopt({"$ref": "#/$defs/Item", "$defs": {"Item": INTEGER}})
    again = scope.adopt({"$ref": "#/$defs/Item", "$defs": {"Item": STRING}})
    assert (first, again) == ({"$ref": "#/$defs/Item"},) * 2
    assert fits(scope, first, second).verdict is NO


def test_large_and_wild_schemas_are_any() -> None:
    scope = TypeScope()
    assert is_any(scope.adopt(obj(**{f"m{number}": STRING for number in range(TYPE_NODES_MAX)})))
    nested: Any = STRING
    for _ in range(300):
        nested = arr(nested)
    assert is_any(scope.adopt(nested))
    assert scope.alternatives({"anyOf": [{"const": number} for number in range(ALTERNATIVES_MAX + 1)]}) == [ANY]


DOUBLING = {
    "members": lambda below: {"anyOf": [obj(a=below), obj(b=below)]},
    "options": lambda below: {"anyOf": [below, below]},
    "parts": lambda below: {"allOf": [below, below]},
    "both": lambda below: {"anyOf": [{"allOf": [below, below]}, below], "type": "object"},
}


@pytest.mark.parametrize("bottom", [STRING, False, {}, {"$ref": "#/$defs/L59"}])
@pytest.mark.parametrize("shape", DOUBLING)
def test_the_work_is_bounded(shape: str, bottom: Any) -> None:
    """Each level refers twice to the next one: without a bound, 2**60 steps."""
    definitions: dict[str, Any] = {"L0": bottom}
    for level in range(1, 60):
        definitions[f"L{level}"] = DOUBLING[shape]({"$ref": f"#/$defs/L{level - 1}"})
    schema = {"$ref": "#/$defs/L59", "$defs": definitions}
    scope = TypeScope()
    first, second = scope.adopt(schema), scope.adopt({**schema, "title": "Other"})
    for offered, wanted in ((first, second), (STRING, first), (first, STRING), (obj(a=STRING), first)):
        assert fits(scope, offered, wanted).verdict in Verdict
    assert scope.project(first, ["a", "b"]).type is not None


@pytest.mark.parametrize("link", ["allOf", "anyOf", "items", "properties"])
def test_long_chains_of_references_do_not_exhaust_the_stack(link: str) -> None:
    definitions: dict[str, Any] = {"L0": STRING}
    for level in range(1, 700):
        below = {"$ref": f"#/$defs/L{level - 1}"}
        definitions[f"L{level}"] = {
            link: {"a": below} if link == "properties" else below if link == "items" else [below]
        }
    scope = TypeScope()
    first = scope.adopt({"$ref": "#/$defs/L699", "$defs": definitions})
    second = scope.adopt({"$ref": "#/$defs/L699", "$defs": {**definitions, "L0": INTEGER}})
    assert fits(scope, first, second).verdict in (YES, UNKNOWN)
    assert fits(scope, STRING, second).verdict in Verdict


@pytest.mark.parametrize(
    "schema", [{"type": 3}, {"properties": []}, {"anyOf": {}}, {"required": "a"}, {"enum": 1}, 3, "x"]
)
def test_a_malformed_schema_says_nothing(schema: Any) -> None:
    scope = TypeScope()
    assert fits(scope, STRING, scope.adopt(schema)).verdict in (YES, UNKNOWN)
    assert fits(scope, scope.adopt(schema), STRING).verdict is UNKNOWN


def test_types_have_short_texts() -> None:
    schema = obj("a", a=arr({"type": ["string", "null"]}), b={**STRING, "is_secret": True})
    assert type_text(schema) == "{ a: (string | null)[], b?: string }"
    assert type_text({**STRING, "is_secret": True}) == "string [secret]"
