"""What components print and log, as a host gets it."""

import threading
import time
from pathlib import Path
from typing import Any

from support.component_client import SERVERS, Client, script

SERVER = SERVERS / "logging_server.py"


def logged(client: Client, path: str, value: Any) -> tuple[dict[str, Any], list[list[Any]], int]:
    """Call a component; return the reply, the lines before it without their times, and the number of dropped lines."""
    call_id = client.execute(path, value)
    lines: list[list[Any]] = []
    dropped = 0
    while "method" in (message := client.receive()):
        assert message["method"] == "components/log"
        assert message["params"]["id"] == call_id
        lines += [line[1:] for line in message["params"]["lines"]]
        dropped += message["params"]["dropped"]
    assert message["id"] == call_id
    return message, lines, dropped


def test_lines_of_a_call_come_with_its_id_and_before_its_answer() -> None:
    with Client(SERVER) as client:
        client.initialize(log=True)
        before_ms = int(time.time() * 1000)
        client.execute("/printing", {"name": "Ada"})
        first = client.receive()
        assert before_ms <= first["params"]["lines"][0][0] <= time.time() * 1000
        while "method" in client.receive():
            pass

        _, lines, dropped = logged(client, "/printing", {"name": "Ada"})
        assert lines == [
            ["", "printed Ada"],
            ["", "to stderr"],
            ["warning", "warned"],
            ["error", "library: an error"],
            ["error", "of two lines"],
            ["", "without an end"],
        ]
        assert dropped == 0
        code, mirrored = client.end()
        assert code == 0
        assert mirrored.splitlines()[-6:] == [
            "\x02printed Ada",
            "\x02to stderr",
            "\x02WARNING warned",
            "\x02ERROR library: an error",
            "\x02ERROR of two lines",
            "\x02without an end",
        ]


def test_lines_come_while_the_component_still_runs(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with Client(SERVER) as client:
        client.initialize(log=True)
        client.execute("/gated", {"gate": str(gate)})
        assert [line[2] for line in client.receive()["params"]["lines"]] == ["waits for the gate"]
        gate.touch()
        assert [line[2] for line in client.receive()["params"]["lines"]] == ["has passed the gate"]
        assert client.receive()["result"] == {"output": "done"}


def test_every_way_of_running_a_component_is_followed() -> None:
    with Client(SERVER) as client:
        client.initialize(log=True)
        assert logged(client, "/inline", {"name": "Ada"})[1] == [["", "inline Ada"]]
        assert logged(client, "/several", {"name": "x"})[1] == [
            ["", "x 0"],
            ["", "x 1"],
            ["", "x 2"],
            ["", "x in a thread"],
        ]


def test_concurrent_calls_keep_their_lines_apart() -> None:
    with Client(SERVER) as client:
        client.initialize(log=True)
        names = {client.execute("/several", {"name": name}): name for name in ("a", "b", "c", "d")}
        answered: set[str] = set()
        lines: dict[str, list[str]] = {call_id: [] for call_id in names}
        while len(answered) < len(names):
            message = client.receive()
            if "method" in message:
                assert message["params"]["id"] not in answered
                lines[message["params"]["id"]] += [line[2] for line in message["params"]["lines"]]
            else:
                answered.add(message["id"])
        assert lines == {
            call_id: [f"{name} 0", f"{name} 1", f"{name} 2", f"{name} in a thread"] for call_id, name in names.items()
        }


def test_a_host_that_takes_no_log_lines_finds_them_on_stderr() -> None:
    with Client(SERVER) as client:
        client.initialize()
        assert client.call("/printing", {"name": "Ada"}, run_id="r", step_id="s") == "done"
        code, text = client.end()
    assert code == 0
    assert text.splitlines() == [
        "printed Ada",
        "to stderr",
        "WARNING stepflow.component: [/printing step=s run=r] warned",
        "ERROR library: an error",
        "of two lines",
        "without an end",
    ]


def test_lines_of_other_threads_and_of_children_go_to_stderr() -> None:
    with Client(SERVER) as client:
        client.initialize(log=True)
        assert logged(client, "/elsewhere", {})[1] == []
        assert client.end() == (0, "of another thread\nof a child\n")


def test_the_lines_of_a_failure_precede_it() -> None:
    with Client(SERVER) as client:
        client.initialize(log=True)
        reply, lines, _ = logged(client, "/fails", {})
        assert lines == [["", "before the failure"]]
        assert "boom" in reply["error"]["message"]


def test_the_last_words_of_a_crash_are_on_stderr(tmp_path: Path) -> None:
    path = script(
        tmp_path,
        "import os\n"
        "from stepflow.component import component, serve\n"
        "@component\ndef crash(input: dict) -> None:\n    print('last words')\n    os._exit(3)\n"
        "serve()\n",
    )
    with Client(path) as client:
        client.initialize(log=True)
        client.execute("/crash", {})
        assert client.process.wait(30) == 3
        assert client.process.stderr is not None
        assert client.process.stderr.read() == b"\x02last words\n"


def test_a_flood_is_thinned_to_its_latest_lines_and_delays_no_other_call() -> None:
    with Client(SERVER) as client:
        client.initialize(log=True)
        threading.Thread(target=drain, args=(client,), daemon=True).start()
        flood = client.execute("/flood", {"lines": 200_000})
        quick = client.execute("/inline", {"name": "quick"})
        lines: list[str] = []
        dropped = notices = 0
        answers: list[str] = []
        while len(answers) < 2:
            message = client.receive()
            if "method" not in message:
                answers.append(message["id"])
            elif message["params"]["id"] == flood:
                notices += 1
                lines += [line[2] for line in message["params"]["lines"]]
                dropped += message["params"]["dropped"]
        assert answers == [quick, flood]
        assert lines[-1] == "line 199999"
        assert len(lines) + dropped == 200_000
        assert len(lines) <= 100 * notices
        assert notices < 400


def drain(client: Client) -> None:
    """Read stderr, as a host does."""
    assert client.process.stderr is not None
    while client.process.stderr.read(1 << 16):
        pass


def test_odd_text_is_carried() -> None:
    with Client(SERVER) as client:
        client.initialize(log=True)
        reply, lines, _ = logged(client, "/odd", {})
        texts = [text for _, text in lines]
        assert texts[0] == "half ? of a pair"
        assert len(texts[1]) < 5_000
        assert texts[2] == "two parts"
        assert reply["result"]["output"].lower() == "utf-8"


def test_the_logging_that_an_author_has_set_up_is_followed_too(tmp_path: Path) -> None:
    path = script(
        tmp_path,
        "import logging\n"
        "from stepflow.component import component, serve\n"
        "logging.basicConfig(level='INFO', format='%(levelname)s! %(message)s')\n"
        "@component\ndef speak(input: dict) -> None:\n    logging.info('set up by the author')\n"
        "logging.info('at the start')\n"
        "serve()\n"
        "logging.info('at the end')\n",
    )
    with Client(path) as client:
        client.initialize(log=True)
        assert logged(client, "/speak", {})[1] == [["", "INFO! set up by the author"]]
        assert client.end() == (0, "INFO! at the start\n\x02INFO! set up by the author\nINFO! at the end\n")


def test_the_level_of_the_environment_decides_what_is_logged() -> None:
    with Client(SERVER, STEPFLOW_LOG_LEVEL="debug") as client:
        client.initialize(log=True)
        assert ["debug", "library: not at this level"] in logged(client, "/printing", {"name": "Ada"})[1]
