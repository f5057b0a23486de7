"""Helpers for tests of every level: waiting for conditions, real servers in venvs, free ports, the command line.

Importable as `support` (pytest's `pythonpath` names the folder above). This module imports no product code.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

ROOT = Path(__file__).resolve().parents[2]
"""The repository."""

SERVERS = ROOT / ".cache" / "servers"
"""Cache of venvs, one per real server, kept across test runs."""

LISTENING_PORTS = range(10_000, 32_768)
"""Below Linux's ephemeral port range."""

POLL_S = 0.01
INSTALL_TIMEOUT_S = 300

T = TypeVar("T")


def wait_until(predicate: Callable[[], T], description: str, timeout_s: float = 10.0) -> T:
    """Poll `predicate` until it returns a true value, and return that value.

    Blocks the thread: inside a coroutine use `wait_until_async`. Raises: AssertionError with `description` on
    timeout.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {description}")
        time.sleep(POLL_S)


async def wait_until_async(predicate: Callable[[], T], description: str, timeout_s: float = 10.0) -> T:
    """Poll like `wait_until` without blocking the event loop."""
    import asyncio

    deadline = time.monotonic() + timeout_s
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {description}")
        await asyncio.sleep(POLL_S)


async def wait_for_value(
    read: Callable[[], Awaitable[T]],
    description: str,
    passes: Callable[[T], object] = bool,
    timeout_s: float = 10.0,
) -> T:
    """Read until the value passes, and return it. For what only reading tells: stores, other processes.

    Raises: AssertionError with `description` and the last value on timeout.
    """
    import asyncio

    deadline = time.monotonic() + timeout_s
    while not passes(value := await read()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {description}; last read: {value!r:.500}")
        await asyncio.sleep(POLL_S)
    return value


def free_port() -> int:
    """Return a loopback TCP port without a listener.

    The port is outside the ephemeral range, so a killed server can bind it again.
    """
    while True:
        port = random.choice(LISTENING_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def is_alive(pid: int) -> bool:
    """Return True if the process runs; a zombie does not count."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in ("Z", "X")


def text_of(path: Path) -> str:
    """Return the file's text; empty if the file does not exist."""
    return path.read_text(encoding="utf-8") if path.exists() else ""


def server_venv(requirements: Sequence[str], name: str) -> Path:
    """Return the `bin` folder of a cached venv with `requirements`, built by the first call.

    Safe under pytest-xdist: one process builds, the others wait. A half-built venv, or one with other requirements,
    is rebuilt.
    """
    SERVERS.mkdir(parents=True, exist_ok=True)
    folder = SERVERS / name
    marker = folder / ".complete"
    wanted = hashlib.sha256("\n".join([sys.version, *requirements]).encode()).hexdigest()
    with _file_lock(SERVERS / f".{name}.lock"):
        if not (marker.exists() and marker.read_text(encoding="utf-8") == wanted):
            shutil.rmtree(folder, ignore_errors=True)
            _checked([sys.executable, "-m", "venv", str(folder)])
            _checked([str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", *requirements])
            marker.write_text(wanted, encoding="utf-8")
    return folder / "bin"


def node_packages(packages: Sequence[str], name: str) -> tuple[Path, Path]:
    """Return the Node binary and a folder whose `node_modules` hold `packages`, installed once and cached.

    Node comes from PyPI, never from PATH. Safe under pytest-xdist, like `server_venv`.
    """
    program = Path(_checked([str(ROOT / "scripts" / "tools.sh"), "node"]).strip())
    folder = ROOT / ".cache" / "node" / name
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / ".complete"
    wanted = "\n".join([str(program), *packages])
    with _file_lock(folder / ".lock"):
        if not (marker.exists() and marker.read_text(encoding="utf-8") == wanted):
            shutil.rmtree(folder / "node_modules", ignore_errors=True)
            npm = [
                str(program.parent / "npm"),
                "install",
                "--silent",
                "--no-audit",
                "--no-fund",
                "--prefix",
                str(folder),
            ]
            path = f"{program.parent}:{os.environ['PATH']}"  # npm starts node by its name
            _checked([*npm, *packages], {**os.environ, "PATH": path})
            marker.write_text(wanted, encoding="utf-8")
    return program, folder


def run_cli(
    args: Sequence[str],
    cwd: Path | str | None = None,
    env: Mapping[str, str] | None = None,
    input: str | None = None,  # subprocess.run calls it that
    timeout_s: float = 60.0,
) -> subprocess.CompletedProcess[str]:
    """Run `stepflow ARGS` in its own process and return its exit code, stdout and stderr.

    `env` is added to the environment of the tests. stdin is empty unless `input` is given. On timeout the command's
    process group is killed. Raises: subprocess.TimeoutExpired.
    """
    command = [sys.executable, "-m", "stepflow.cli", *args]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
    with subprocess.Popen(
        command,
        cwd=cwd or ROOT,
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        start_new_session=True,
    ) as process:
        try:
            stdout, stderr = process.communicate(input or "", timeout=timeout_s)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def _checked(command: Sequence[str], env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        timeout=INSTALL_TIMEOUT_S,
        stdin=subprocess.DEVNULL,
        env=env,
    )
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(command)} failed with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done.stdout


@contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released by the kernel when the process ends, even by SIGKILL
        yield
