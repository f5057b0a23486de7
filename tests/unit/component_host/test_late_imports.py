"""Large libraries are imported by one thread at a time: concurrent imports of different submodules may fail."""

from __future__ import annotations

import asyncio
import importlib
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
from support import ROOT

from component_host.late_imports import import_in_thread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path
    from types import ModuleType

SOURCES = {
    "crossed/__init__.py": "import time; time.sleep(0.3); import crossed.inner.part",
    "crossed/inner/__init__.py": "import crossed",
    "crossed/inner/part.py": "",
}
"""The sleep lets a second thread begin with `crossed.inner.part`, which then waits for `crossed`."""

ENTRIES = ("crossed", "crossed.inner.part")


@pytest.fixture
def crossed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install a package that one thread can import from either end, and two threads cannot import from both."""
    for name, source in SOURCES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("crossed", "crossed.inner", "crossed.inner.part"):
        sys.modules.pop(name, None)


def import_both(
    run: Callable[[Callable[[str], ModuleType], str], Awaitable[ModuleType]],
) -> list[ModuleType | BaseException]:
    async def main() -> list[ModuleType | BaseException]:
        return await asyncio.gather(*(run(importlib.import_module, name) for name in ENTRIES), return_exceptions=True)

    return asyncio.run(main())


@pytest.mark.usefixtures("crossed")
def test_two_threads_import_a_package_from_both_ends() -> None:
    assert [getattr(found, "__name__", found) for found in import_both(import_in_thread)] == list(ENTRIES)


@pytest.mark.usefixtures("crossed")
def test_without_the_lock_one_of_them_fails() -> None:
    """Otherwise the test above would prove nothing."""
    assert any(isinstance(found, BaseException) for found in import_both(asyncio.to_thread))


def test_imports_run_off_the_loop_and_pass_on_what_they_return_and_raise() -> None:
    def load(answer: int, *, fails: bool) -> tuple[int, bool]:
        if fails:
            raise ImportError("no such library")
        return answer, threading.current_thread() is threading.main_thread()

    async def main() -> None:
        with pytest.raises(ImportError, match="no such library"):
            await import_in_thread(load, 1, fails=True)
        assert await import_in_thread(load, 2, fails=False) == (2, False)  # a failure leaves the lock free

    asyncio.run(main())


TOGETHER = """
import asyncio, sys
from component_host.late_imports import import_in_thread
from component_host.mcp_bridge.supervisor import import_sdk
from component_host.builtin.openai import _open_client

async def main():
    assert not {"mcp", "mcp_types", "httpx"} & sys.modules.keys(), "imported at the start"
    await asyncio.gather(
        import_in_thread(import_sdk, over_http=False),
        import_in_thread(import_sdk, over_http=True),
        import_in_thread(_open_client, 1.0, None),
    )

asyncio.run(main())
"""


def test_the_libraries_of_all_plugins_are_imported_at_once() -> None:
    done = subprocess.run(
        [sys.executable, "-c", TOGETHER], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
