"""The backend of plugins of type `mock`: components that answer from a table, for testing flows.

Behaviours are looked up by exact equality of the input: members in any order, but 1 and 1.0 are two values. An input
without behaviour, and a behaviour `error: text`, fail like a broken server: UNREACHABLE, with the texts of the expected
outcomes in existing test flows, including the stack in `data`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from component_host.backend import BackendListing, ComponentInfo, ServerHealth
from stepflow.codec import decode, encode
from stepflow.config import mock_key
from stepflow.errors import Code, Failure

if TYPE_CHECKING:
    from component_host.backend import BackendContext, HostCall
    from stepflow.config import MockPlugin


def mock_components(config: MockPlugin) -> list[ComponentInfo]:
    """Return the components of a plugin of type `mock`."""
    return [
        ComponentInfo(path, path, None, component.input_schema, component.output_schema)
        for path, component in config.components.items()
    ]


class MockBackend:
    """One plugin of type `mock`."""

    def __init__(self, context: BackendContext, config: MockPlugin) -> None:
        self.name = context.name
        self.health = ServerHealth(context.listing_changed)
        self._components = config.components
        self._listing = BackendListing(mock_components(config))

    async def start(self) -> None:
        pass

    def listing(self) -> BackendListing:
        return self._listing

    def execute(self, call: HostCall) -> None:
        path = call.request.component
        component = self._components.get(path)
        if component is None:
            call.fail(Failure(Code.COMPONENT_NOT_FOUND, f"plugin `{self.name}` has no mock component `{path}`"))
            return

        behavior = component.behaviors.get(mock_key(decode(call.input)))
        if behavior is None:
            text = call.input.decode()
            call.fail(_broken(call, f"No behavior defined for {path} on {text}"))
        elif behavior.error is not None:
            call.fail(_broken(call, behavior.error))
        elif behavior.failure is not None:
            call.fail(behavior.failure)
        else:
            assert behavior.result is not None
            call.succeed(behavior.result)

    def cancel(self, call: HostCall) -> None:
        pass

    async def close(self) -> None:
        pass


def _broken(call: HostCall, note: str) -> Failure:
    """Return the failure of a component that broke; conformance flows compare the texts."""
    step = call.request.step_id
    message = f'step "{step}" failed'
    notes = [f"Component: {call.request.component}", f"Component execution failed for step '{step}'", note]
    stack = [{"error": message, "attachments": notes}, {"error": "error executing user-defined function"}]
    return Failure(Code.UNREACHABLE, message, encode({"stack": stack}))
