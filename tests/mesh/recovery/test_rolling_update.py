"""A rolling update under load: processes of the last landed version and of the present tree side by side over one etcd.

The old code comes from git. Every check holds three things against each other: the results of the runs, their
journals, and the ledger of the component servers.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from support import wait_for_value
from support.load import KINDS, Asked, chain
from support.mesh import Processes, ledger_config, ledger_of, processes
from support.old_code import old_checkout
from support.scene import WAIT_S, adoptions_of, run, scene

from stepflow.store import keys

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from support.etcd import EtcdServer
    from support.mesh import Service
    from support.scene import Scene

PAUSE_S = 0.15
"""Between two runs of the steady load."""

CALL_MS = 100

OLD_LIBRARY = """
import asyncio, json, sys
from stepflow import Client

async def main():
    async with Client(sys.argv[1]) as client:
        run_id = await client.submit(json.loads(sys.argv[2]), {"value": 5, "ms": 1}, run_id=sys.argv[3])
        events = [event.kind async for event in client.watch(run_id)]
        run = await client.wait(run_id)
        (item,) = [item async for item in client.items(run_id)]
        steps = [step.step_id async for step in client.steps(run_id)]
        print(json.dumps({"status": run.status, "result": item.result, "steps": steps, "last": events[-1]}))

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def old_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a checkout of the old code."""
    return old_checkout(tmp_path_factory.mktemp("old"))


@pytest.fixture
def mesh(etcd: EtcdServer, tmp_path: Path) -> Iterator[Processes]:
    with processes(etcd, tmp_path, f"{uuid4().hex[:12]}/") as mesh:
        yield mesh


@asynccontextmanager
async def steady_load(on: Scene) -> AsyncIterator[None]:
    """Submit one run after the other until the block ends."""

    over = asyncio.Event()

    async def submit() -> None:
        while not over.is_set():
            await on.load(1, ms=CALL_MS)
            await asyncio.sleep(PAUSE_S)

    task = asyncio.create_task(submit())
    try:
        yield
    finally:
        over.set()  # a cancelled submission might begin a run that nobody knows of
        await task


async def ready(*waiting: Service) -> None:
    for service in waiting:
        await asyncio.to_thread(service.wait_ready, WAIT_S)


async def drives_runs(on: Scene, executor: Service) -> None:
    await wait_for_value(lambda: on.owned_by(executor), "it drives runs", timeout_s=WAIT_S)


async def retire(service: Service) -> None:
    assert await asyncio.to_thread(service.end) == 0, service.log[-2000:]


async def old_program(tree: Path, *args: str) -> str:
    """Run Python with the code of the old tree and return what it prints."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", *args),
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


async def use_old_clients(on: Scene, tree: Path, server: str) -> None:
    """Submit, follow and list runs with the command line and the library of the old tree."""
    kind = chain()
    flow = on.mesh.folder / "chain.json"
    flow.write_text(json.dumps(kind.flow), encoding="utf-8")
    cli, library = Asked.new(kind, 4), Asked.new(kind, 5)
    command = ("-m", "stepflow.cli")
    given = ("--input-json", '{"value": 4, "ms": 1}', "--run-id", cli.run_id, "--server", server)
    printed, told = await asyncio.gather(
        old_program(tree, *command, "submit", "--flow", str(flow), *given),
        old_program(tree, "-c", OLD_LIBRARY, server, json.dumps(kind.flow), library.run_id),
    )
    on.asked += [cli, library]
    assert json.loads(printed) == {"outcome": "success", "result": kind.expect(4)}
    steps = [step["id"] for step in kind.flow["steps"]]
    assert json.loads(told) == {
        "status": "completed",
        "result": kind.expect(5),
        "steps": steps,
        "last": "run_ended",
    }
    listed = await old_program(tree, *command, "runs", "list", "--json", "--limit", "10000", "--server", server)
    assert {cli.run_id, library.run_id} <= {each["run_id"] for each in json.loads(listed)["runs"]}


def test_an_update_from_the_last_version_one_process_at_a_time_loses_and_repeats_nothing(
    mesh: Processes, old_tree: Path, tmp_path: Path
) -> None:
    new_config = ledger_config(tmp_path)
    old_config = ledger_config(tmp_path, tree=old_tree, file_name="old-config.yml")  # its server has the old SDK

    def old(module: str, *args: str) -> Service:
        return mesh.start(module, *args, tree=old_tree, wait=False)

    def new(module: str, *args: str) -> Service:
        return mesh.start(module, *args, wait=False)

    control = old("control_plane")
    host, executor = old("component_host", "--config", str(old_config)), old("executor")
    for service in (control, host, executor):
        service.wait_ready()
    next_control = new("control_plane")
    next_control.wait_ready()

    async def scenario() -> None:
        async with scene(mesh, control, next_control) as on:
            async with steady_load(on):
                # 1. Executors: an update that is taken back, then one that stays.
                tried = new("executor")
                await ready(tried)
                await on.executions(40)
                await drives_runs(on, tried)
                await retire(tried)
                next_executor = new("executor")
                await ready(next_executor)
                await on.executions(80)
                await retire(executor)
                assert await on.store.get(keys.session_executor(executor.id)) is None, "no lease is waited for"

                # 2. Control planes: the old one led until now. Clients have not been updated yet.
                # 3. Hosts: a new one with the server of the old SDK, and one with that of the new.
                mixed = new("component_host", "--config", str(old_config))
                next_host = new("component_host", "--config", str(new_config))
                await asyncio.gather(
                    use_old_clients(on, old_tree, next_control.address), retire(control), ready(mixed, next_host)
                )
                await retire(host)
                await on.executions(len(ledger_of(tmp_path).begun) + 40)

            # 4. Only new processes are left.
            await use_old_clients(on, old_tree, next_control.address)
            journals = await on.verify()
            assert {asked.kind.name for asked in on.asked} == {kind.name for kind in KINDS}
            executed = Counter(key for key, _ in ledger_of(tmp_path).begun if not key.endswith("/flaky"))
            assert set(executed.values()) == {1}, "whatever began gave the result that counts"
            owners = await on.owners(journals)
            assert {executor.id, tried.id, next_executor.id} <= owners
            moved = [handed_over for journal in journals for handed_over in adoptions_of(journal)[1:]]
            assert moved, "runs were under way"
            assert all(moved), "and each of them was handed over"

    run(scenario())
