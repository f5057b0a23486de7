"""Files that appear whole: what is replaced, what is kept, and what is written in place."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from stepflow.whole_file import whole_file


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(path: Path, content: bytes = b"new") -> None:
    with whole_file(path) as file:
        file.write(content)


def test_nothing_is_at_the_path_until_the_end_of_the_block(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with whole_file(path) as file:
        file.write(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, SystemExit])
def test_after_an_error_the_former_content_is_there_and_no_draft(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"former")

    def fail() -> None:
        with whole_file(path) as file:
            file.write(b"new")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_bytes() == b"former"
    assert names(tmp_path) == ["file"]


def test_a_new_file_has_the_mode_of_the_process_and_a_replaced_one_keeps_its_own(tmp_path: Path) -> None:
    former = os.umask(0o027)
    try:
        write(tmp_path / "new")
        (tmp_path / "old").touch()
        (tmp_path / "old").chmod(0o604)
        write(tmp_path / "old")
    finally:
        os.umask(former)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("new", "old")]
    assert modes == [0o640, 0o604]


def test_a_link_stays_a_link_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"former")
    (tmp_path / "link").symlink_to("target")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"


def test_both_names_of_a_file_with_two_show_the_new_content(tmp_path: Path) -> None:
    (tmp_path / "first").write_bytes(b"former")
    (tmp_path / "second").hardlink_to(tmp_path / "first")
    write(tmp_path / "first")
    assert (tmp_path / "second").read_bytes() == b"new"


def test_a_pipe_and_a_device_are_written_in_place(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write(pipe)
    reader.join(10)
    assert read == [b"new"]
    assert pipe.is_fifo()

    write(Path(os.devnull))
    assert names(tmp_path) == ["pipe"]


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "missing" / "file"):
        pass
