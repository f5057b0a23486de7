"""The tutorial, from an empty folder: write each file on the page, and run each command.

One shell runs all commands, as a reader's terminal does. Ids, times and column widths are normalised.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from itertools import count, groupby
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from support import ROOT, free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = ROOT / "docs" / "tutorial" / "index.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FILE = re.compile(r"# ([\w.-]+\.(?:py|ya?ml))\n")
"""The first line of a block that is a file."""

FAKE_LLM_PORT = "8081"
"""The port on the page; the test takes a free one."""

COMMAND_TIMEOUT_S = 60.0

RUN_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")
VOLATILE = (
    (re.compile(r"\d\d:\d\d:\d\d"), "CLOCK"),
    (re.compile(r"\d+(?:\.\d+)? (?:ms|s)\b"), "TIME"),
    (re.compile(r"(?<= )/\S*/(?=[\w.-]+$)", re.MULTILINE), "FOLDER/"),
    (re.compile(r"(?<=\S) +"), " "),
)
NOISE = re.compile(r"starting .* …|started after |.*\bKilled\b|\[\d\]")
"""Lines that depend on the machine's speed, or that the shell itself writes."""

CONCURRENT = re.compile(r"  done|done +summaries\[|asked:")
"""Lines of work that runs concurrently: neighbours may come in any order."""

READS_ONLY = ("cat ", "stepflow runs list", "stepflow runs show")
"""Commands that a reader repeats until the run has come so far."""


class Command(NamedTuple):
    line: str
    output: str


def blocks(page: str) -> Iterator[tuple[str, str]]:
    for found in BLOCK.finditer(page):
        yield found[1], found[2]


def commands(block: str) -> list[Command]:
    parts = [part.partition("\n") for part in re.split(r"^\$ ", block, flags=re.MULTILINE) if part]
    return [Command(line, output) for line, _, output in parts]


def normalised(output: str) -> list[str]:
    for pattern, replacement in VOLATILE:
        output = pattern.sub(replacement, output)

    lines = [line.rstrip() for line in output.splitlines() if line.strip() and not NOISE.match(line)]
    groups = groupby(lines, lambda line: CONCURRENT.match(line) is not None)
    return [line for concurrent, group in groups for line in (sorted(group) if concurrent else group)]


class Shell:
    """A shell that stays, so that `$!` and background jobs work as in a terminal."""

    def __init__(self, folder: Path) -> None:
        scripts = Path(sys.executable).parent
        environ = {name: value for name, value in os.environ.items() if not name.startswith("LLM_")}
        self.folder = folder
        self._numbers = count(1)
        self._process = subprocess.Popen(
            ["/bin/bash", "--noprofile", "--norc"],
            cwd=folder,
            # Without LLM_URL, as for a reader who takes the fake model.
            env={**environ, "PATH": f"{scripts}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, line: str) -> str:
        """Run one command line and return what it wrote to stdout and stderr."""
        assert self._process.stdin is not None
        number = next(self._numbers)
        output, done = (self.folder.parent / f"{kind}-{number}" for kind in ("output", "done"))

        # Braces, not a subshell: background jobs belong to this shell.
        self._process.stdin.write(f"{{ {line}\n}} > {output} 2>&1\ntouch {done}\n")
        self._process.stdin.flush()
        wait_until(done.exists, f"`{line}` ends", COMMAND_TIMEOUT_S)
        return output.read_text("utf-8")

    def close(self) -> None:
        """Kill the shell and everything it started."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()


class Reader:
    """Follows the page: types each command, with the id of their own run in place of the one on the page."""

    def __init__(self, shell: Shell, id_on_page: str) -> None:
        self._shell = shell
        self._id_on_page = id_on_page
        self._id = id_on_page

    def type(self, command: Command) -> None:
        """Run a command; raise AssertionError unless it shows what the page shows."""
        expected = normalised(command.output)
        if command.line.startswith(READS_ONLY):
            # The run continues in the background: repeat until it has come this far.
            deadline = time.monotonic() + COMMAND_TIMEOUT_S
            while (shown := self._shown(command.line)) != expected and time.monotonic() < deadline:
                continue
        else:
            shown = self._shown(command.line)
        assert shown == expected, command.line

    def _shown(self, line: str) -> list[str]:
        output = self._shell.run(line.replace(self._id_on_page, self._id))
        if found := RUN_ID.search(output):
            self._id = found[0]
        return normalised(output.replace(self._id, self._id_on_page))


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    folder = tmp_path / "digest"
    folder.mkdir()
    shell = Shell(folder)
    yield shell
    shell.close()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_every_file_and_command_of_the_tutorial_does_what_the_page_shows(shell: Shell) -> None:
    port = free_port()
    page = PAGE.read_text("utf-8").replace(FAKE_LLM_PORT, str(port))
    reader = Reader(shell, RUN_ID.findall(page)[0])
    written, typed = [], []

    for language, text in blocks(page):
        if file := FILE.match(text):
            (shell.folder / file[1]).write_text(text, "utf-8")
            written.append(file[1])
        elif language == "console":
            for command in commands(text):
                reader.type(command)
                typed.append(command.line)
                if command.line.startswith("python fake_llm.py"):
                    wait_until(lambda: listens(port), "the fake model listens", COMMAND_TIMEOUT_S)

    assert len(written) == 6, "a file block begins with a comment that names the file"
    assert "kill -9 $!" in typed
    assert "stepflow resume" in typed


def test_what_is_typed_and_what_is_shown_are_told_apart() -> None:
    assert commands("$ one\n$ two\na\nb\n") == [Command("one", ""), Command("two", "a\nb\n")]


def test_output_is_compared_without_times_and_the_order_of_concurrent_work() -> None:
    assert normalised("done    a in 5 ms\n  done    c in 1.0 s\n  done    b in 2 ms\n") == [
        "done a in TIME",
        "  done b in TIME",
        "  done c in TIME",
    ]
