"""Mock components, through the backend's interface."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from component_host.backend import BackendContext
from component_host.mock import MockBackend
from stepflow import codec
from stepflow.config import MockPlugin, load_config
from stepflow.errors import Code, Failure
from stepflow.mesh.v1 import host_pb2

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = """
plugins:
  mock:
    type: mock
    components:
      /one_output:
        input_schema: {type: object}
        output_schema: {type: object, properties: {output: {type: string}}}
        behaviors:
          {input: a}: {outcome: success, result: {output: b}}
          {x: 1, y: {z: [true, null]}}: {outcome: success, result: nested}
          {input: bad}: {outcome: failed, error: {code: INVALID_INPUT, message: not good, data: {hint: 1}}}
          {input: broken}: {error: it broke}
          7: {outcome: success, result: 7}
          1.0: {outcome: success, result: a fraction}
          true: {outcome: success, result: yes it is}
          word: {outcome: success, result: null}
      /other:
        input_schema: {}
        output_schema: {}
        behaviors: {}
routes: {/mock: [{plugin: mock}]}
"""


class Call:
    """One call on the host's side of the seam; keeps the outcome."""

    def __init__(self, component: str, value: Any, step: str = "step1") -> None:
        self.request = host_pb2.Call(component=component, step_id=step)
        self.input = codec.encode(value)
        self.settled = False
        self.blobs: Any = None
        self.backend_state: Any = None
        self.output: Any = None
        self.failure: Failure | None = None

    def succeed(self, output: bytes) -> None:
        assert not self.settled
        self.settled, self.output = True, codec.decode(output)

    def fail(self, failure: Failure) -> None:
        assert not self.settled
        self.settled, self.failure = True, failure


@pytest.fixture
def mock(tmp_path: Path) -> MockBackend:
    path = tmp_path / "stepflow-config.yml"
    path.write_text(CONFIG)
    plugin = load_config(path).plugins["mock"]
    assert isinstance(plugin, MockPlugin)
    return MockBackend(BackendContext(name="mock", working_directory=str(tmp_path), environ={}), plugin)


def answer(mock: MockBackend, component: str, value: Any) -> Any:
    call = Call(component, value)
    mock.execute(call)  # type: ignore[arg-type]  # the parts of HostCall that this backend uses
    assert call.settled
    return call.failure or call.output


def test_an_input_finds_its_behaviour(mock: MockBackend) -> None:
    assert answer(mock, "/one_output", {"input": "a"}) == {"output": "b"}


def test_members_may_come_in_any_order(mock: MockBackend) -> None:
    assert answer(mock, "/one_output", {"y": {"z": [True, None]}, "x": 1}) == "nested"


def test_any_json_value_can_be_a_key(mock: MockBackend) -> None:
    assert answer(mock, "/one_output", "word") is None
    assert answer(mock, "/one_output", 7) == 7
    assert answer(mock, "/one_output", True) == "yes it is"
    assert answer(mock, "/one_output", 1.0) == "a fraction"


@pytest.mark.parametrize("value", [1, 7.0, "7", {"input": "a", "more": None}, {"input": "A"}, [7], None, False])
def test_values_that_are_not_exactly_equal_have_no_behaviour(mock: MockBackend, value: Any) -> None:
    failure = answer(mock, "/one_output", value)
    assert isinstance(failure, Failure)
    assert failure.code is Code.UNREACHABLE


def test_a_declared_failure_is_passed_on_as_it_is(mock: MockBackend) -> None:
    assert answer(mock, "/one_output", {"input": "bad"}) == Failure(Code.INVALID_INPUT, "not good", b'{"hint":1}')


def test_an_input_without_behaviour_fails_with_the_texts_that_flows_expect(mock: MockBackend) -> None:
    failure = answer(mock, "/one_output", {"input": "world"})
    assert (failure.code, failure.message) == (Code.UNREACHABLE, 'step "step1" failed')
    assert codec.decode(failure.data) == {
        "stack": [
            {
                "error": 'step "step1" failed',
                "attachments": [
                    "Component: /one_output",
                    "Component execution failed for step 'step1'",
                    'No behavior defined for /one_output on {"input":"world"}',
                ],
            },
            {"error": "error executing user-defined function"},
        ]
    }


def test_the_missing_input_is_shown_in_the_steps_own_order(mock: MockBackend) -> None:
    failure = answer(mock, "/other", {"b": 1, "a": [2.0]})
    notes = codec.decode(failure.data)["stack"][0]["attachments"]
    assert notes[2] == 'No behavior defined for /other on {"b":1,"a":[2.0]}'


def test_an_internal_error_is_unreachable_with_its_text_in_the_stack(mock: MockBackend) -> None:
    failure = answer(mock, "/one_output", {"input": "broken"})
    assert (failure.code, failure.message) == (Code.UNREACHABLE, 'step "step1" failed')
    assert codec.decode(failure.data)["stack"][0]["attachments"][2] == "it broke"


def test_an_unknown_component_is_not_found(mock: MockBackend) -> None:
    assert answer(mock, "/none", {}).code is Code.COMPONENT_NOT_FOUND


def test_the_listing_has_every_component_with_its_schemas(mock: MockBackend) -> None:
    listing = mock.listing()
    assert listing.complete
    assert [(info.component, info.path) for info in listing.components] == [
        ("/one_output", "/one_output"),
        ("/other", "/other"),
    ]
    assert listing.components[0].output_schema == {"type": "object", "properties": {"output": {"type": "string"}}}
