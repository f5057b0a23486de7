"""Texts about one server process, for failures and errors: command line, end, last lines of stderr."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING

from component_host.supervision.pipes import NO_RUN, SEVERAL_RUNS, StderrTail
from component_host.supervision.spec import shown_command_line
from stepflow.codec import encode
from stepflow.errors import Code, Failure, Unavailable
from stepflow.telemetry import redact

if TYPE_CHECKING:
    from component_host.supervision.spec import ProcessSpec


class ProcessReport:
    """Facts about a run of a server. Base class of `ServerProcess`."""

    def __init__(self, spec: ProcessSpec) -> None:
        self.returncode: int | None = None
        """Exit code, or the negative number of the signal that killed the server; None while it runs."""
        self._spec = spec
        self._stderr_tail = StderrTail(spec)
        self._alone_since: int | None = None
        """Number of stderr lines at the beginning of the only call in flight; None if there are, or were, several."""

    def stderr_tail(self) -> str:
        """Return the last lines of stderr if no call was ever sent, without secrets, cut to a readable size.

        Later lines may hold values of a run, and these texts are shown to everybody.
        """
        return self._stderr_tail.text_of_start()

    def stderr_of_run(self) -> str:
        """Return the last lines of stderr for the failures of calls in flight; nothing of other runs."""
        return self._stderr_tail.text_of_run()

    def stderr_of_call(self) -> str:
        """Return the stderr since the only call in flight was sent; empty if there were several."""
        if self._alone_since is None:
            return ""
        self.read_stderr()
        return self._stderr_tail.text_since(self._alone_since)

    def read_stderr(self) -> None:
        """Read what waits in the pipe."""

    def serve_run(self, run_id: str, *, idle: bool) -> None:
        """Note that a call of a run is about to be sent; `idle` if no other call is in flight.

        What the server wrote for another run is dropped: the text of a failure belongs to one run.
        """
        tail = self._stderr_tail
        self._alone_since = tail.lines_kept if idle else None
        if tail.run == run_id:
            return
        if not idle:
            tail.run = SEVERAL_RUNS
            return
        if tail.run != NO_RUN:
            self.forget_stderr()
            self._alone_since = tail.lines_kept
        tail.run = run_id

    def forget_stderr(self) -> None:
        """Drop all stderr output until now, including the unread part."""
        self.read_stderr()
        self._stderr_tail.clear()

    def command_line(self) -> str:
        """Return the command line for an error text: as configured, with secrets redacted."""
        return str(redact(self._stderr_tail.without_secrets(shown_command_line(self._spec))))

    def exit_text(self) -> str:
        """Describe the end: `exited with code 1`, `was killed by SIGKILL`."""
        code = self.returncode
        if code is None:
            return "is running"
        if code >= 0:
            return f"exited with code {code}"

        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(-code).name}"
        return f"was killed by signal {-code}"

    def start_error(self, reason: str, what: str, more: str = "") -> Unavailable:
        """Return the error of a failed start, with command line and last lines of stderr."""
        plugin = self._spec.plugin
        text = f"plugin {plugin!r}: the server {what}. It was started as `{self.command_line()}`{more}"

        tail = self.stderr_tail()
        text += f"; the end of its stderr:\n{tail}" if tail else "; it wrote nothing to stderr"
        if not tail and self.returncode == 0:
            text += "; does its script call `serve()` (of an MCP server: `run()`) at the end?"
        return Unavailable(reason, text, plugin=plugin)

    def loss(self) -> Failure:
        """Return the failure of a call in flight at the end of the server."""
        return Failure(
            Code.UNREACHABLE,
            f"server {self._spec.plugin!r} {self.exit_text()} while the call was in flight",
            encode({"exit_code": self.returncode, "stderr": self.stderr_of_run()}),
        )


__all__ = ["ProcessReport"]
