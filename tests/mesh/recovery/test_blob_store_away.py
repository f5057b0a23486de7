"""A blob store that takes nothing: the mesh waits and says why, a run on this machine stops at once and is resumed.

The kernel refuses the writes: the processes may write no file above `FILE_BYTES_MAX`.
"""

from __future__ import annotations

import asyncio
import json
import resource
import shlex
import subprocess
import sys
import time
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from support import ROOT, run_cli, wait_for_value
from support.mesh import Gate, Processes, gated_config, processes

from stepflow.client import Client
from stepflow.codec import blob_id, encode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.etcd import EtcdServer

WAIT_S = 30.0

FILE_BYTES_MAX = 2 * 1024 * 1024
"""Above the files of a small run, and above the log of a service."""

LARGE = "x" * (FILE_BYTES_MAX + 1)

FLOW = {"steps": [{"id": "a", "component": "/gated/work", "input": {"$input": "$"}}], "output": {"$step": "a"}}


@pytest.fixture
def mesh(etcd: EtcdServer, tmp_path: Path) -> Iterator[Processes]:
    with processes(etcd, tmp_path, f"{uuid4().hex[:12]}/") as mesh:
        yield mesh


def limit_files(pid: int, bytes_max: int) -> None:
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (bytes_max, hard))


@pytest.mark.parametrize("refused", ["the output of a step", "the input of a step"])
def test_a_step_waits_for_a_full_blob_store_and_is_executed_once(mesh: Processes, tmp_path: Path, refused: str) -> None:
    gate = Gate(tmp_path)
    gate.allow(9)
    host = mesh.host(gated_config(tmp_path))
    executor = mesh.executor()
    control = mesh.start("control_plane")
    full = host if refused == "the output of a step" else executor
    limit_files(full.process.pid, FILE_BYTES_MAX)

    async def scenario() -> None:
        async with Client(control.address) as client:
            run_id = await client.submit(FLOW, LARGE)
            told = await wait_for_value(client.cluster, "the mesh says it", lambda seen: seen.warnings, WAIT_S)
            (warning,) = told.warnings
            assert f"{full.id} cannot use the blob store" in warning
            assert "File too large (EFBIG)" in warning
            status = await asyncio.to_thread(run_cli, ["cluster", "status", "--server", control.address])
            assert warning in status.stderr
            assert (await client.get(run_id)).status == "running"

            limit_files(full.process.pid, resource.RLIM_INFINITY)
            assert (await client.wait(run_id, timeout_s=WAIT_S)).status == "completed"
            (item,) = [item async for item in client.items(run_id)]
            assert item.result == {"of": LARGE}
            assert gate.ledger == [(f"{run_id}/0/a", 1)]
            assert (await client.cluster()).warnings == []

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_run_on_this_machine_stops_on_a_full_disk_with_its_cause_and_is_resumed_when_there_is_room(
    tmp_path: Path,
) -> None:
    together = [{"$input": "text"}] * 30  # only the step's own input is above the limit
    flow = {
        "steps": [{"id": "a", "component": "/builtin/put_blob", "input": {"data": together, "blob_type": "data"}}],
        "output": {"$step": "a", "path": "blob_id"},
    }
    (tmp_path / "flow.json").write_text(json.dumps(flow), encoding="utf-8")
    (tmp_path / "input.json").write_text(json.dumps({"text": "x" * 100_000}), encoding="utf-8")

    command = f"{shlex.quote(sys.executable)} -m stepflow.cli run --flow flow.json --input input.json"
    begun = time.monotonic()
    stopped = subprocess.run(
        ["/bin/bash", "-c", f"ulimit -S -f {FILE_BYTES_MAX // 1024}; exec {command}"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert stopped.returncode == 1
    assert "error[BLOB_STORE_FULL]" in stopped.stderr
    assert "(EFBIG); free some space there" in stopped.stderr
    assert "continue it with: stepflow resume" in stopped.stderr
    assert time.monotonic() - begun < 10

    resumed = run_cli(["resume"], cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    stored = encode(["x" * 100_000] * 30)
    assert json.loads(resumed.stdout)["result"] == blob_id(stored)
    assert (tmp_path / f".stepflow/blobs/shared/{blob_id(stored)}").read_bytes() == stored
