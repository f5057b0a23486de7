"""The folder of `stepflow dev`: logs of earlier starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepflow.dev.folder import LOG_BYTES_MAX, LOGS_KEPT, DevFolder

if TYPE_CHECKING:
    from pathlib import Path


def test_logs_of_earlier_starts_are_kept_and_the_oldest_go(tmp_path: Path) -> None:
    folder = DevFolder(tmp_path)
    for start in range(LOGS_KEPT + 3):
        folder.make_subfolders()
        folder.log("host-1").write_text(f"start {start}\n")

    newest = LOGS_KEPT + 2
    assert folder.log("host-1").read_text() == f"start {newest}\n"
    earlier = [(tmp_path / "logs" / f"host-1.log.{age}").read_text() for age in range(1, LOGS_KEPT + 1)]
    assert earlier == [f"start {newest - age}\n" for age in range(1, LOGS_KEPT + 1)]
    assert len(list((tmp_path / "logs").iterdir())) == LOGS_KEPT + 1


def test_of_a_long_log_the_end_is_kept(tmp_path: Path) -> None:
    folder = DevFolder(tmp_path)
    folder.make_subfolders()
    line = b"x" * 999 + b"\n"
    folder.log("etcd").write_bytes(line * (LOG_BYTES_MAX // 1000 + 500) + b"the end\n")
    folder.make_subfolders()
    kept = (tmp_path / "logs" / "etcd.log.1").read_bytes()
    assert len(kept) <= LOG_BYTES_MAX
    assert kept.startswith(line)
    assert kept.endswith(b"the end\n")
