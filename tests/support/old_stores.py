"""Stores that earlier versions have written (`tests/data/stores/`), unpacked into a folder of the test.

`README.md` there says how they were made. `Place` runs the commands of the present tree on them; `load_etcd` puts a
dump of keys into a real etcd.
"""

from __future__ import annotations

import base64
import json
import sys
import tarfile
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from . import ROOT, run_cli, text_of

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from .etcd import EtcdServer

STORES = ROOT / "tests" / "data" / "stores"
VERSIONS = sorted(path.name for path in STORES.iterdir() if (path / "mesh.json").is_file())

LEASE_TTL_S = 2
"""What is left of the leases of the dead when a dump is loaded."""


@dataclass
class Place:
    """An unpacked store. `golden` is what the commands of its version have printed."""

    folder: Path
    golden: dict[str, Any]
    old_executions: int = 0
    """Executions before the store was unpacked."""

    @classmethod
    def unpack(cls, version: str, name: str, folder: Path) -> Place:
        with tarfile.open(STORES / version / f"{name}.tar.xz") as archive:
            archive.extractall(folder, filter="data")
        made = cls(folder, json.loads((STORES / version / f"{name}.json").read_text(encoding="utf-8")))
        made.old_executions = len(made.executions)
        return made

    @cached_property
    def environ(self) -> dict[str, str]:
        """The variables of the configuration, for the component server of the stores."""
        return {
            "GATED_PYTHON": sys.executable,
            "GATED_SERVER": str(ROOT / "tests" / "data" / "servers" / "gated.py"),
            "GATED_FOLDER": str(self.folder / "gate"),
            "GATED_PATH": str(ROOT),
        }

    @property
    def config(self) -> Path:
        return self.folder / "stepflow-config.yml"

    @property
    def executions(self) -> list[str]:
        """Keys of all executions that have begun, in order."""
        return [line.rpartition(" ")[0] for line in text_of(self.folder / "gate" / "ledger").splitlines()]

    @property
    def new_executions(self) -> list[str]:
        return self.executions[self.old_executions :]

    def titles(self, begin: str = "") -> dict[str, str]:
        """Return the run ids by title, of the titles that begin so."""
        return {title: run_id for title, run_id in self.golden["names"].items() if title.startswith(begin)}

    def cli(self, *args: str, server: str = "") -> subprocess.CompletedProcess[str]:
        return run_cli(args, cwd=self.folder, env={**self.environ, "STEPFLOW_SERVER": server})

    def json(self, *args: str, server: str = "") -> Any:
        done = self.cli(*args, "--json", server=server)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def dump_of(version: str) -> dict[str, Any]:
    """Return the dump of a mesh; values are bytes."""
    dump: dict[str, Any] = json.loads((STORES / version / "etcd.json").read_text(encoding="utf-8"))
    for item in dump["keys"]:
        item["value"] = zlib.decompress(base64.b64decode(item["value"]))
    return dump


def load_etcd(server: EtcdServer, dump: dict[str, Any]) -> None:
    """Put the keys of a dump into an empty etcd, at revisions after those they had: epochs only grow."""
    lease = server.ask("lease/grant", TTL=LEASE_TTL_S)["ID"]
    while _put(server, "filler", b"") < dump["revision"]:
        pass
    server.delete("filler")
    for item in dump["keys"]:
        _put(server, item["key"], item["value"], **({"lease": lease} if item["lease"] else {}))


def _put(server: EtcdServer, key: str, value: bytes, **options: Any) -> int:
    body = {"key": base64.b64encode(key.encode()).decode(), "value": base64.b64encode(value).decode(), **options}
    return int(server.ask("kv/put", **body)["header"]["revision"])


__all__ = ["STORES", "VERSIONS", "Place", "dump_of", "load_etcd"]
