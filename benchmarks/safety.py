"""The cost of the safety protocols (cursor, acknowledgements, attach), and the take-over time that they allow.

    python -m benchmarks.safety [--quick]

- *Cursor*: equal writes to one etcd, one transaction in flight, with and without the additions of the fenced writer
  (two compares, one put, the reads of the failure branch). The two variants alternate by round.
- *Acknowledgements*: frames of calls and results, encoded and decoded as between two processes, with and without
  acknowledgements.
- *Attach*: the request for the runs of a dead executor, and the reply of a host that holds one call of each run.
- *Take-over*: one of two executors is killed under `KILLED_RUNS` runs. The time from the kill to the run's new owner,
  by the new owner's journal.

Cursor and acknowledgements are per step, for comparison with the steps per second of `benchmarks.mesh`; attach is per
run.
"""

from __future__ import annotations

import asyncio
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from benchmarks.mesh import CACHE, HERE, mesh, moved_after_ms, nap, owner, store, submit
from component_host.host import ComponentHost
from stepflow.dev.etcd_binary import find_etcd
from stepflow.dev.ports import free_port
from stepflow.ids import new_run_id
from stepflow.mesh.v1 import host_pb2
from stepflow.store import Get, Put, Txn, created_at, keys, version_is
from stepflow.store.blobs import BlobStore
from stepflow.store.etcd.config import EtcdConfig
from stepflow.store.etcd.store import EtcdStore

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ROUNDS = 7
TXNS = 300
"""Transactions per round."""

WRITES = 60
"""Entries per transaction, of steps that finish concurrently."""

ENTRY = b"e" * 200
CALLS = 16
"""Calls per frame."""

FRAMES = 2_000
KILLED_RUNS = 200
MOVED_BEFORE_S = 30.0


async def cursor_us(rounds: int) -> tuple[float, float]:
    """Return the microseconds of a bare transaction, and those that the fenced writer adds."""
    binary = find_etcd(CACHE)
    with tempfile.TemporaryDirectory() as folder:
        url, peer = f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}"
        etcd = await asyncio.create_subprocess_exec(
            str(binary.path), "--data-dir", folder, "--listen-client-urls", url, "--advertise-client-urls", url,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}",
            "--log-level", "error", "--snapshot-count", "5000", env={},
        )  # fmt: skip
        try:
            to = await _opened(url.removeprefix("http://"))
            bare: list[float] = []
            fenced: list[float] = []
            for number in range(rounds + 1):  # one warm-up round
                bare.append(await _txns_us(to, f"bare-{number}", fenced=False))
                fenced.append(await _txns_us(to, f"fenced-{number}", fenced=True))
            await to.close()
        finally:
            etcd.terminate()
            await etcd.wait()
    differences = [with_it - without for with_it, without in zip(fenced[1:], bare[1:], strict=True)]
    return statistics.median(bare[1:]), statistics.median(differences)


async def _opened(endpoint: str) -> EtcdStore:
    async with asyncio.timeout(20):
        while True:
            try:
                return await EtcdStore.open(EtcdConfig.parse(endpoint, prefix="bench/"))
            except Exception:  # etcd is starting
                await asyncio.sleep(0.1)


async def _txns_us(to: EtcdStore, name: str, *, fenced: bool) -> float:
    """Write `TXNS` sequential transactions. Return the microseconds per transaction."""
    session, cursor = keys.session_executor(name), keys.cursor(name)
    token = (await to.txn(Txn((), (Put(session, b"1"), Put(cursor, b"1"))))).revision
    begun_at = time.perf_counter()
    for number in range(TXNS):
        writes = [Put(keys.journal(f"{name}-{n}", 0, number), ENTRY) for n in range(WRITES)]
        if fenced:
            compares = (created_at(session, token), version_is(cursor, number + 1))
            value = f"{number + 2} 0123456789abcdef".encode()
            txn = Txn(compares, (*writes, Put(cursor, value, ignore_lease=True)), (Get(session), Get(cursor)))
        else:
            txn = Txn((), tuple(writes))
        assert (await to.txn(txn)).succeeded
    return (time.perf_counter() - begun_at) / TXNS * 1e6


def acks_of_a_step(rounds: int) -> tuple[float, float, float]:
    """Return the share of bytes added by acknowledgements, and the microseconds per step without and added by them."""
    run_id = new_run_id()
    request = host_pb2.Call(
        call_id=7, plugin="bench", component="/step", path="/bench/step", key=f"{run_id}/0/s1", attempt=1, epoch=77,
        root_run_id=run_id, run_id=run_id, flow_id="0" * 64, step_id="s1",
    )  # fmt: skip
    request.input.json = b'{"value":1}'
    result = host_pb2.CallResult(call_id=7, key=request.key, attempt=1, started_at_ms=1)
    result.result.json = b'{"value":2}'
    ack = host_pb2.Ack(key=request.key, attempt=1)

    def carry(acks: Sequence[host_pb2.Ack]) -> None:
        there = host_pb2.ExecutorFrame(calls=[request] * CALLS, acks=acks).SerializeToString()
        host_pb2.ExecutorFrame.FromString(there)
        back = host_pb2.HostFrame(results=[result] * CALLS).SerializeToString()
        host_pb2.HostFrame.FromString(back)

    without = _per_call_us(lambda: carry([]), rounds)
    with_acks = _per_call_us(lambda: carry([ack] * CALLS), rounds)
    return ack.ByteSize() / (request.ByteSize() + result.ByteSize()), without, with_acks - without


def _per_call_us(work: Callable[[], None], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        begun_at = time.perf_counter()
        for _ in range(FRAMES):
            work()
        times.append((time.perf_counter() - begun_at) / FRAMES / CALLS * 1e6)
    return statistics.median(times)


async def attach_us(runs: int) -> float:
    """Return the microseconds per run that a host takes to answer an attach of `runs` runs."""
    host = ComponentHost("host", {}, BlobStore.open("memory://"))
    frames: list[host_pb2.HostFrame] = []
    stream = host.connect(frames.append)
    run_ids = [new_run_id() for _ in range(runs)]
    for number, run_id in enumerate(run_ids):  # an unknown plugin: the host holds the failure
        call = host_pb2.Call(call_id=number + 1, plugin="none", key=f"{run_id}/0/s", attempt=1, root_run_id=run_id)
        stream.receive(host_pb2.ExecutorFrame(calls=[call]))
    question = host_pb2.ExecutorFrame()
    question.attaches.add().runs.extend(host_pb2.AttachRun(run_id=run_id, epoch=1) for run_id in run_ids)
    begun_at = time.perf_counter()
    stream.receive(host_pb2.ExecutorFrame.FromString(question.SerializeToString()))
    await asyncio.sleep(0)
    held = sum(len(attached.calls) for frame in frames for attached in frame.attached)
    elapsed = time.perf_counter() - begun_at
    assert held == runs
    await host.close()
    return elapsed / runs * 1e6


async def take_over() -> list[float]:
    """Kill one of two executors. Return the sorted take-over times of its runs, in ms."""
    async with mesh(executors=2) as (dev, client):
        run_ids = await submit(client, await store(client, nap()), 2 * KILLED_RUNS)
        victim = next(service for service in dev.services if service.name == "executor-1")
        owners = await asyncio.gather(*(owner(client, run_id) for run_id in run_ids))
        owned = [run_id for run_id, name in zip(run_ids, owners, strict=True) if name == victim.name]
        killed_at_ms = time.time() * 1000
        os.kill(victim.pid, signal.SIGKILL)
        async with asyncio.timeout(MOVED_BEFORE_S):
            while [executor.runs for executor in (await client.cluster()).executors] != [len(run_ids)]:  # noqa: ASYNC110  # the API has no event for it
                await asyncio.sleep(0.05)
            # Read the journals after the take-over: a watcher per run would compete with the new owner for the CPU.
            return sorted([await moved_after_ms(client, run_id, victim.name, killed_at_ms) for run_id in owned])


def main() -> None:
    """Print the figures, and the machine they were measured on."""
    rounds = 1 if "--quick" in sys.argv[1:] else ROUNDS
    os.environ["PYTHONPATH"] = str(HERE.parent)
    binary = find_etcd(Path(CACHE))
    os.environ["ETCD_BIN"] = str(binary.path)
    load = os.getloadavg()[0]
    print(f"Python {platform.python_version()}, etcd {binary.version}, {os.cpu_count()} cores, load {load:.1f}\n")
    bare_us, more_us = uvloop.run(cursor_us(rounds))
    print(f"  cursor:  {bare_us:,.0f} us for {WRITES} entries, {more_us:+,.0f} us fenced", end="")
    print(f": {more_us / WRITES:+.2f} us a step", flush=True)
    share, frames_us, acks_us = acks_of_a_step(rounds)
    print(
        f"  acks:    {share:.0%} more bytes, {acks_us:+.2f} us a step on top of {frames_us:.2f} us for call and result"
    )
    print(f"  attach:  {uvloop.run(attach_us(KILLED_RUNS)):.1f} us a run, once at a take-over", flush=True)
    moved = uvloop.run(take_over())
    p99 = moved[int(0.99 * (len(moved) - 1))]
    per_s = len(moved) / max((moved[-1] - moved[0]) / 1000, 0.001)
    print(f"  take-over of {len(moved)} runs after SIGKILL: first {moved[0]:.0f} ms, ", end="")
    print(f"p50 {statistics.median(moved):.0f} ms, p99 {p99:.0f} ms; {per_s:,.0f} runs moved per second")
    assert p99 < 1_000, "99 % of the runs must have a new owner within a second"


if __name__ == "__main__":
    main()
