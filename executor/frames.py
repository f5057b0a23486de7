"""Frames from hosts, and losses of hosts, passed to the calling partitions.

All results of a frame are recorded before any partition takes its turn: one decision and one write for all results.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from executor.adoption import HeldCalls
    from executor.drive import PartitionDriver
    from executor.hosts.peer import HostPeer
    from executor.ownership import Ownership
    from stepflow.mesh.v1 import host_pb2


class HostFrames:
    """Routes frames to partitions."""

    def __init__(self, ownership: Ownership, held_calls: HeldCalls) -> None:
        self._ownership = ownership
        self._held_calls = held_calls

    def on_frame(self, peer: HostPeer, frame: host_pb2.HostFrame) -> None:
        """Take in a frame of a host."""
        hosts, run_guarded = self._ownership.hosts, self._ownership.run_guarded

        touched: dict[PartitionDriver, None] = {}
        for result in frame.results:
            flight = hosts.take_call(result.call_id)
            # None: cancelled, or its run is not owned any more. Not acknowledged, so that the next owner may join it.
            if flight is not None:
                run_guarded(flight.caller, flight.caller.calls.on_result, flight, result)
                touched[flight.caller] = None
        for driver in touched:
            run_guarded(driver, driver.turn)

        for progress in frame.progress:
            flight = hosts.find_call(progress.call_id)
            if flight is not None:
                flight.caller.calls.on_progress(flight, progress)
        for callback in frame.callbacks:
            flight = hosts.find_call(callback.call_id)
            if flight is not None:
                flight.caller.on_callback(flight, callback)
        for attached in frame.attached:
            self._held_calls.on_answer(peer.id, attached)

    def host_gone(self, host_id: str, why: str) -> None:
        """Fail the calls of a lost host; each is made again elsewhere."""
        run_guarded = self._ownership.run_guarded
        touched: dict[PartitionDriver, None] = {}
        for flight in self._ownership.hosts.remove_peer(host_id):
            run_guarded(flight.caller, flight.caller.calls.on_lost, flight, why)
            touched[flight.caller] = None
        for driver in touched:
            run_guarded(driver, driver.turn)
        self._held_calls.on_host_gone(host_id)


__all__ = ["HostFrames"]
