"""A call at a host, and the side of its caller that the pool uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from executor.hosts.peer import HostPeer
    from stepflow.mesh.v1 import host_pb2
    from stepflow.run import Dispatch, StepRun


class Caller(Protocol):
    """The owner of calls: a partition of a run. Hashable by identity."""

    run_id: str
    partition: int
    flow_id: str
    epoch: int
    gone: bool
    """The partition is no longer driven here: its waiting calls are dropped."""

    def waits_for(self, action: Dispatch) -> bool:
        """Return True if the step still waits for the call of this action."""
        ...


C = TypeVar("C", bound=Caller)


@dataclass(slots=True, eq=False)
class InFlight(Generic[C]):
    """A call at a host. Keyed by call id."""

    caller: C
    step: StepRun
    attempt: int
    peer: HostPeer
    call: host_pb2.Call


__all__ = ["C", "Caller", "InFlight"]
