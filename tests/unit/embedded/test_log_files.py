"""The file of the log lines of a run: bounded, readable while it is written, and gone with its run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

from component_host.logged_lines import LineOrigin, LoggedLines
from stepflow.embedded.log_files import LOG_FILE_BYTES_MAX, RunLogFile, StoredLogReader, older_file
from stepflow.embedded.run_files import RunFiles
from stepflow.log_lines import LogLine

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

RUN = "01890a5d-ac96-774b-bcce-b302099a8057"


def logged(*texts: str, dropped: int = 0) -> LoggedLines:
    origin = LineOrigin("p", RUN, RUN, 3, "ask", 0, "/p/ask", 0, 2)
    return LoggedLines(origin, tuple(LogLine(1, "info", text) for text in texts), dropped)


def texts(reader: StoredLogReader) -> list[str]:
    return [line.text for line in reader.new_lines()]


def test_lines_come_back_with_their_step(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "run.jsonl"
    file = RunLogFile(path)
    file.write(logged("one", "two", dropped=5))
    file.close()

    first, second = StoredLogReader(path).new_lines()
    assert (first.text, first.level, first.run_id, first.item, first.step_id, first.attempt) == (
        "one",
        "info",
        RUN,
        3,
        "ask",
        2,
    )
    assert (first.dropped, second.dropped) == (5, 0)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_no_file_appears_without_a_line(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "run.jsonl"
    RunLogFile(path).close()
    assert not path.parent.exists()
    assert texts(StoredLogReader(path)) == []


def test_a_reader_follows_the_file_over_its_replacement(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    file, reader = RunLogFile(path), StoredLogReader(path)
    written: list[str] = []
    read: list[str] = []
    big = "x" * 100_000
    for number in range(LOG_FILE_BYTES_MAX // 100_000 * 3):
        file.write(logged(f"{number} {big}"))
        written.append(f"{number} {big}")
        if number % 5 == 0:
            read += texts(reader)
    read += texts(reader)
    file.close()
    assert read == written

    kept = path.stat().st_size + older_file(path).stat().st_size
    assert LOG_FILE_BYTES_MAX // 2 < kept <= LOG_FILE_BYTES_MAX + 300_000
    again = texts(StoredLogReader(path))
    assert again == written[-len(again) :]


def test_a_continued_run_appends_to_its_log(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    for text in ("before", "after"):
        file = RunLogFile(path)
        file.write(logged(text))
        file.close()
    assert texts(StoredLogReader(path)) == ["before", "after"]


def test_damaged_and_unfinished_lines_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    file = RunLogFile(path)
    file.write(logged("good"))
    with path.open("ab") as raw:
        raw.write(b'\xff\n{"at_ms": "no number"}\nnull\n')
    file.write(logged("better"))
    file.close()
    with path.open("ab") as raw:
        raw.write(b'{"at_ms": 1, "te')
    reader = StoredLogReader(path)
    assert texts(reader) == ["good", "better"]
    with path.open("ab") as raw:
        raw.write(b'xt": "whole now"}\n')
    assert texts(reader) == ["whole now"]


def test_a_log_that_cannot_be_written_loses_lines_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    log = SimpleNamespace(warning=lambda text, **_: warnings.append(text))
    monkeypatch.setattr("stepflow.embedded.log_files.log", log)
    (tmp_path / "logs").write_text("in the way")
    file = RunLogFile(tmp_path / "logs" / "run.jsonl")
    file.write(logged("one"))
    file.write(logged("two"))
    file.close()
    assert warnings == ["the log of the components cannot be written"]


def test_the_log_goes_with_the_files_of_its_run(tmp_path: Path) -> None:
    files = RunFiles(tmp_path)
    log = files.component_log(RUN)
    log.parent.mkdir()
    log.write_text("")
    older_file(log).write_text("")
    assert files.files(RUN)[-1].name.endswith(".lock")
    files.unlink(RUN)
    assert list(log.parent.iterdir()) == []
