"""Real etcd servers for tests: one or a cluster, on free loopback ports, with data in a temporary folder.

`EtcdServer` is a process that can be killed, stopped, continued and restarted on its data. Operations missing from the
store's client (compaction, users) go through etcd's JSON gateway.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from stepflow.dev.etcd_binary import EtcdBinary, find_etcd
from stepflow.errors import StepflowError

from . import ROOT, free_port, text_of, wait_until

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator, Sequence
    from pathlib import Path

START_TIMEOUT_S = 20.0
GATEWAY_TIMEOUT_S = 5.0

FAST = ("--heartbeat-interval=20", "--election-timeout=200")
"""Options for leader elections within a fraction of a second, and lease TTLs down to 1 s."""

FLAGS = ("--snapshot-count=5000", "--quota-backend-bytes=4294967296", "--logger=zap", "--log-level=warn")


@cache
def etcd_binary() -> EtcdBinary:
    """Return the etcd binary for the tests, cached in the repository's `.cache`."""
    return find_etcd(ROOT / ".cache")


@dataclass
class EtcdServer:
    """One member. `args` are added to its command; `scheme` and `context` (TLS) are those of its JSON gateway."""

    folder: Path
    name: str = "etcd"
    client_port: int = field(default_factory=free_port)
    peer_port: int = field(default_factory=free_port)
    host: str = "127.0.0.1"
    """Address for clients."""
    args: Sequence[str] = ()
    scheme: str = "http"
    context: ssl.SSLContext | None = None
    members: Sequence[EtcdServer] = ()
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"{self.host}:{self.client_port}"

    @property
    def peer_url(self) -> str:
        return f"http://127.0.0.1:{self.peer_port}"

    def launch(self) -> None:
        """Start the process on existing data, if any, without waiting for it."""
        url = f"{self.scheme}://{self.endpoint}"
        members = self.members or (self,)
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [
            str(etcd_binary().path),
            f"--name={self.name}",
            f"--data-dir={self.folder / 'data'}",
            f"--listen-client-urls={url}",
            f"--advertise-client-urls={url}",
            f"--listen-peer-urls={self.peer_url}",
            f"--initial-advertise-peer-urls={self.peer_url}",
            f"--initial-cluster={','.join(f'{member.name}={member.peer_url}' for member in members)}",
            *FLAGS,
            *self.args,
        ]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=_environ()
            )

    def start(self) -> None:
        self.launch()
        self.wait()

    def wait(self) -> None:
        wait_until(self.is_healthy, f"etcd {self.name} serves; see {self.log}", START_TIMEOUT_S)

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    def is_healthy(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"etcd ended:\n{text_of(self.log)[-2000:]}"
        try:
            return bool(self.ask("maintenance/status").get("leader"))
        except (OSError, urllib.error.HTTPError):
            return False

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL the process and reap it; works on a stopped process, too."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def stop(self) -> None:
        self.signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.signal(signal.SIGCONT)

    def ask(self, path: str, token: str = "", **body: Any) -> dict[str, Any]:
        """POST to etcd's JSON gateway, such as `ask("kv/compaction", revision=5)`. Raises: OSError, HTTPError."""
        request = urllib.request.Request(  # noqa: S310  # a server of the test
            f"{self.scheme}://{self.endpoint}/v3/{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json", **({"Authorization": token} if token else {})},
        )
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=self.context)
        )
        try:
            with opener.open(request, timeout=GATEWAY_TIMEOUT_S) as reply:
                return dict(json.load(reply))
        except urllib.error.HTTPError as error:
            error.close()
            raise

    def compact(self, revision: int) -> None:
        self.ask("kv/compaction", revision=revision, physical=True)

    def snapshot(self, copy: Path) -> None:
        """Save a snapshot of the running server."""
        request = urllib.request.Request(  # noqa: S310  # a server of the test
            f"{self.scheme}://{self.endpoint}/v3/maintenance/snapshot", b"{}", {"Content-Type": "application/json"}
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=GATEWAY_TIMEOUT_S) as reply, copy.open("wb") as file:
            for line in reply:
                file.write(base64.b64decode(json.loads(line)["result"].get("blob", "")))

    def wipe(self) -> None:
        """SIGKILL the server and start it without its data."""
        self.kill()
        shutil.rmtree(self.folder / "data")
        self.start()

    def restore(self, copy: Path, *args: str) -> None:
        """SIGKILL the server and start it on a snapshot."""
        self.restore_data(copy, *args)
        self.start()

    def restore_data(self, copy: Path, *args: str) -> None:
        """SIGKILL the server and replace its data by a snapshot's, as the documentation of etcd says."""
        self.kill()
        members = self.members or (self,)
        shutil.rmtree(self.folder / "data")
        command = [
            str(etcd_binary().path.with_name("etcdutl")),
            "snapshot",
            "restore",
            str(copy),
            f"--name={self.name}",
            f"--data-dir={self.folder / 'data'}",
            f"--initial-cluster={','.join(f'{member.name}={member.peer_url}' for member in members)}",
            f"--initial-advertise-peer-urls={self.peer_url}",
            *args,
        ]
        subprocess.run(command, check=True, capture_output=True, env=_environ())

    def make_room(self) -> None:
        """Defragment, and clear the NOSPACE alarm."""
        self.ask("maintenance/defragment")
        for alarm in self.ask("maintenance/alarm", action="GET").get("alarms", ()):
            self.ask("maintenance/alarm", **{**alarm, "action": "DEACTIVATE"})

    def put(self, key: str, value: str) -> None:
        self.ask("kv/put", key=_base64(key), value=_base64(value))

    def delete(self, prefix: str) -> None:
        self.ask("kv/deleterange", key=_base64(prefix), range_end=_base64(prefix[:-1] + chr(ord(prefix[-1]) + 1)))

    def revoke_leases(self) -> None:
        for lease in self.ask("lease/leases").get("leases", ()):
            try:
                self.ask("lease/revoke", ID=lease["ID"])
            except urllib.error.HTTPError:  # expired since the listing
                continue

    def is_leader(self) -> bool:
        try:
            status = self.ask("maintenance/status")
        except (OSError, urllib.error.HTTPError):
            return False
        return bool(status.get("leader") == status["header"]["member_id"])


@dataclass
class EtcdCluster:
    """Several members behind one endpoint list."""

    members: Sequence[EtcdServer]

    @property
    def endpoint(self) -> str:
        return ",".join(member.endpoint for member in self.members)


@contextmanager
def running_etcd(folder: Path, *args: str, **options: Any) -> Iterator[EtcdServer]:
    """Run one etcd until the block ends."""
    server = EtcdServer(folder, args=args, **options)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@contextmanager
def running_cluster(folder: Path, *args: str, members: int = 3) -> Iterator[list[EtcdServer]]:
    """Run a cluster until the block ends; all members are healthy when it begins."""
    servers = [EtcdServer(folder / f"m{i}", name=f"m{i}", args=args) for i in range(members)]
    try:
        for server in servers:
            server.members = servers
            server.launch()
        for server in servers:
            server.wait()
        yield servers
    finally:
        for server in servers:
            server.kill()


def leader_of(servers: Sequence[EtcdServer]) -> EtcdServer:
    def leaders() -> list[EtcdServer]:
        return [server for server in servers if server.process and server.is_leader()]

    return wait_until(leaders, "the cluster has a leader", START_TIMEOUT_S)[0]


def _environ() -> dict[str, str]:
    """Return the environment without ETCD_* variables, which etcd reads as options."""
    return {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _tell() -> None:
    """Print the version of etcd that the tests run against."""
    try:
        binary = etcd_binary()
    except StepflowError as error:  # only the tests that need etcd fail
        sys.stdout.write(f"no etcd: {error.message}\n")
    else:
        sys.stdout.write(f"etcd {binary.version} ({binary.path})\n")


if __name__ == "__main__":
    _tell()
