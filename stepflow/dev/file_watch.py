"""Waits for changes of the files of plugins and of the configuration. The library `watchfiles` tells when to look.

Notices that come together are one change: an editor's many writes, a checkout of a branch. Where the system has no
notices (a network disk), or none any more, the files are looked at every `POLL_S`.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

from stepflow.dev.file_states import FileStates, look_at_files
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable
    from pathlib import Path

    from stepflow.dev.sources import PluginSources

QUIET_MS = 100
"""A change is over after so long without a notice."""

DEBOUNCE_MS = 1_600
"""Notices are gathered for at most so long."""

POLL_S = 1.0
"""Longest time between two looks at the files: a change before the system begins to notice is seen by the next one."""

log = get_logger(__name__)


class FileWatch:
    """The files, as last looked at."""

    def __init__(self, sources: Iterable[PluginSources], single_files: Iterable[Path]) -> None:
        """Look at the files once. Blocks."""
        self._sources = list(sources)
        self._single_files = list(single_files)
        self._seen = self._look()

    @property
    def complete(self) -> bool:
        """False if there are more files than are watched."""
        return self._seen.complete

    async def next_change(self) -> set[Path]:
        """Return the files of the next change; one since the last call counts."""
        changed = await self._changed()
        while not changed:
            async with aclosing(_notices(self._seen.folders)) as notices:
                folders = self._seen.folders
                async for _ in notices:
                    changed = await self._changed()
                    if changed or self._seen.folders != folders:
                        break
        return changed

    def watch(self, sources: Iterable[PluginSources]) -> None:
        """Watch other files from now on; the present state of those that are new is no change. Blocks."""
        self._sources = list(sources)
        now = self._look()
        files = {path: self._seen.files.get(path, signature) for path, signature in now.files.items()}
        self._seen = FileStates(files, now.folders, now.complete)

    async def _changed(self) -> set[Path]:
        now = await asyncio.to_thread(self._look)
        changed, self._seen = now.changed_since(self._seen), now
        return changed

    def _look(self) -> FileStates:
        return look_at_files(self._sources, self._single_files)


async def _notices(folders: Iterable[Path]) -> AsyncGenerator[None]:
    """Yield when files in these folders may have changed, at least every `POLL_S`."""
    from watchfiles import awatch

    notices = awatch(
        *folders,
        watch_filter=None,
        recursive=False,
        step=QUIET_MS,
        debounce=DEBOUNCE_MS,
        rust_timeout=int(POLL_S * 1000),
        yield_on_timeout=True,
        ignore_permission_denied=True,
    )
    try:
        async with aclosing(notices):
            async for _ in notices:
                yield
    except OSError as error:  # no more watches in the system, or a folder that has just gone
        log.info("no notices of changed files; looking at them instead", error=str(error))
        await asyncio.sleep(POLL_S)
        yield


__all__ = ["FileWatch"]
