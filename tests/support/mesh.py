"""A mesh of real processes over a real etcd, for tests: executors and hosts that can be killed, paused and terminated.

A control plane can run in the test's own process, over the same etcd, for tests that inspect its state.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import ROOT, text_of, wait_until, wait_until_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from control_plane.archive.run_store import RunStore
    from control_plane.control_plane import ControlPlane
    from stepflow.store import Store
    from stepflow.store.blobs import BlobStore
    from stepflow.store.etcd.store import EtcdStore

    from .etcd import EtcdCluster, EtcdServer
    from .truth import Ledger

READY_TIMEOUT_S = 30.0
END_TIMEOUT_S = 30.0
LEDGER_NAME = "ledger"
CONFIG_NAME = "stepflow-config.yml"


@dataclass
class Service:
    """One process. `address` and `id` are empty until it is ready."""

    name: str
    process: subprocess.Popen[bytes]
    folder: Path
    id: str = ""
    address: str = ""

    def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        def line() -> str:
            assert self.process.poll() is None, f"{self.name} ended:\n{self.log[-3000:]}"
            return text_of(self.folder / f"{self.name}.out")

        ready = json.loads(wait_until(line, f"{self.name} is ready", timeout_s).splitlines()[0])
        self.id, self.address = ready["id"], ready["address"]

    @property
    def log(self) -> str:
        return text_of(self.folder / f"{self.name}.log")

    def kill(self) -> None:
        """SIGKILL the process alone, not its children."""
        self.process.kill()
        self.process.wait(END_TIMEOUT_S)

    def ask_to_end(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def end(self) -> int:
        """SIGTERM the process and return its exit code."""
        self.ask_to_end()
        return self.process.wait(END_TIMEOUT_S)

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)


@dataclass
class Processes:
    """The processes of one mesh. `close` kills all of them and their descendants."""

    etcd: EtcdServer | EtcdCluster
    folder: Path
    prefix: str
    services: list[Service] = field(default_factory=list)
    _numbers: Any = field(default_factory=count)

    def start(
        self,
        module: str,
        *args: str,
        wait: bool = True,
        env: dict[str, str] | None = None,
        within: Sequence[str] = (),
        tree: Path = ROOT,
    ) -> Service:
        """Start a service.

        `within` is a command that becomes it, such as `ip netns exec NAME`; `tree` the checkout with its code.
        """
        name = f"{module}-{next(self._numbers)}"
        command = [*within, sys.executable, "-m", module, "--etcd", self.etcd.endpoint, "--etcd-prefix", self.prefix]
        command += ["--blobs", str(self.folder / "blobs"), "--listen", "127.0.0.1:0", *args]
        with (self.folder / f"{name}.out").open("wb") as out, (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                cwd=tree,
                env={**os.environ, "PYTHONPATH": str(tree), **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                start_new_session=True,
            )
        service = Service(name, process, self.folder)
        self.services.append(service)
        if wait:
            service.wait_ready()
        return service

    def executor(self, *args: str, **options: Any) -> Service:
        return self.start("executor", *args, **options)

    def host(self, config: Path, *args: str, **options: Any) -> Service:
        return self.start("component_host", "--config", str(config), *args, **options)

    def control_plane(self, *args: str, **options: Any) -> Service:
        return self.start("control_plane", *args, **options)

    def close(self) -> None:
        for service in self.services:
            started = children_of(service.process.pid)
            if service.process.poll() is None:
                service.process.kill()
                service.process.wait(END_TIMEOUT_S)
            for pid in started:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    @asynccontextmanager
    async def control(self, **options: Any) -> AsyncIterator[ControlPlane]:
        """Run a control plane in this process; it takes part in leader election."""
        from control_plane.control_plane import ControlPlane

        async with self.store() as store:
            control_plane = ControlPlane(store, self.blobs(), **options)
            await control_plane.start()
            try:
                yield control_plane
            finally:
                await control_plane.close()

    @asynccontextmanager
    async def store(self) -> AsyncIterator[EtcdStore]:
        from stepflow.store.etcd.config import EtcdConfig
        from stepflow.store.etcd.store import EtcdStore

        store = await EtcdStore.open(EtcdConfig.parse(self.etcd.endpoint, prefix=self.prefix))
        try:
            yield store
        finally:
            await store.close()

    def blobs(self) -> BlobStore:
        from stepflow.store.blobs import BlobStore

        return BlobStore.open(str(self.folder / "blobs"))

    def run_store(self, store: Store) -> RunStore:
        """Return the view of a store in which packed runs are found, too."""
        from control_plane.archive.reader import Archive
        from control_plane.archive.run_store import RunStore

        return RunStore(store, Archive(store, self.blobs()))


@contextmanager
def processes(etcd: EtcdServer | EtcdCluster, folder: Path, prefix: str) -> Iterator[Processes]:
    """Yield the `Processes` of a mesh under its own key prefix; kill them when the block ends."""
    mesh = Processes(etcd, folder, prefix)
    try:
        yield mesh
    finally:
        mesh.close()


def children_of(pid: int) -> list[int]:
    """Return the pids of all descendants of a process."""
    try:
        children = [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()]
    except OSError:
        return []
    return [*children, *(below for child in children for below in children_of(child))]


def gated_config(folder: Path) -> Path:
    """Write a configuration whose `/gated` is `tests/data/servers/gated.py`, working in `folder`; return its path."""
    return _config(folder, "gated", f'GATED_FOLDER: "{folder}"')


def ledger_config(folder: Path, *, tree: Path = ROOT, file_name: str = CONFIG_NAME, newer: bool = False) -> Path:
    """Write a configuration whose `/ledger` is `tests/data/servers/ledger.py`; return its path. See `ledger_of`.

    `tree`: the checkout with the server and its SDK. `newer`: the server offers one more component, `/add_newer`.
    """
    env = f'LEDGER: "{folder / LEDGER_NAME}"' + (", LEDGER_NEWER: yes" if newer else "")
    return _config(folder, "ledger", env, tree, file_name)


def ledger_of(folder: Path) -> Ledger:
    """Return the ledger that the servers of `ledger_config` write."""
    from .truth import Ledger

    return Ledger(folder / LEDGER_NAME)


def _config(folder: Path, name: str, env: str, tree: Path = ROOT, file_name: str = CONFIG_NAME) -> Path:
    text = f"""
        plugins:
          builtin: {{type: builtin}}
          {name}:
            type: stepflow
            command: {sys.executable}
            args: ["{tree / f"tests/data/servers/{name}.py"}"]
            env: {{PYTHONPATH: "{tree}", {env}}}
        routes:
          "/builtin": [{{plugin: builtin}}]
          "/{name}": [{{plugin: {name}}}]
    """
    path = folder / file_name
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


class Gate:
    """The gated server's ledger, and the number of executions that it may end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def allow(self, count: float) -> None:
        """Let the first `count` executions end."""
        new = self._folder / "allowed.new"
        new.write_text(str(count), encoding="utf-8")
        new.replace(self._folder / "allowed")

    @property
    def ledger(self) -> list[tuple[str, int]]:
        """Key and attempt of each started execution, in start order."""
        lines = text_of(self._folder / "ledger").splitlines()
        return [(key, int(attempt)) for key, _, attempt in (line.rpartition(" ") for line in lines)]

    async def wait_for(self, count: int, timeout_s: float = 15.0) -> list[tuple[str, int]]:
        """Return the ledger once `count` executions have started."""
        await wait_until_async(lambda: len(self.ledger) >= count, f"{count} executions have begun", timeout_s)
        return self.ledger


__all__ = [
    "Gate",
    "Processes",
    "Service",
    "children_of",
    "gated_config",
    "ledger_config",
    "ledger_of",
    "processes",
]
