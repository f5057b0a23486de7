"""What a catalogue tells about a path: its component, why there is none, and which path was meant."""

import pytest

from stepflow.check import Catalogue, KnownComponent, KnownPlugin
from stepflow.flow.paths import parse_path
from stepflow.routing.table import Rule

TEXT = {"type": "string"}


def plugin(*paths: str, is_complete: bool = True, is_builtin: bool = False) -> KnownPlugin:
    components = tuple(KnownComponent(path, path, TEXT, TEXT) for path in paths)
    return KnownPlugin(components, is_complete, is_builtin)


SHOP = Catalogue(
    routes={
        "/builtin": (Rule("builtin"),),
        "/mine": (Rule("mine"),),
        "/open": (Rule("open"),),
        "/away": (Rule("away"),),
        "/few": (Rule("mine", allow=frozenset(("/ask",))),),
        "/tea": (Rule("mine", conditions=((parse_path("item"), "tea"),)),),
        "/either": (Rule("mine", conditions=((parse_path("item"), "tea"),)), Rule("open")),
    },
    plugins={
        "builtin": plugin("/sleep", "/create_messages", is_builtin=True),
        "mine": plugin("/ask", "/files/{name}", "/tree/{*rest}"),
        "open": plugin("/ask", is_complete=False),
    },
)


@pytest.mark.parametrize(
    ("path", "component"),
    [
        ("/mine/ask", "/ask"),
        ("/mine/files/a", "/files/{name}"),
        ("/mine/tree/a/b", "/tree/{*rest}"),
        ("/open/ask", "/ask"),
        ("/tea/ask", "/ask"),
        ("/open/other", None),
        ("/away/any", None),
        ("/either/ask", None),
    ],
)
def test_a_path_that_leads_to_one_known_component_has_its_schemas(path: str, component: str | None) -> None:
    found = SHOP.find(path)
    assert found.problem is None
    assert (found.component and found.component.component) == component
    schema = SHOP.schemas(path)
    assert (schema is not None and schema.input == TEXT) == (component is not None)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/mine/aks", "not_listed"),
        ("/mine", "not_listed"),
        ("/mine/files", "not_listed"),
        ("/few/files/a", "excluded"),
        ("/none/ask", "no_rule"),
        ("/builtin/map", "not_listed"),
    ],
)
def test_a_path_that_leads_nowhere_has_a_reason(path: str, reason: str) -> None:
    problem = SHOP.find(path).problem
    assert problem is not None
    assert problem.reason == reason


def test_conditions_count_for_a_constant_input_only() -> None:
    assert SHOP.find("/tea/ask", {"item": "tea"}).problem is None
    assert SHOP.find("/tea/ask", {"item": {"$input": "item"}}).problem is None
    problem = SHOP.find("/tea/ask", {"item": "coffee"}).problem
    assert problem is not None
    assert problem.reason == "condition"
    component = SHOP.find("/either/ask", {"item": "tea"}).component
    assert component is not None


def test_a_component_that_an_incomplete_list_lacks_is_unlisted() -> None:
    assert SHOP.find("/open/other").unlisted == "open"
    assert SHOP.find("/open/ask").unlisted == ""
    assert SHOP.find("/away/any").unlisted == "", "nothing is known about the plugin"
    assert SHOP.find("/either/other", {"item": "tea"}).unlisted == "open"


def test_a_plugin_without_a_list_lists_nothing() -> None:
    silent = Catalogue({"/open": (Rule("open"),)}, {"open": plugin(is_complete=False)})
    assert silent.find("/open/any").unlisted == ""


def test_a_plugin_without_a_host_is_told_and_its_old_list_is_not_believed() -> None:
    catalogue = Catalogue(SHOP.routes, SHOP.plugins, unhosted=frozenset(("mine",)))
    found = catalogue.find("/mine/aks")
    assert (found.problem, found.unlisted, found.unhosted) == (None, "", "mine")
    assert catalogue.find("/open/ask").unhosted == ""


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/builtin/slep", "/builtin/sleep"),
        ("/builtin/SLEEP", "/builtin/sleep"),
        ("/builtin/create-messages", "/builtin/create_messages"),
        ("/buildin/sleep", "/builtin/sleep"),
        ("/buildin/slep", "/builtin/sleep"),
        ("/buildin/nothing", None),
        ("/sleep", "/builtin/sleep"),
        ("/open/sleep", "/builtin/sleep"),
        ("/awya/any", "/away/any"),
        ("/mine/unlike", None),
        ("/unlike/any", None),
        ("/", None),
    ],
)
def test_a_misspelt_path_is_recognised(path: str, meant: str | None) -> None:
    assert SHOP.similar(path) == meant


def test_a_component_of_the_route_of_all_paths_is_recognised() -> None:
    root = Catalogue({"/": (Rule("builtin"),)}, {"builtin": plugin("/sleep", is_builtin=True)})
    assert root.similar("/slep") == "/sleep"
    assert root.similar("/unlike") is None


def test_the_search_among_many_components_is_bounded() -> None:
    many = Catalogue({"/m": (Rule("m"),)}, {"m": plugin(*(f"/component_{number}" for number in range(20_000)))})
    assert many.find("/m/component_19999").component is not None
    assert many.similar("/m/component_x") is not None
    assert len(many.paths_of("/m")) <= 2_000
