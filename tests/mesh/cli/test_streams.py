"""Every entry point with stdin, stdout or stderr closed, full, or without a reader."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from support import ROOT, free_port, run_cli, text_of, wait_until
from support.health import SERVING, health_of

from stepflow.rpc.health import READINESS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.etcd import EtcdServer

FLOW = """
name: echo
description: one step
steps:
  - {id: say, component: /builtin/create_messages, input: {user_prompt: {$input: text}}}
output: {$step: say, path: "messages[0].content"}
"""

RUN = ("-m", "stepflow.cli", "run", "--flow", "flow.yaml", "--input-json", '{"text": "hello"}')
RESULT = {"outcome": "success", "result": "hello"}
CLOSED = ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"]

SERVER = """
from stepflow.component import component, serve

@component
def double(x: int) -> int:
    return 2 * x

serve(http={http})
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "flow.yaml").write_text(FLOW, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def redirected(redirection: str, *arguments: str) -> list[str]:
    return ["/bin/sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, *arguments]


def run(redirection: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = redirected(redirection, *arguments)
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, input="")


@contextmanager
def started(redirection: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(redirected(redirection, *arguments), start_new_session=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def stored_results(said: str) -> Any:
    """Run the command that a message names, and return the result that it prints."""
    command = said.split("this prints them: stepflow ")[1].split()
    done = run_cli(command, cwd=Path.cwd())
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# --- closed ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("redirection", CLOSED)
def test_a_run_with_closed_descriptors_ends_as_with_the_null_device(redirection: str, folder: Path) -> None:
    done = run(redirection, *RUN, "--output", "result.json")
    assert (done.returncode, json.loads((folder / "result.json").read_text())) == (0, RESULT)
    done = run(redirection, *RUN)
    assert done.returncode == 0
    assert done.stdout == ("" if ">&-" in redirection.split() else json.dumps(RESULT, separators=(",", ":")) + "\n")
    assert ("completed after" in done.stderr) == ("2>&-" not in redirection.split())


@pytest.mark.parametrize("redirection", CLOSED)
def test_a_component_server_with_closed_descriptors_serves(redirection: str, folder: Path) -> None:
    (folder / "server.py").write_text(SERVER.format(http=None), encoding="utf-8")
    listed = run(redirection, "server.py", "--list")
    assert (listed.returncode, listed.stderr) == (0, "")
    served = run(redirection, "server.py")
    assert served.returncode == 0, "the end of stdin ends it"
    assert "Traceback" not in served.stderr


@pytest.mark.parametrize("redirection", [">&-", "> /dev/full", "<&- >&- 2>&-"])
def test_a_component_server_over_http_serves_although_it_cannot_announce_its_port(
    redirection: str, folder: Path
) -> None:
    import socket

    port = free_port()
    (folder / "server.py").write_text(SERVER.format(http=port), encoding="utf-8")

    def answers() -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    with started(redirection, "server.py") as process:
        wait_until(answers, "it listens", 30)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM


@pytest.mark.parametrize("redirection", ["<&- >&- 2>&-", "> /dev/full"])
@pytest.mark.parametrize("module", ["control_plane", "executor", "component_host"])
def test_a_service_with_closed_descriptors_serves_and_stops_in_order(
    etcd: EtcdServer, module: str, redirection: str, folder: Path
) -> None:
    """Its health port shows that it is ready: the line on stdout may be lost."""
    health = f"127.0.0.1:{free_port()}"
    options = ("--etcd", etcd.endpoint, "--etcd-prefix", f"{uuid4().hex[:12]}/", "--blobs", str(folder / "blobs"))
    listening = ("--listen", "127.0.0.1:0", "--health-listen", health)
    with started(redirection, "-m", module, *options, *listening) as process:

        def is_ready() -> bool:
            assert process.poll() is None
            return health_of(health, READINESS) == SERVING

        wait_until(is_ready, "it is ready", 40)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


# --- unwritable ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("redirection", ["> /dev/full", "| :"])
def test_a_result_that_stdout_does_not_take_is_stored_and_the_message_says_where(redirection: str) -> None:
    if redirection == "| :":
        reader, writer = os.pipe()
        os.close(reader)
        with os.fdopen(writer, "wb") as closed:
            done = subprocess.run(
                [sys.executable, *RUN], stdout=closed, stderr=subprocess.PIPE, text=True, timeout=60, check=False
            )
    else:
        done = run(redirection, *RUN)
    assert done.returncode == 1
    assert "error[STDOUT_UNWRITABLE]" in done.stderr
    assert "internal error" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert stored_results(done.stderr) == RESULT


def test_a_result_file_on_a_full_disk_is_no_wrong_command_line(folder: Path) -> None:
    (folder / "full.json").symlink_to("/dev/full")
    done = run("", *RUN, "--output", "full.json")
    assert done.returncode == 1
    assert "error[FILE_UNWRITABLE]" in done.stderr
    assert stored_results(done.stderr) == RESULT


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("runs", "list"), ("run", "--help")], ids=" ".join)
def test_text_that_stdout_does_not_take_is_an_error_in_one_line(arguments: tuple[str, ...]) -> None:
    run("", *RUN)
    done = run("> /dev/full", "-m", "stepflow.cli", *arguments)
    assert done.returncode == 1
    assert done.stderr == "error[STDOUT_UNWRITABLE]: cannot write to stdout: No space left on device\n"


@pytest.mark.parametrize("option", ["--list", "--call"])
def test_a_component_server_tried_by_hand_says_that_stdout_cannot_be_written(folder: Path, option: str) -> None:
    (folder / "server.py").write_text(SERVER.format(http=None), encoding="utf-8")
    arguments = ("--list",) if option == "--list" else ("--call", "double")
    command = redirected("> /dev/full", "server.py", *arguments)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, input='{"x": 2}')
    assert (done.returncode, done.stderr) == (1, "error: cannot write to stdout: No space left on device\n")


@pytest.mark.parametrize("redirection", ["2> /dev/full", "> result 2> /dev/full"])
def test_a_run_whose_messages_cannot_be_written_succeeds(redirection: str, folder: Path) -> None:
    done = run(redirection, *RUN)
    shown = text_of(folder / "result") or done.stdout
    assert (done.returncode, json.loads(shown)) == (0, RESULT)
