"""The process of a component server: descriptors, exit, and use by hand."""

import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import wait_until
from support.component_client import ROOT, SERVERS, WAIT_S, Client, run, script


@pytest.fixture
def server() -> Iterator[Client]:
    with Client(SERVERS / "behaviours.py") as client:
        client.initialize()
        yield client


# The process


def test_nothing_that_a_component_prints_touches_the_protocol(server: Client) -> None:
    assert server.call("/prints") == "printed"
    assert server.call("/add", {"a": 1, "b": 1}) == 2
    code, stderr = server.end()
    assert code == 0
    for text in ('"id":"forged"', "raw bytes on descriptor one", "child ''", "a word from the component", "/prints"):
        assert text in stderr


def test_what_a_module_prints_while_it_loads_touches_no_protocol(tmp_path: Path) -> None:
    text = (
        "from stepflow.component import component, serve\nprint('loading')\n"
        "@component\ndef one() -> int:\n    return 1\nserve()\nprint('after')"
    )
    path = script(tmp_path, text)
    with Client(path) as client:
        assert client.call("/one") == 1
        assert client.end() == (0, "loading\nafter\n")
    done = run(path, "--call", "one")
    assert (done.stdout, done.stderr) == ("1\n", "loading\n")


def test_a_server_stops_taking_requests_from_a_host_that_does_not_read_and_then_goes_on(server: Client) -> None:
    sent: list[str] = []

    def write() -> None:
        sent.extend(server.execute("/big", {"count": 1024 * 1024}) for _ in range(12))
        sent.extend(server.execute("/add", {"a": 1, "b": 1}) for _ in range(2000))

    writer = threading.Thread(target=write)
    writer.start()
    wait_until(lambda: not select.select([], [server.stdin], [], 0)[1], "the server takes no more", timeout_s=WAIT_S)
    replies = [server.receive()["id"] for _ in range(2012)]
    writer.join(WAIT_S)
    assert sorted(replies) == sorted(sent)


def test_closing_stdin_ends_the_server_with_zero(server: Client) -> None:
    assert server.end() == (0, "")


def test_closing_stdin_ends_the_server_also_in_the_middle_of_calls(server: Client) -> None:
    server.execute("/wait_for_gate", {"name": "never opened"})
    server.execute("/wait_for_host")
    server.receive()
    server.execute("/wait_forever")
    server.execute("/echo", 1)
    server.receive()
    code, stderr = server.end()
    assert code == 0
    assert stderr == "cleaned up\n"


def test_closing_stdin_ends_a_server_whose_executor_is_stuck(server: Client) -> None:
    server.execute("/wait_in_executor")
    assert server.call("/add_async", {"a": 1, "b": 1}) == 2
    assert server.end() == (0, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_server_without_a_traceback(server: Client, number: signal.Signals) -> None:
    server.execute("/wait_for_gate", {"name": "never opened"})
    assert server.call("/add_async", {"a": 1, "b": 1}) == 2
    server.process.send_signal(number)
    assert server.process.wait(timeout=WAIT_S) == 128 + number
    assert server.process.stderr is not None
    assert server.process.stderr.read() == b""


def test_a_host_that_stops_reading_and_dies_ends_the_server(server: Client) -> None:
    for _ in range(16):
        server.execute("/big", {"count": 1024 * 1024})
    assert server.process.stdout is not None
    server.process.stdout.close()
    assert server.process.stdin is not None
    server.process.wait(timeout=WAIT_S)
    assert server.process.returncode == 0


def test_requests_may_come_from_a_file(tmp_path: Path) -> None:
    requests = tmp_path / "requests.jsonl"
    requests.write_text(
        '{"jsonrpc":"2.0","id":1,"method":"components/execute","params":{"component":"/add","input":{"a":1,"b":2}}}\n'
    )
    with requests.open() as stdin, (tmp_path / "replies.jsonl").open("w+") as stdout:
        command = [sys.executable, str(SERVERS / "behaviours.py")]
        environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
        subprocess.run(command, stdin=stdin, stdout=stdout, timeout=WAIT_S, check=True, env=environ)
        stdout.seek(0)
        assert json.loads(stdout.read())["result"] == {"output": 3}


# By hand


def test_list_prints_the_components_as_json() -> None:
    listed = json.loads(run(SERVERS / "kinds.py", "--list").stdout)
    assert "/dataclass_kind" in [each["component"] for each in listed]


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_tells_what_the_program_is_and_ends_it(option: str) -> None:
    done = run(SERVERS / "kinds.py", option)
    assert (done.returncode, done.stderr) == (0, "")
    for words in ("usage: ", "/dataclass_kind", "type: stepflow", "--list", "--call NAME"):
        assert words in done.stdout


def test_a_list_that_nobody_reads_to_its_end_gives_no_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, str(SERVERS / "kinds.py"), "--list"]
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, timeout=WAIT_S, check=False, env=environ)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


def test_call_runs_one_component_with_blobs_of_its_own() -> None:
    done = run(SERVERS / "behaviours.py", "--call", "blob_sync", stdin='{"value": {"a": 1}}')
    assert done.returncode == 0
    assert json.loads(done.stdout)[1] == {"a": 1}
    done = run(SERVERS / "behaviours.py", "--call", "/prints")
    assert json.loads(done.stdout) == "printed"


def test_call_shows_progress_on_stderr() -> None:
    done = run(SERVERS / "behaviours.py", "--call", "much_progress", stdin='{"count": 2}')
    assert json.loads(done.stdout) == "done"
    assert "progress 2/2" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "words"),
    [
        (["--call", "fail"], '{"kind": "component"}', 1, ["COMPONENT_FAILED: it broke"]),
        (["--call", "fail"], '{"kind": 3}', 1, ["INVALID_INPUT", "$.kind"]),
        (["--call", "flow_sync"], '{"flow": "f", "value": 1}', 1, ["stepflow run"]),
        (["--call", "ad"], "", 2, ["/ad", "did you mean /add?"]),
        (["--call", "add"], "{", 2, ["the input on stdin is not valid JSON"]),
        (["--call"], "", 2, ["one component name"]),
    ],
)
def test_call_tells_what_went_wrong(arguments: list[str], stdin: str, code: int, words: list[str]) -> None:
    done = run(SERVERS / "behaviours.py", *arguments, stdin=stdin)
    assert done.returncode == code
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def test_at_a_terminal_the_server_says_what_it_is() -> None:
    import pty

    parent, child = pty.openpty()
    with subprocess.Popen(
        [sys.executable, str(SERVERS / "kinds.py")],
        stdin=child,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
    ) as process:
        os.close(child)
        try:
            assert process.stderr is not None
            said = b""
            while b"Ctrl-D" not in said:
                ready, _, _ = select.select([process.stderr], [], [], WAIT_S)
                assert ready, said
                said += os.read(process.stderr.fileno(), 4096)
            for word in (b"/dataclass_kind", b"type: stepflow", b"--list", b"--call"):
                assert word in said
            os.write(parent, b"\x04")
            assert process.wait(timeout=WAIT_S) == 0
        finally:
            process.kill()
            os.close(parent)
