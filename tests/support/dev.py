"""A real `stepflow dev` for tests: all of its processes, in a temporary folder, on a free port."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import ROOT, free_port, run_cli, text_of, wait_until
from .etcd import etcd_binary

if TYPE_CHECKING:
    from collections.abc import Iterator

READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0


@dataclass
class Dev:
    """One `stepflow dev`. `cli` runs commands in the same folder, against the same mesh."""

    folder: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    ready: dict[str, Any] = field(default_factory=dict)
    """The document that `--json` printed."""

    @property
    def server(self) -> str:
        return f"localhost:{self.port}"

    @property
    def said(self) -> str:
        """The text on its stderr so far."""
        return text_of(self.folder / "dev.err")

    def launch(self, *args: str) -> None:
        """Start the process without waiting for readiness."""
        command = [sys.executable, "-m", "stepflow.cli", "dev", "--json", "--port", str(self.port), *args]
        with (self.folder / "dev.out").open("wb") as out, (self.folder / "dev.err").open("ab") as err:
            self.process = subprocess.Popen(
                command,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=self.environ(),
                start_new_session=True,
            )

    def start(self, *args: str) -> None:
        self.launch(*args)

        def is_ready() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, f"stepflow dev ended:\n{self.said}"
            return text_of(self.folder / "dev.out").endswith("\n")

        wait_until(is_ready, "the mesh is ready", READY_TIMEOUT_S)
        self.ready = json.loads(text_of(self.folder / "dev.out"))

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """Send a signal and return the exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        returncode = self.process.wait(STOP_TIMEOUT_S)
        self.process = None
        return returncode

    def cli(self, *args: str, input: str | None = None) -> subprocess.CompletedProcess[str]:
        return run_cli(args, cwd=self.folder, env={**self.environ(), "STEPFLOW_SERVER": self.server}, input=input)

    def json(self, *args: str) -> Any:
        """Run a command with `--json`, which must succeed, and return the printed document."""
        done = self.cli(*args, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def environ(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(ROOT), "ETCD_BIN": str(etcd_binary().path)}

    def processes(self) -> dict[int, list[str]]:
        """Return the command lines, by pid, of all services and component servers: those that name this folder."""
        found = {}
        for entry in Path("/proc").iterdir():
            try:
                words = (entry / "cmdline").read_bytes().decode().split("\0")
            except (OSError, UnicodeDecodeError):
                continue
            if any(str(self.folder) in word for word in words):
                found[int(entry.name)] = words
        return found

    def pid_of(self, service: str) -> int:
        """Return the current pid of a service, 0 if it is down; a restart changes it."""
        wanted = "--name=dev" if service == "etcd" else service
        return next((pid for pid, words in self.processes().items() if wanted in words), 0)

    def wait_for(self, text: str, timeout_s: float = 20.0) -> None:
        wait_until(lambda: text in self.said, f"it says {text!r}", timeout_s)

    def end(self) -> None:
        """Stop the mesh if it still runs: SIGTERM, then SIGKILL for the group."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
            self.process = None


@contextmanager
def dev_mesh(folder: Path, *args: str) -> Iterator[Dev]:
    """Run a mesh until the block ends; it is ready when the block begins."""
    dev = Dev(folder)
    try:
        dev.start(*args)
        yield dev
    finally:
        dev.end()


@dataclass
class Command:
    """A command that runs concurrently with the test, such as `stepflow submit` or `runs watch`."""

    process: subprocess.Popen[str]
    err: Path

    @property
    def said(self) -> str:
        return text_of(self.err)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, timeout_s: float = 30.0) -> int:
        return self.process.wait(timeout_s)


@contextmanager
def running(dev: Dev, *args: str) -> Iterator[Command]:
    """Run a command concurrently with the block; kill it at the end if it still runs."""
    err = dev.folder / f"command-{time.monotonic_ns()}.err"
    with err.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "stepflow.cli", *args],
            cwd=dev.folder,
            env={**dev.environ(), "STEPFLOW_SERVER": dev.server},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            start_new_session=True,
        )
    with process:
        try:
            yield Command(process, err)
        finally:
            if process.poll() is None:
                process.kill()
