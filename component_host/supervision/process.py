"""One server process: how it is found, started, heard and ended, whatever protocol it speaks.

Promises:
- The server runs in a session of its own. `stop` ends its whole process group: SIGTERM, a grace, SIGKILL. After a
  crash of the server the rest of its group is killed.
- Nothing outlives this process, not even when it is SIGKILLed: a *guard*, a small shell beside each server, reads from
  a pipe whose other end only we hold, and ends the group when that pipe closes. (A death signal set in the child
  would need Python code between fork and exec, unsafe beside threads, and would fire when the *thread* that
  started the server ends. The guard also reaches the server's children.)
- stdout is a pipe of which we keep the write end too. Servers that put it into non-blocking mode and then write as if
  it blocked lose output once 64 KiB wait in it; `make_output_blocking` mends that from outside, because the mode
  belongs to the shared end. The price: there is no end of file when the server dies, so its exit is watched.
- stderr is read always (a full pipe would stop the server). Its last lines are kept for error texts and each goes to
  the log at debug; configured secrets are taken out.
- Limits are set by a shell that then becomes the server: no Python code runs between fork and exec.
- Writing never blocks: what has gathered during one turn of the event loop goes out in one write.

Not here: when to start a server again, and what the bytes mean.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from stepflow.codec import encode
from stepflow.config import NO_LIMITS, ServerLimits
from stepflow.errors import Code, Failure, Invalid, Unavailable
from stepflow.telemetry import get_logger, is_secret_name, redact

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from component_host.backend import BackendContext

PASSED_VARIABLES = ("PATH", "HOME", "LANG", "TMPDIR")
"""All that a server sees of the host's environment unless `inherit_env` is set."""

READ_BYTES = 256 * 1024
"""One read of a pipe; the pipe itself holds 64 KiB unless somebody enlarged it."""

STDERR_LINES_MAX = 20
STDERR_LINE_CHARS_MAX = 800
STDERR_PARTIAL_BYTES_MAX = 64 * 1024
"""A line of stderr that grows beyond this is cut where it stands."""

SECRET_CHARS_MIN = 8
"""Shorter values of secret-looking variables are left in: they would blot out ordinary words."""

DRAIN_READS_MAX = 64
"""Reads of what is left in the pipes after an exit; bounded because a grandchild may go on writing."""

GROUP_POLL_S = 0.02

KILL_WAIT_S = 5.0
"""Even a killed process can be stuck in the kernel (a dead network disk); nobody waits for it longer."""

_GUARD_SCRIPT = 'read -r word; [ "$word" = done ] && exit 0; kill -TERM "-$1"; sleep 1; kill -KILL "-$1"'
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")

log = get_logger("component_host.process")


class Started(Protocol):
    """What the configurations of servers that are started have in common."""

    @property
    def command(self) -> str: ...
    @property
    def args(self) -> Sequence[str]: ...
    @property
    def env(self) -> Mapping[str, str]: ...
    @property
    def inherit_env(self) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """What to start. `env` holds what the configuration names, with substitution done."""

    plugin: str
    command: str
    args: Sequence[str]
    env: Mapping[str, str]
    inherit_env: bool
    working_directory: str
    environ: Mapping[str, str]
    """The host's own environment."""
    stderr_hidden: tuple[str, ...] = ()
    """Beginnings of stderr lines that must not be kept or logged: some servers echo payloads there."""
    limits: ServerLimits = NO_LIMITS
    secrets: tuple[str, ...] = ()
    """What stands in no environment and is taken out of stderr all the same."""

    @classmethod
    def of(cls, context: BackendContext, config: Started, **more: Any) -> ProcessSpec:
        """Return what a plugin's configuration says; `more` are further fields, or others in their place."""
        fields: dict[str, Any] = {
            "plugin": context.name,
            "command": config.command,
            "args": config.args,
            "env": config.env,
            "inherit_env": config.inherit_env,
            "working_directory": context.working_directory,
            "environ": context.environ,
            "limits": context.limits,
        }
        return cls(**{**fields, **more})


def server_environment(spec: ProcessSpec) -> dict[str, str]:
    """Return the environment of the server: `PASSED_VARIABLES` (or all, with `inherit_env`), and what is configured."""
    environ = spec.environ
    passed = environ if spec.inherit_env else {name: environ[name] for name in PASSED_VARIABLES if name in environ}
    return {**passed, **spec.env}


def resolve_command(spec: ProcessSpec) -> str:
    """Return the absolute path of the command.

    A bare `python` or `python3` is the interpreter that runs us, so that a config works in whatever venv stepflow runs
    in. Another bare name is looked for on the server's PATH, then beside our interpreter. A name with a slash is
    relative to the working directory.

    Raises:
        Invalid: COMMAND_NOT_FOUND; the message says where it was looked for.
    """
    command = spec.command
    own_folder = Path(sys.executable).parent
    if "/" in command:
        path = Path(spec.working_directory, command)
        if path.is_file() and os.access(path, os.X_OK):
            return str(path)
        why = "is not an executable file" if path.exists() else "does not exist"
        raise _not_found(spec, f"{path} {why}")
    if command in ("python", "python3") and (own_folder / command).is_file():
        return str(own_folder / command)
    search_path = server_environment(spec).get("PATH", os.defpath)
    found = shutil.which(command, path=search_path) or shutil.which(command, path=str(own_folder))
    if found is None:
        raise _not_found(spec, f"it is neither on PATH ({search_path}) nor in {own_folder}")
    return str(Path(found).absolute())


def limited(command: Sequence[str], limits: ServerLimits) -> list[str]:
    """Return what starts a command under limits. A limit above our own ends it at once, and the shell says so."""
    orders = []
    if limits.memory_bytes is not None:
        orders.append(f"ulimit -v {limits.memory_bytes // 1024}")
    if limits.open_files is not None:
        orders.append(f"ulimit -n {limits.open_files}")
    if not orders:
        return list(command)
    return ["/bin/sh", "-c", " && ".join([*orders, 'exec "$0" "$@"']), *command]


def _not_found(spec: ProcessSpec, where: str) -> Invalid:
    return Invalid(
        "COMMAND_NOT_FOUND",
        f"plugin {spec.plugin!r}: the command {spec.command!r} was not found: {where}; "
        "install it, or correct `command` in the configuration",
        plugin=spec.plugin,
        command=spec.command,
    )


class ServerProcess:
    """One run of a server, from `start` to `ended`. Belongs to the event loop it was started on; not reusable.

    `on_output` gets chunks of stdout as they come. `on_exit` is called once, after the last of them.
    """

    def __init__(self, spec: ProcessSpec, *, on_output: Callable[[bytes], None], on_exit: Callable[[], None]) -> None:
        self.returncode: int | None = None
        """Negative: the signal that ended it."""
        self.pid = 0
        self.outgoing_bytes = 0
        """Written but not yet taken by the pipe."""
        self._spec = spec
        self._on_output = on_output
        self._on_exit = on_exit
        self._log = log.bind(plugin=spec.plugin)
        self._stdin = self._stdout = self._stdout_kept = self._stderr = -1
        self._outgoing: list[bytes] = []
        self._unsent: memoryview | None = None
        """What the pipe had no room for; nothing else is written before it."""
        self._flush_due = False
        self._stderr_partial = b""
        self._stderr_lines: deque[str] = deque(maxlen=STDERR_LINES_MAX)
        self._secrets = _secrets_in(spec)
        self._stopping = False
        self._group_ended = True
        """Until there is a group: `killpg(0)` would be our own."""
        self._guard: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process and begin to read its outputs.

        Raises:
            Invalid: COMMAND_NOT_FOUND.
            Unavailable: SERVER_START_FAILED, the system refused.
        """
        command = resolve_command(self._spec)
        self._loop = asyncio.get_running_loop()
        self._exited = asyncio.Event()
        self._ended = asyncio.Event()
        child_stdin = child_stderr = -1
        try:
            child_stdin, self._stdin = os.pipe()
            self._stdout, self._stdout_kept = os.pipe()
            self._stderr, child_stderr = os.pipe()
            process = subprocess.Popen(  # vfork and exec: a millisecond, and safe beside threads
                limited([command, *self._spec.args], self._spec.limits),
                stdin=child_stdin,
                stdout=self._stdout_kept,
                stderr=child_stderr,
                cwd=self._spec.working_directory,
                env=server_environment(self._spec),
                start_new_session=True,
            )
        except OSError as error:
            self._close_pipes()
            raise Unavailable(
                "SERVER_START_FAILED",
                f"plugin {self._spec.plugin!r}: cannot start {command} in {self._spec.working_directory}: "
                f"{error.strerror}",
                plugin=self._spec.plugin,
            ) from None
        finally:
            for fd in (child_stdin, child_stderr):
                if fd >= 0:
                    os.close(fd)
        self.pid = process.pid
        self._group_ended = False
        self._guard = _start_guard(process.pid)
        for fd in (self._stdin, self._stdout, self._stderr):
            os.set_blocking(fd, False)
        self._loop.add_reader(self._stdout, self._read_stdout)
        self._loop.add_reader(self._stderr, self._read_stderr)
        threading.Thread(target=self._wait, args=(process,), name=f"wait-{process.pid}", daemon=True).start()
        self._log.debug("server started", pid=self.pid)

    def make_output_blocking(self) -> None:
        """Make the server's writes to stdout wait for us to read. Call it when the server has set its pipes up."""
        if self._stdout_kept >= 0:
            os.set_blocking(self._stdout_kept, True)

    def write(self, line: bytes) -> None:
        """Send one line (with its newline), together with what else gathers in this turn of the loop.

        After the process has ended this does nothing. The caller bounds `outgoing_bytes`.
        """
        if self._stdin < 0:
            return
        self._outgoing.append(line)
        self.outgoing_bytes += len(line)
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def end_input(self) -> None:
        """Close stdin, which asks most servers to end; what is not sent yet is dropped. Safe to repeat."""
        self._close_stdin()

    def kill(self) -> None:
        """End the group at once; `on_exit` follows."""
        self._signal_group(signal.SIGKILL)

    async def stop(self, grace_s: float) -> None:
        """End the process group: close stdin, SIGTERM, and SIGKILL for what is left after `grace_s`. Safe to repeat.

        Returns when the process is reaped and its guard too.
        """
        if self.pid == 0:
            return
        self._stopping = True
        self._close_stdin()
        if self.returncode is None:
            self._signal_group(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                await self._exited.wait()
                while self._group_lives():  # noqa: ASYNC110  # the system tells nobody when a group is empty
                    await asyncio.sleep(GROUP_POLL_S)
        except TimeoutError:
            self._log.debug("server did not end in time", pid=self.pid, grace_s=grace_s)
        self._signal_group(signal.SIGKILL)
        try:
            async with asyncio.timeout(KILL_WAIT_S):
                await self._exited.wait()
                self._forget_group()
                await self._ended.wait()
        except TimeoutError:
            self._log.warning("a killed server does not go away", pid=self.pid)

    async def ended(self) -> None:
        """Wait until the process has ended and `on_exit` was called."""
        await self._exited.wait()

    def stderr_tail(self) -> str:
        """Return the last lines of stderr, without secrets, cut to a readable size."""
        return "\n".join(self._stderr_lines)

    def command_line(self) -> str:
        """Return what was started, for an error text, without secrets that were substituted into it."""
        return str(redact(self._without_secrets(" ".join([self._spec.command, *self._spec.args]))))

    def forget_stderr(self) -> None:
        """Read what has been written to stderr until now, and forget it all."""
        while self._read_stderr():
            pass
        self._stderr_lines.clear()

    def exit_text(self) -> str:
        """Say how it ended: `exited with code 1`, `was killed by SIGKILL`."""
        code = self.returncode
        if code is None:
            return "is running"
        if code >= 0:
            return f"exited with code {code}"
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(-code).name}"
        return f"was killed by signal {-code}"

    def start_error(self, reason: str, what: str, more: str = "") -> Unavailable:
        """Return what to raise when it did not become ready: how it was started, and the last of its stderr."""
        plugin = self._spec.plugin
        text = f"plugin {plugin!r}: the server {what}. It was started as `{self.command_line()}`{more}"
        tail = self.stderr_tail()
        text += f"; the end of its stderr:\n{tail}" if tail else "; it wrote nothing to stderr"
        return Unavailable(reason, text, plugin=plugin)

    def loss(self) -> Failure:
        """Return the failure of a call that was in flight when it ended."""
        return Failure(
            Code.UNREACHABLE,
            f"server {self._spec.plugin!r} {self.exit_text()} while the call was in flight",
            encode({"exit_code": self.returncode, "stderr": self.stderr_tail()}),
        )

    # --- the way out

    def _flush(self) -> None:
        self._flush_due = False
        if self._outgoing and self._unsent is None:
            data = b"".join(self._outgoing)
            self._outgoing.clear()
            if not self._send(memoryview(data)):
                self._loop.add_writer(self._stdin, self._send_rest)

    def _send_rest(self) -> None:
        assert self._unsent is not None
        if self._send(self._unsent):
            self._loop.remove_writer(self._stdin)
            self._flush()

    def _send(self, data: memoryview) -> bool:
        """Write what the pipe takes; keep the rest in `_unsent` and say whether there is none."""
        try:
            written = os.write(self._stdin, data)
        except BlockingIOError:
            written = 0
        except BrokenPipeError:
            self._log.debug("server closed its stdin", pid=self.pid)
            self.kill()  # it can be told nothing more; without this its calls would wait for their timeouts
            written = len(data)
        self.outgoing_bytes -= written
        self._unsent = data[written:] if written < len(data) else None
        return self._unsent is None

    def _close_stdin(self) -> None:
        if self._stdin >= 0:
            self._loop.remove_writer(self._stdin)
            os.close(self._stdin)
            self._stdin = -1
            self._outgoing.clear()
            self._unsent = None
            self.outgoing_bytes = 0

    # --- the way in

    def _read_stdout(self) -> bool:
        chunk = _read(self._stdout)
        if chunk:
            self._on_output(chunk)
        return bool(chunk)

    def _read_stderr(self) -> bool:
        chunk = _read(self._stderr)
        if chunk is None:
            return False
        if not chunk:
            self._loop.remove_reader(self._stderr)
            return False
        *lines, partial = (self._stderr_partial + chunk).split(b"\n")
        if len(partial) > STDERR_PARTIAL_BYTES_MAX:
            lines.append(partial)
            partial = b""
        self._stderr_partial = partial
        for line in lines:
            self._keep_stderr(line)
        return True

    def _keep_stderr(self, line: bytes) -> None:
        text = line[: 4 * STDERR_LINE_CHARS_MAX].decode("utf-8", "replace")
        if not text.strip() or text.startswith(self._spec.stderr_hidden):
            return
        text = redact(self._without_secrets(_ESCAPES.sub("", text))[:STDERR_LINE_CHARS_MAX])
        text = "".join(char if char.isprintable() or char == "\t" else "\N{REPLACEMENT CHARACTER}" for char in text)
        self._stderr_lines.append(text)
        self._log.debug("server stderr", line=text)

    def _without_secrets(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "[REDACTED]")
        return text

    # --- the end

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        """Reap the server, then its guard (in a thread of its own: works on every POSIX system and event loop)."""
        returncode = process.wait()
        with contextlib.suppress(RuntimeError):  # the loop was closed without `stop`
            self._loop.call_soon_threadsafe(self._handle_exit, returncode)
        if self._guard is not None:
            self._guard.wait()
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._ended.set)

    def _handle_exit(self, returncode: int) -> None:
        self.returncode = returncode
        for read in (self._read_stdout, self._read_stderr):
            for _ in range(DRAIN_READS_MAX):
                if not read():
                    break
        if self._stderr_partial:
            self._keep_stderr(self._stderr_partial)
        self._close_stdin()
        self._loop.remove_reader(self._stdout)
        self._loop.remove_reader(self._stderr)
        self._close_pipes()
        if not self._stopping:
            self._signal_group(signal.SIGKILL)
            self._forget_group()
        self._log.debug("server ended", pid=self.pid, returncode=returncode)
        self._exited.set()
        self._on_exit()

    def _signal_group(self, number: signal.Signals) -> None:
        # The group outlives its leader while it has members, and its number is not given away before. Afterwards it
        # may be: nothing is sent once the group was ended.
        if self._group_ended:
            return
        assert self.pid > 1
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def _group_lives(self) -> bool:
        if self._group_ended:
            return False
        try:
            os.killpg(self.pid, 0)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def _forget_group(self) -> None:
        self._group_ended = True
        guard = self._guard
        if guard is not None and guard.stdin is not None and not guard.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                guard.stdin.write(b"done\n")
                guard.stdin.close()

    def _close_pipes(self) -> None:
        for fd in (self._stdin, self._stdout, self._stdout_kept, self._stderr):
            if fd >= 0:
                os.close(fd)
        self._stdin = self._stdout = self._stdout_kept = self._stderr = -1


def _secrets_in(spec: ProcessSpec) -> list[str]:
    """Return the secrets: those told, and secret-looking variables, which may have been put into `args` and `env`."""
    variables = {**spec.environ, **spec.env}
    named = [value for name, value in variables.items() if len(value) >= SECRET_CHARS_MIN and is_secret_name(name)]
    return [*spec.secrets, *named]


def _read(fd: int) -> bytes | None:
    """Read what is there; None when there is nothing, empty at the end of the file."""
    if fd < 0:
        return None
    try:
        return os.read(fd, READ_BYTES)
    except BlockingIOError:
        return None


def _start_guard(group: int) -> subprocess.Popen[bytes] | None:
    try:
        return subprocess.Popen(
            ["/bin/sh", "-c", _GUARD_SCRIPT, "stepflow-guard", str(group)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={"PATH": os.defpath},
            start_new_session=True,  # a Ctrl-C at the terminal must not reach it before us
        )
    except OSError as error:
        log.warning("no guard: should this process be killed, a server may outlive it", error=error.strerror)
        return None
