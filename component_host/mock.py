"""The backend of plugins of type `mock`: components that answer from a table, for testing flows.

An input finds its behaviour by exact equality of values: members in any order, but 1 and 1.0 are two values. An input
without behaviour, and a behaviour `error: text`, fail the way a broken server does: UNREACHABLE, with the texts that
expected outcomes of existing test flows spell out, including the stack in `data`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from component_host.backend import ComponentInfo, Health, Listing
from stepflow.codec import decode, encode
from stepflow.config import mock_key
from stepflow.errors import Code, Failure

if TYPE_CHECKING:
    from component_host.backend import BackendContext, HostCall
    from stepflow.config import MockPlugin


class MockBackend:
    """One plugin of type `mock`."""

    def __init__(self, context: BackendContext, config: MockPlugin) -> None:
        self.name = context.name
        self.health = Health(context.listing_changed)
        self._components = config.components
        self._listing = Listing(
            [
                ComponentInfo(path, path, None, component.input_schema, component.output_schema)
                for path, component in config.components.items()
            ]
        )

    async def start(self) -> None:
        pass

    def listing(self) -> Listing:
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
    """The failure of a component that broke instead of answering; conformance flows compare its texts."""
    step = call.request.step_id
    message = f'step "{step}" failed'
    notes = [f"Component: {call.request.component}", f"Component execution failed for step '{step}'", note]
    stack = [{"error": message, "attachments": notes}, {"error": "error executing user-defined function"}]
    return Failure(Code.UNREACHABLE, message, encode({"stack": stack}))
