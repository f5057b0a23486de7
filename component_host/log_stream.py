"""The log lines of followed runs, or of all plugins, for one reader: a control plane or `stepflow dev`.

- The lines of one turn of the event loop leave in one message. While the reader is `WAITING_BYTES_MAX` behind, lines
  are dropped and counted.
- The answer to a `sync` comes behind all lines that the host has taken before.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from stepflow.log_lines import lines_to_pb
from stepflow.mesh.v1 import host_pb2
from stepflow.rpc.frames import FrameQueue, pump

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from component_host.logged_lines import LoggedLines
    from component_host.logs import HostLogs

WAITING_BYTES_MAX = 1024 * 1024

LAST_WRITES_S = 5.0
"""Time for what is queued when the reader has sent its last request. A status during a write is an error of gRPC."""

FOLLOWED_MAX = 10_000
"""Runs followed by one control plane; further ones are ignored."""


class LogStream:
    """One stream. Implements `logs.LogFollower`."""

    def __init__(self, logs: HostLogs) -> None:
        self._logs = logs
        self._queue = FrameQueue()
        self._followed: set[str] = set()
        self._message = host_pb2.FollowLogsResponse()
        self._flush_due = False
        self._dropped = 0

    async def run(self, requests: AsyncIterator[host_pb2.FollowLogsRequest], context: Any) -> None:
        """Serve the stream to its end."""
        reading = asyncio.create_task(self._read(requests), name="read requests for logs")
        writing = asyncio.create_task(pump(self._queue, context.write), name="write logs")
        tasks = (reading, writing)
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            self._queue.close()
            if not writing.done():
                await asyncio.wait([writing], timeout=LAST_WRITES_S)
            for task in done:
                task.result()
        finally:
            for run_id in self._followed:
                self._logs.unfollow(run_id, self)
            self._logs.unfollow_all(self)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def send_log(self, logged: LoggedLines) -> None:
        """Send log lines, unless the reader is behind."""
        if self._queue.waiting_bytes > WAITING_BYTES_MAX:
            self._dropped += len(logged.lines) + logged.dropped
            return

        origin = logged.origin
        self._message.logs.add(
            plugin=origin.plugin,
            root_run_id=origin.root_run_id,
            run_id=origin.run_id,
            item=origin.item,
            step_id=origin.step_id,
            step_index=origin.step_index,
            component=origin.component,
            depth=origin.depth,
            attempt=origin.attempt,
            lines=lines_to_pb(logged.lines),
            dropped=logged.dropped + self._dropped,
        )
        self._dropped = 0
        if not self._flush_due:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    async def _read(self, requests: AsyncIterator[host_pb2.FollowLogsRequest]) -> None:
        async for request in requests:
            for run_id in request.unfollow:
                self._followed.discard(run_id)
                self._logs.unfollow(run_id, self)

            for run_id in request.follow:
                if run_id not in self._followed and len(self._followed) < FOLLOWED_MAX:
                    self._followed.add(run_id)
                    self._logs.follow(run_id, self)

            if request.follow_all:
                self._logs.follow_all(self)
            if request.sync:
                self._message.synced = request.sync
                self._flush()

    def _flush(self) -> None:
        self._flush_due = False
        message, self._message = self._message, host_pb2.FollowLogsResponse()
        self._queue.put(message)


__all__ = ["LogStream"]
