"""Stores that earlier versions have written: the present one reads them alike, and continues what they hold.

What is expected was printed by the commands of the version that wrote the store (`tests/data/stores/`).
"""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from support.etcd import running_etcd
from support.mesh import processes
from support.old_stores import VERSIONS, Place, dump_of, load_etcd
from support.truth import Journal, read_journal

from control_plane.archive.reader import Archive
from control_plane.archive.run_store import RunStore
from control_plane.control_plane import ControlPlane
from stepflow.cli.__main__ import main
from stepflow.client import Client
from stepflow.embedded.runs_folder import LocalRuns
from stepflow.store import keys, put, range_all
from stepflow.store.blobs import BlobStore
from stepflow.store.etcd.config import DEFAULT_PREFIX
from stepflow.store.sqlite.store import SqliteStore

if TYPE_CHECKING:
    from pathlib import Path

    from stepflow.store import Store

pytestmark = pytest.mark.parametrize("version", VERSIONS)


def shown(capsys: pytest.CaptureFixture[str], *args: str) -> Any:
    """Run a command that reads in this process and return what it prints."""
    code = main([*args, "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return json.loads(captured.out)


def as_known_then(found: Any, expected: Any) -> Any:
    """Leave out what a later version has added to its answers: members, and more exact statuses.

    A run that nobody drives is `queued`, and a step that the end of its run cut off `cancelled`: both were `running`.
    """
    if found == "queued" and expected == "running":
        return expected
    if isinstance(found, dict) and (found.get("status"), expected.get("status")) == ("cancelled", "running"):
        return expected
    if isinstance(found, dict) and isinstance(expected, dict):
        return {name: as_known_then(found[name], expected[name]) for name in expected if name in found}
    if isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        return [as_known_then(*pair) for pair in zip(found, expected, strict=True)]
    return found


async def journals_in(store: Store, blobs: BlobStore, place: Place) -> dict[str, Journal]:
    runs = RunStore(store, Archive(store, blobs))
    return {run_id: await read_journal(runs, blobs, run_id) for run_id in place.titles().values()}


def journals_of(place: Place) -> dict[str, Journal]:
    """Return the journals of a folder, which has a store for each run."""
    local = LocalRuns(place.folder / ".stepflow")

    async def read(run_id: str) -> Journal:
        store = await local.read(run_id)
        try:
            return await read_journal(store, local.blobs(), run_id)
        finally:
            await store.close()

    async def read_all() -> dict[str, Journal]:
        return {run_id: await read(run_id) for run_id in place.titles().values()}

    return asyncio.run(read_all())


def assert_continued(place: Place, before: dict[str, Journal], after: dict[str, Journal]) -> None:
    """What was journaled has not run again; what was not has run once."""
    old = {key for journal in before.values() for key in journal.completed}
    new = {key for journal in after.values() for key, outcome in journal.completed.items() if outcome.host} - old
    assert old.isdisjoint(place.new_executions)
    assert sorted(place.new_executions) == sorted(new)
    for run_id, journal in before.items():
        assert journal.completed.items() <= after[run_id].completed.items()


def test_a_folder_of_an_earlier_version_is_listed_shown_and_its_interrupted_runs_end_alike(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Place.unpack(version, "embedded", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STEPFLOW_SERVER", raising=False)
    assert as_known_then(shown(capsys, "runs", "list"), place.golden["list"]) == place.golden["list"]
    for run_id, expected in place.golden["runs"].items():
        found = shown(capsys, "runs", "get", run_id, "--steps")
        assert found["steps"]
        assert as_known_then(found, expected) == expected

    before = journals_of(place)
    ends = place.golden["ends"]
    with ThreadPoolExecutor(3) as threads:
        resumed = threads.map(lambda run_id: place.cli("resume", run_id, "--config", str(place.config)), ends)
    for done, expected in zip(resumed, ends.values(), strict=True):
        assert done.returncode == 0, done.stderr
        assert [json.loads(line) for line in done.stdout.splitlines()] == expected
    assert_continued(place, before, journals_of(place))


FOR_EVER = ("--keep-journals", "1e7", "--keep-runs", "1e7", "--keep-blobs", "1e10")
"""The runs of a dump ended long ago, and its blobs have no dates."""

END_TIMEOUT_S = 60.0


def test_the_keys_of_an_earlier_mesh_are_read_alike_and_its_live_runs_end_alike(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Place.unpack(version, "mesh", tmp_path)
    golden, names = place.golden, place.titles()
    blobs = str(tmp_path / ".stepflow" / "dev" / "blobs")
    with (
        running_etcd(tmp_path / "etcd", "--unsafe-no-fsync") as etcd,
        processes(etcd, tmp_path, DEFAULT_PREFIX) as mesh,
    ):
        load_etcd(etcd, dump_of(version))
        control = mesh.control_plane("--blobs", blobs, *FOR_EVER)
        monkeypatch.setenv("STEPFLOW_SERVER", control.address)

        # 1. Before anything continues, the store says what it said.
        assert as_known_then(shown(capsys, "runs", "list"), golden["list"]) == golden["list"]
        assert shown(capsys, "flows", "list") == golden["flows"]
        for run_id, expected in golden["runs"].items():
            assert as_known_then(shown(capsys, "runs", "get", run_id, "--steps"), expected) == expected
        for run_id, expected in golden["events"].items():
            main(["runs", "watch", run_id, "--json"])
            events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
            assert as_known_then(events, expected) == expected

        async def continued() -> None:
            async with mesh.store() as store, Client(control.address) as client:
                before = await journals_in(store, BlobStore.open(blobs), place)
                assert len(before) == len(golden["runs"])

                # 2. Its live runs are taken over.
                await asyncio.to_thread(mesh.host, place.config, "--blobs", blobs, env=place.environ)
                await asyncio.to_thread(mesh.executor, "--blobs", blobs)
                await client.signal(names["live while it waits"], "go", "late")
                for run_id in golden["ends"]:
                    assert (await client.wait(run_id, timeout_s=END_TIMEOUT_S)).ended

                # 3. Nothing that was journaled has run again.
                assert_continued(place, before, await journals_in(store, BlobStore.open(blobs), place))

        asyncio.run(continued())
        for run_id, expected in golden["ends"].items():
            found = shown(capsys, "runs", "get", run_id)
            assert {"status": found["status"], "items": found["items"]} == expected


def test_the_ended_runs_of_an_earlier_mesh_are_packed_and_read_alike(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Place.unpack(version, "mesh", tmp_path)
    blobs = str(tmp_path / ".stepflow" / "dev" / "blobs")
    with (
        running_etcd(tmp_path / "etcd", "--unsafe-no-fsync") as etcd,
        processes(etcd, tmp_path, DEFAULT_PREFIX) as mesh,
    ):
        load_etcd(etcd, dump_of(version))
        control = mesh.control_plane("--blobs", blobs, *FOR_EVER, "--linger", "0", "--formats-grace", "0")
        monkeypatch.setenv("STEPFLOW_SERVER", control.address)

        async def packed() -> None:
            async with mesh.store() as store:
                while [item.key async for item in range_all(store, keys.RESULTS)]:  # noqa: ASYNC110  # bounded below
                    await asyncio.sleep(0.05)

        asyncio.run(asyncio.wait_for(packed(), END_TIMEOUT_S))
        assert as_known_then(shown(capsys, "runs", "list"), place.golden["list"]) == place.golden["list"]
        for run_id, expected in place.golden["runs"].items():
            assert as_known_then(shown(capsys, "runs", "get", run_id, "--steps"), expected) == expected
        for run_id, expected in place.golden["events"].items():
            main(["runs", "watch", run_id, "--json"])
            events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
            assert as_known_then(events, expected) == expected


def test_the_keys_of_an_earlier_mesh_can_be_read_from_another_kind_of_store(version: str, tmp_path: Path) -> None:
    place = Place.unpack(version, "mesh", tmp_path)
    blobs = BlobStore.open(tmp_path / ".stepflow" / "dev" / "blobs")

    async def read() -> None:
        store = await SqliteStore.open(":memory:")
        try:
            for item in dump_of(version)["keys"]:
                if not item["lease"]:
                    await put(store, item["key"].removeprefix(DEFAULT_PREFIX), item["value"])
            control = ControlPlane(store, blobs)
            for run_id, expected in place.golden["runs"].items():
                run = await control.get_run(run_id)
                assert (run.status, run.items_completed, run.items_failed) == (
                    expected["status"].replace("queued", "running"),  # the API tells them apart
                    expected["items_completed"],
                    expected["items_failed"],
                )
                assert len(await control.steps(run_id, with_results=True)) == len(expected["steps"])
            assert len(await journals_in(store, blobs, place)) == len(place.golden["runs"])
        finally:
            await store.close()

    asyncio.run(read())
