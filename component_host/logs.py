"""The log lines of component servers: kept, bounded, and handed to those who follow a run.

- Secrets go first: those of the environment and the configuration, and the marked values of the runs whose calls a
  server has executed. Nothing keeps or shows a line before.
- A line belongs to a call if its server says so, or if it comes from stderr while exactly one call of the plugin is
  executed. Other lines belong to the plugin.
- Floods cost little: of the lines of a call, and of a plugin, only so many pass in a period. The others are counted,
  and of a call the last ones are kept for its failure.
- A ring per plugin has the lines for those who begin to follow a run later.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from component_host.logged_lines import CallLines, LineGate, LineOrigin, LoggedLines, cut, shown
from stepflow.log_lines import LogLine, tail_of
from stepflow.redaction import KnownSecrets
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from stepflow.mesh.v1 import host_pb2

PLUGIN_LINES_MAX = 500
"""Lines of all calls of a plugin that pass in a period."""

RING_LINES_MAX = 1_000
"""Lines kept of a plugin."""

RING_BYTES_MAX = 256 * 1024

RUN_SECRETS_MAX = 1_000
"""Marked values of runs that are remembered for a plugin; the oldest are forgotten."""

log = get_logger("component_host.logs")


class LoggingCall(Protocol):
    """A call, as seen here."""

    request: host_pb2.Call
    queued: bool
    settled: bool
    logged: CallLines | None


class LogFollower(Protocol):
    """Gets the lines of the runs that it follows."""

    def send_log(self, logged: LoggedLines) -> None: ...


class PluginLog:
    """The log of one plugin. `emit` gets all lines that pass, without secrets."""

    def __init__(self, plugin: str, emit: Callable[[LoggedLines], None] = lambda _: None) -> None:
        self.ring: deque[LoggedLines] = deque()
        self._origin = LineOrigin(plugin)
        self._emit = emit
        self._gate = LineGate(PLUGIN_LINES_MAX)
        self._ring_lines = self._ring_bytes = 0
        self._calls: dict[LoggingCall, None] = {}
        """Calls that the plugin executes."""
        self._server_secrets = KnownSecrets()
        self._run_secrets: dict[str, None] = {}
        """The marked values of runs, the oldest first."""
        self._secrets: KnownSecrets | None = None
        """Both, for lines of any call. None: to be made again."""

    def hide(self, secrets: Iterable[str]) -> None:
        """Remove these values from all later lines."""
        self._server_secrets.add(secrets)
        self._secrets = None

    def begin_call(self, call: LoggingCall) -> None:
        """Note that the plugin executes a call."""
        self._calls[call] = None
        for value in call.request.secrets:
            if value not in self._run_secrets:
                self._run_secrets[value] = None
                self._secrets = None
        while len(self._run_secrets) > RUN_SECRETS_MAX:
            del self._run_secrets[next(iter(self._run_secrets))]

    def end_call(self, call: LoggingCall) -> None:
        """Note that a call has ended, and pass on its last lines if they were refused. Idempotent."""
        self._calls.pop(call, None)
        logged = call.logged
        if logged is not None and logged.refused_last:
            lines = list(logged.tail)[-logged.refused_last :]
            logged.gate.dropped -= len(lines)
            logged.refused_last = 0
            self._pass(logged.origin, lines, 0, call.request.secrets, logged.gate, at_end=True)

    def add_lines(self, call: LoggingCall, lines: Sequence[LogLine], dropped: int = 0) -> None:
        """Take lines that the server has attributed to a call, as it wrote them."""
        if call.settled or not call.request.secrets_complete:
            return
        logged = call.logged
        if logged is None:
            logged = call.logged = CallLines(call.request)

        lines = [cut(line) for line in lines]
        logged.keep_tail(lines)
        if self._pass(logged.origin, lines, dropped, call.request.secrets, logged.gate):
            logged.refused_last = 0
        else:
            logged.refused_last += len(lines)

    def add_stderr(self, texts: Sequence[str], dropped: int) -> None:
        """Take lines of stderr, which have lost the secrets of the server."""
        at_ms = time.time_ns() // 1_000_000
        lines = [LogLine(at_ms, "", text) for text in texts]
        if not all(call.request.secrets_complete for call in self._calls):
            return
        executing = [call for call in self._calls if not call.queued]
        if len(executing) == 1:
            self.add_lines(executing[0], lines, dropped)
        else:
            origin = LineOrigin(self._origin.plugin, executing=bool(executing))
            self._pass(origin, lines, dropped, [value for call in self._calls for value in call.request.secrets])

    def tail_of(self, call: LoggingCall) -> list[LogLine]:
        """Return the last lines of a call, without secrets."""
        logged = call.logged
        if logged is None:
            return []
        secrets = self._secrets_with(call.request.secrets)
        return tail_of([shown(line, secrets) for line in logged.tail])

    def _pass(
        self,
        origin: LineOrigin,
        lines: Sequence[LogLine],
        dropped: int,
        own_secrets: Sequence[str],
        call_gate: LineGate | None = None,
        *,
        at_end: bool = False,
    ) -> bool:
        """Emit as many lines as may pass, the latest of them; return False if none may.

        `at_end`: the last lines of a call, which its own gate does not count.
        """
        gate = call_gate or self._gate
        gate.dropped += dropped
        now_s = time.monotonic()
        passing = len(lines)
        if call_gate is not None and not at_end:
            passing = call_gate.take(passing, now_s)
        passing = self._gate.take(passing, now_s)

        gate.dropped += len(lines) - passing
        if not passing:
            return False
        secrets = self._secrets_with(own_secrets)
        logged = LoggedLines(origin, tuple(shown(line, secrets) for line in lines[-passing:]), gate.take_dropped())
        self._keep(logged)
        self._emit(logged)
        return True

    def _secrets_with(self, own_secrets: Sequence[str]) -> KnownSecrets:
        """Return the secrets for the lines of a call; its own may have been forgotten here."""
        if self._secrets is None:
            self._secrets = KnownSecrets(self._run_secrets)
            self._secrets.join(self._server_secrets)
        if not own_secrets or all(value in self._run_secrets for value in own_secrets):
            return self._secrets
        secrets = KnownSecrets(own_secrets)
        secrets.join(self._secrets)
        return secrets

    def _keep(self, logged: LoggedLines) -> None:
        self.ring.append(logged)
        self._ring_lines += len(logged.lines)
        self._ring_bytes += _size(logged)
        while self._ring_lines > RING_LINES_MAX or self._ring_bytes > RING_BYTES_MAX:
            oldest = self.ring.popleft()
            self._ring_lines -= len(oldest.lines)
            self._ring_bytes -= _size(oldest)


class HostLogs:
    """The logs of all plugins of a host.

    `own_log`: write the lines to the log of this process, too. `sink` gets all lines.
    """

    def __init__(self, *, own_log: bool = False, sink: Callable[[LoggedLines], None] | None = None) -> None:
        self.sink = sink
        self._own_log = own_log
        self._plugins: dict[str, PluginLog] = {}
        self._followers: dict[str, set[LogFollower]] = {}
        """By root run."""
        self._followers_of_all: set[LogFollower] = set()

    def of(self, plugin: str) -> PluginLog:
        """Return the log of a plugin; the same through all its restarts."""
        found = self._plugins.get(plugin)
        if found is None:
            found = self._plugins[plugin] = PluginLog(plugin, self._take)
        return found

    def follow(self, run_id: str, follower: LogFollower) -> None:
        """Send the kept lines of a run, and all further ones. Idempotent, except for the kept lines."""
        self._followers.setdefault(run_id, set()).add(follower)
        for plugin in self._plugins.values():
            for logged in tuple(plugin.ring):
                if logged.origin.root_run_id == run_id:
                    follower.send_log(logged)

    def follow_all(self, follower: LogFollower) -> None:
        """Send the kept lines of all plugins, and all further ones. Idempotent, except for the kept lines."""
        self._followers_of_all.add(follower)
        for plugin in self._plugins.values():
            for logged in tuple(plugin.ring):
                follower.send_log(logged)

    def unfollow_all(self, follower: LogFollower) -> None:
        self._followers_of_all.discard(follower)

    def unfollow(self, run_id: str, follower: LogFollower) -> None:
        """Send no further lines of a run. Idempotent."""
        followers = self._followers.get(run_id)
        if followers is not None:
            followers.discard(follower)
            if not followers:
                del self._followers[run_id]

    def _take(self, logged: LoggedLines) -> None:
        origin = logged.origin
        if self._own_log:
            _write(logged)
        if self.sink is not None:
            self.sink(logged)
        if origin.root_run_id:
            for follower in self._followers.get(origin.root_run_id, ()):
                follower.send_log(logged)
        for follower in self._followers_of_all:
            follower.send_log(logged)


def _write(logged: LoggedLines) -> None:
    """Write lines to the log of this process."""
    origin = logged.origin
    fields: dict[str, Any] = {"plugin": origin.plugin}
    if origin.run_id:
        fields |= {"run_id": origin.run_id, "item": origin.item, "step_id": origin.step_id, "attempt": origin.attempt}
    if logged.dropped:
        log.info("component log", **fields, dropped=logged.dropped)
    for line in logged.lines:
        write = log.debug if line.level == "debug" else log.info
        write("component log", **fields, **({"line_level": line.level} if line.level else {}), line=line.text)


def _size(logged: LoggedLines) -> int:
    return sum(len(line.text) for line in logged.lines)


__all__ = ["HostLogs", "LogFollower", "LoggingCall", "PluginLog"]
