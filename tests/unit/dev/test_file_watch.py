"""Waiting for changes of files, with the system's own notices."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from stepflow.dev import file_watch
from stepflow.dev.file_watch import FileWatch
from stepflow.dev.sources import PluginSources

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

WAIT_S = 20.0


@pytest.fixture(autouse=True)
def no_polling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test that depends on the notices fail without them."""
    monkeypatch.setattr(file_watch, "POLL_S", 10 * WAIT_S)


def watch_of(folder: Path) -> FileWatch:
    (folder / "a.py").write_text("")
    return FileWatch([PluginSources(frozenset({folder / "a.py"}), {folder: frozenset({".py"})})], [folder / "c.yml"])


async def change(watch: FileWatch) -> set[str]:
    async with asyncio.timeout(WAIT_S):
        return {path.name for path in await watch.next_change()}


async def change_by(watch: FileWatch, *paths: Path) -> set[str]:
    """Write files until a change is noticed: the system notices nothing before the watch has begun."""
    waiting = asyncio.create_task(change(watch))
    number = 0
    while not waiting.done():
        number += 1
        for path in paths:
            path.write_text(f"x = {number}")
        await asyncio.wait([waiting], timeout=0.3)
    return waiting.result()


def test_changes_are_noticed_also_in_folders_made_later(tmp_path: Path) -> None:
    async def main() -> None:
        watch = watch_of(tmp_path)
        assert await change_by(watch, tmp_path / "notes.txt", tmp_path / "c.yml") == {"c.yml"}
        (tmp_path / "deep").mkdir()
        assert await change_by(watch, tmp_path / "deep" / "b.py") == {"b.py"}

    asyncio.run(main())


def test_a_change_between_two_waits_is_not_lost(tmp_path: Path) -> None:
    async def main() -> None:
        watch = watch_of(tmp_path)
        (tmp_path / "a.py").write_text("x = 1")
        assert await change(watch) == {"a.py"}

    asyncio.run(main())


def test_files_that_are_watched_anew_are_no_change_and_a_change_of_others_is_kept(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "b.py").write_text("")

    async def main() -> None:
        watch = watch_of(tmp_path)
        (tmp_path / "a.py").write_text("x = 1")
        watch.watch([PluginSources(frozenset({tmp_path / "a.py", other / "b.py"}))])
        assert await change(watch) == {"a.py"}

    asyncio.run(main())


def test_without_notices_the_files_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import watchfiles

    looks = 0

    async def refused(*_: object, **__: object) -> AsyncGenerator[None]:
        nonlocal looks
        looks += 1
        if looks == 2:
            (tmp_path / "a.py").write_text("x = 1")
        raise OSError("OS file watch limit reached")
        yield

    monkeypatch.setattr(watchfiles, "awatch", refused)
    monkeypatch.setattr(file_watch, "POLL_S", 0.01)

    async def main() -> None:
        assert await change(watch_of(tmp_path)) == {"a.py"}

    asyncio.run(main())
