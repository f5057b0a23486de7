"""Exceptions of the SDK: failures of a component, and failures of its requests to the host.

`error_code` becomes the failure code of the step. A step with `onError: {action: retry}` retries COMPONENT_FAILED and
RESOURCE_UNAVAILABLE; INVALID_INPUT and CANCELLED are final.
"""

from __future__ import annotations

from typing import Any


class ComponentError(Exception):
    """The component failed. Raise it with a message for people and JSON details in `data`.

    The step fails with COMPONENT_FAILED, retried under `onError: {action: retry}`.
    """

    error_code = "COMPONENT_FAILED"

    def __init__(self, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.message = message
        self.data = data


class InvalidInput(ComponentError):
    """The input can never succeed: no retry."""

    error_code = "INVALID_INPUT"


class ResourceUnavailable(ComponentError):
    """An external resource is temporarily missing: a service, a file, a quota."""

    error_code = "RESOURCE_UNAVAILABLE"


class HostError(ComponentError):
    """The host refused a request of the component; `code` is the JSON-RPC error code."""

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(message, data)
        self.code = code


class FlowFailed(ComponentError):
    """A flow run by the component failed; `code` is the failure code, such as `COMPONENT_FAILED`."""

    def __init__(self, code: str, message: str, data: Any = None) -> None:
        super().__init__(f"the flow failed with {code}: {message}", data)
        self.code = code


class CallCancelled(ComponentError):
    """The host cancelled the call."""

    error_code = "CANCELLED"
