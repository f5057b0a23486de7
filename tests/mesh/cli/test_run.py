"""`stepflow run`, `resume` and `runs`, each as its own process, as users run them."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import pty
import random
import re
import signal
import struct
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support import ROOT, is_alive, run_cli, wait_until
from support.schemas import BOMB
from support.wall_clock import HOUR_MS, WallClock

from stepflow.cli.run_list import list_runs
from stepflow.embedded.runs_folder import LocalRuns
from stepflow.journal import journal_entries

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BUILTIN_FLOW = """
name: echo
description: one step
schemas:
  properties:
    input: {type: object, required: [text], properties: {text: {type: string}}}
steps:
  - {id: say, component: /builtin/create_messages, input: {user_prompt: {$input: text}}}
output: {$step: say, path: "messages[0].content"}
"""

GATED_FLOW = """
name: gated
description: two steps, one after the other
steps:
  - {id: first, component: /gated/work, input: {$input: $}}
  - {id: second, component: /gated/work, input: {after: {$step: first}}}
output: {$step: second}
"""

LEAKY_FLOW = """
name: secret
description: a step that fails and tells what it was given
schemas:
  properties:
    input: {type: object, properties: {token: {type: string, is_secret: true}}}
steps:
  - {id: step, component: /builtin/load_file, input: {path: {$input: token}}}
output: {$step: step}
"""

CONFIG = """
plugins:
  gated:
    type: stepflow
    transport: stdio
    command: {python}
    args: [{server}]
    env: {{GATED_FOLDER: {folder}, PYTHONPATH: {root}}}
  builtin: {{type: builtin}}
routes:
  /gated: [{{plugin: gated}}]
  /builtin: [{{plugin: builtin}}]
"""

RESULT = {"outcome": "success", "result": {"of": {"after": {"of": {"x": 1}}}}}


class Place:
    """A folder with flows, a config for the gated server, and its own `.stepflow`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.write("echo.yaml", BUILTIN_FLOW)
        self.write("gated.yaml", GATED_FLOW)
        server = ROOT / "tests" / "data" / "servers" / "gated.py"
        config = CONFIG.format(python=sys.executable, server=server, folder=folder, root=ROOT)
        self.write("stepflow-config.yml", config)

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text, encoding="utf-8")

    def cli(self, *args: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return run_cli(args, cwd=self.folder, **options)

    def echo(self, text: str = "hello") -> subprocess.CompletedProcess[str]:
        return self.cli("run", "--flow", "echo.yaml", "--input-json", json.dumps({"text": text}))

    @contextmanager
    def started(self, *args: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
        """Start a command that is killed at the end of the block, if it has not ended by then."""
        process = subprocess.Popen(
            [sys.executable, "-m", "stepflow.cli", *args],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    @contextmanager
    def held_in_second_step(self, *args: str) -> Iterator[subprocess.Popen[str]]:
        """Start the gated flow and hold it in its second step; the first one is in the journal."""
        self.allow(1)
        command = ("run", "--flow", "gated.yaml", "--input-json", '{"x": 1}', *args)
        with self.started(*command) as process:
            wait_until(lambda: len(self.ledger()) >= 2 or process.poll() is not None, "the second step begins")
            assert process.poll() is None, process.stderr and process.stderr.read()
            yield process

    def interrupted(self) -> str:
        """Leave a run behind that was killed in its second step; return its id."""
        before = set(self.run_ids())
        (self.folder / "ledger").unlink(missing_ok=True)
        with self.held_in_second_step() as process:
            process.kill()
        self.allow(1_000_000)
        [run_id] = set(self.run_ids()) - before
        return run_id

    def allow(self, executions: int) -> None:
        new = self.folder / "allowed.new"
        new.write_text(str(executions))
        new.replace(self.folder / "allowed")

    def ledger(self) -> list[str]:
        try:
            return (self.folder / "ledger").read_text().splitlines()
        except FileNotFoundError:
            return []

    def run_ids(self) -> list[str]:
        return sorted(path.stem for path in (self.folder / ".stepflow" / "runs").glob("*.db"))

    def server_pids(self) -> list[int]:
        """Return the servers that were started for this folder and still run."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and is_alive(int(entry.name)):
                try:
                    environ = (entry / "environ").read_bytes()
                except OSError:
                    continue
                if f"GATED_FOLDER={self.folder}".encode() in environ.split(b"\0"):
                    found.append(int(entry.name))
        return found


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def stopped(place: Place, process: subprocess.Popen[str], timeout_s: float = 20) -> tuple[str, str]:
    """Wait for a process and return its outputs; nothing that it started may be left."""
    stdout, stderr = process.communicate(timeout=timeout_s)
    wait_until(lambda: not place.server_pids(), "the servers end")
    assert "Traceback" not in stderr
    return stdout, stderr


# --- results -----------------------------------------------------------------------------------------------------


def test_the_result_goes_to_stdout_and_the_rest_to_stderr(place: Place) -> None:
    done = place.echo()
    assert done.returncode == 0
    assert json.loads(done.stdout) == {"outcome": "success", "result": "hello"}
    assert re.search(r"^run_id: [0-9a-f-]{36}$", done.stderr, re.MULTILINE)
    assert re.search(r"^done    say in \d+ ms$", done.stderr, re.MULTILINE)
    assert "\x1b" not in done.stderr


def test_a_failed_flow_ends_with_1_and_its_failure_on_stdout(place: Place) -> None:
    place.write("fails.yaml", GATED_FLOW.replace("/gated/work, input: {after", "/gated/refuse, input: {after"))
    done = place.cli("run", "--flow", "fails.yaml", "--input-json", "1")
    assert done.returncode == 1
    result = json.loads(done.stdout)
    assert (result["outcome"], result["error"]["message"]) == ("failed", "always")
    assert "failed  second" in done.stderr
    assert "COMPONENT_FAILED: always" in done.stderr


def test_a_retried_step_is_told_with_the_time_of_its_next_attempt(place: Place) -> None:
    handling = "onError: {action: retry, maxRetries: 2, backoff: {type: constant, delayMs: 30}}"
    place.write(
        "retry.yaml",
        "name: r\ndescription: r\nsteps:\n  - id: again\n    component: /gated/flaky\n    input: {value: 7}\n"
        f"    {handling}\noutput: {{$step: again}}\n",
    )
    done = place.cli("run", "--flow", "retry.yaml")
    assert json.loads(done.stdout) == {"outcome": "success", "result": {"of": 7}}
    assert re.findall(
        r"^retry   again \(attempt (\d)\): RESOURCE_UNAVAILABLE: not yet; again in \d+ ms$", done.stderr, re.M
    ) == ["1", "2"]


def test_quiet_shows_no_steps(place: Place) -> None:
    done = place.cli("run", "--flow", "echo.yaml", "--input-json", '{"text": "t"}', "--quiet")
    assert "run_id: " in done.stderr
    assert "say" not in done.stderr


def test_a_batch_gives_one_line_per_item_in_order_and_1_if_any_failed(place: Place) -> None:
    place.write("items.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in ("a", "b", "c")))
    done = place.cli("run", "--flow", "echo.yaml", "--inputs", "items.jsonl", "--max-concurrency", "2")
    assert done.returncode == 0
    assert [json.loads(line)["result"] for line in done.stdout.splitlines()] == ["a", "b", "c"]
    assert "done    say[1]" in done.stderr
    assert "3 of 3 items completed" in done.stderr
    place.write("items.jsonl", '{"text": "a"}\n{"text": 5}\n')
    done = place.cli("run", "--flow", "echo.yaml", "--inputs", "items.jsonl", "--no-validate-input")
    assert done.returncode == 1
    assert [json.loads(line)["outcome"] for line in done.stdout.splitlines()] == ["success", "failed"]


def test_a_batch_larger_than_a_partition_keeps_the_order_and_tells_of_every_item(place: Place) -> None:
    place.write("items.jsonl", "".join(json.dumps({"text": str(number)}) + "\n" for number in range(90)))
    done = place.cli("run", "--flow", "echo.yaml", "--inputs", "items.jsonl", "-o", "out.jsonl")
    lines = (place.folder / "out.jsonl").read_text().splitlines()
    assert [json.loads(line)["result"] for line in lines] == [str(number) for number in range(90)]
    assert len(re.findall(r"^done    say\[\d+\]", done.stderr, re.MULTILINE)) == 90


def test_the_steps_of_a_stored_run_are_listed_with_results_that_do_not_fit_into_the_journal(place: Place) -> None:
    text = "x" * 40_000
    place.write("input.json", json.dumps({"text": text}))
    assert place.cli("run", "--flow", "echo.yaml", "--input", "input.json").returncode == 0
    for command in (("runs", "get", place.run_ids()[0], "--steps"), ("runs", "steps", place.run_ids()[0])):
        done = place.cli(*command, "--json")
        assert done.returncode == 0, done.stderr
        (step,) = json.loads(done.stdout)["steps"]
        assert step["result"]["result"]["messages"][0]["content"] == text


def test_the_result_goes_to_a_file_in_its_format(place: Place) -> None:
    done = place.cli("run", "--flow", "echo.yaml", "--input-json", '{"text": "t"}', "--output", "out.yaml")
    assert (done.returncode, done.stdout) == (0, "")
    assert (place.folder / "out.yaml").read_text() == "outcome: success\nresult: t\n"


def test_the_input_may_come_from_a_pipe(place: Place) -> None:
    done = place.cli("run", "--flow", "echo.yaml", input='{"text": "piped"}')
    assert json.loads(done.stdout)["result"] == "piped"


def test_variables_come_from_the_environment_when_asked_for(place: Place) -> None:
    place.write(
        "variables.yaml",
        "name: v\ndescription: v\nschemas: {properties: {variables: {type: object, properties: "
        "{name: {type: string, env_var: THE_NAME}, other: {type: string}}}}}\n"
        "output: [{$variable: name}, {$variable: other}]\n",
    )
    args = ("run", "--flow", "variables.yaml", "--env-variables", "--variables-json", '{"other": "given"}')
    done = place.cli(*args, env={"THE_NAME": "from outside"})
    assert json.loads(done.stdout)["result"] == ["from outside", "given"]


def test_overrides_change_steps_for_one_run(place: Place) -> None:
    overrides = {"steps": {"say": {"value": {"input": {"user_prompt": {"$input": None, "$literal": "changed"}}}}}}
    done = place.cli(
        "run", "--flow", "echo.yaml", "--input-json", '{"text": "t"}', "--overrides-json", json.dumps(overrides)
    )
    assert json.loads(done.stdout)["result"] == "changed", done.stderr


def test_declared_secrets_are_kept_out_of_failures_and_not_out_of_the_result(place: Place) -> None:
    place.write("secret.yaml", LEAKY_FLOW)
    asked = ("run", "--flow", "secret.yaml", "--input-json")
    (place.folder / "hunter2-is-there.json").write_text('{"said": "hunter2-is-there"}')
    done = place.cli(*asked, '{"token": "hunter2-is-there.json"}')
    assert json.loads(done.stdout)["result"]["data"] == {"said": "hunter2-is-there"}, done.stderr

    done = place.cli(*asked, '{"token": "hunter2-is-secret"}')
    assert done.returncode == 1
    assert "hunter2-is-secret" not in done.stdout + done.stderr
    assert "[REDACTED]" in done.stdout
    assert "[REDACTED]" in done.stderr
    shown = place.cli("runs", "get", place.run_ids()[0], "--steps")
    assert shown.returncode == 0
    assert "hunter2-is-secret" not in shown.stdout


def test_only_the_plugins_that_the_flow_may_call_are_started(place: Place) -> None:
    config = (
        "plugins:\n  broken: {type: stepflow, transport: stdio, command: no-such-command-here, args: [$UNSET_HERE]}\n"
    )
    place.write(
        "c.yml",
        config
        + "  builtin: {type: builtin}\nroutes:\n  /broken: [{plugin: broken}]\n  /builtin: [{plugin: builtin}]\n",
    )
    done = place.cli("run", "--flow", "echo.yaml", "--config", "c.yml", "--input-json", '{"text": "t"}')
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("with_config", [False, True])
def test_starting_a_builtin_flow_imports_nothing_heavy(place: Place, with_config: bool) -> None:
    heavy = ("pydantic", "rich", "structlog", "mcp", "httpx", "obstore", "ruamel", "grpc", "jsonschema_rs")
    place.write(
        "plain.yaml",
        "name: p\ndescription: p\nsteps: [{id: s, component: /builtin/create_messages, input: {user_prompt: t}}]\n"
        "output: {$step: s}\n",
    )
    if not with_config:
        (place.folder / "stepflow-config.yml").unlink()
    code = (
        "import sys; from stepflow.cli.__main__ import main; code = main(['run', '--flow', 'plain.yaml'])\n"
        f"print(code, [name for name in {heavy!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=place.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stderr.splitlines()[-1] == "0 []", done.stderr


# --- interruption and resumption -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_stops_the_run_and_resume_goes_on(place: Place, signum: signal.Signals, code: int) -> None:
    with place.held_in_second_step() as process:
        process.send_signal(signum)
        stdout, stderr = stopped(place, process)
    [run_id] = place.run_ids()
    assert (process.returncode, stdout) == (code, "")
    assert f"run {run_id} is not finished; continue it with: stepflow resume {run_id}" in stderr
    place.allow(1_000_000)
    done = place.cli("resume")
    assert (done.returncode, json.loads(done.stdout)) == (0, RESULT)
    assert [line.split("/")[-1] for line in place.ledger()] == ["first 1", "second 1", "second 2"]


def test_a_signal_seen_twice_is_one_orderly_stop(place: Place) -> None:
    """`timeout` signals the process, and then its group. Two of one number may reach the process as one."""
    with place.held_in_second_step() as process:
        for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            process.send_signal(signum)
        _, stderr = stopped(place, process)
    assert process.returncode == 129
    assert "continue it with: stepflow resume" in stderr


def test_a_signal_stops_the_tests_of_a_flow_and_their_servers(place: Place) -> None:
    case = "test: {cases: [{name: held, input: {x: 1}, output: {outcome: success, result: 1}}]}\n"
    place.write("cases.yaml", GATED_FLOW + case)
    place.allow(0)
    with place.started("test", "cases.yaml") as process:
        wait_until(lambda: place.ledger() or process.poll() is not None, "the first step begins", 30)
        for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            process.send_signal(signum)
        stopped(place, process)
    assert process.returncode == 129


def test_a_second_signal_does_not_wait_for_a_stubborn_server(place: Place) -> None:
    stubborn = place.folder / "stubborn.py"
    stubborn.write_text(
        "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        + (ROOT / "tests" / "data" / "servers" / "gated.py").read_text()
    )
    config = (place.folder / "stepflow-config.yml").read_text()
    place.write("stepflow-config.yml", re.sub(r"args: \[[^]]*\]", f"args: [{stubborn}]", config))
    with place.held_in_second_step() as process:
        wait_until(lambda: process.poll() is not None or process.send_signal(signal.SIGINT), "a second signal ends it")
        stopped(place, process)
    assert process.returncode in (130, -signal.SIGINT)


def test_a_killed_run_goes_on_after_its_last_successful_step(place: Place) -> None:
    place.interrupted()
    wait_until(lambda: not place.server_pids(), "the server of the killed process ends")
    done = place.cli("resume", "--output", "result.json")
    assert (done.returncode, done.stdout) == (0, "")
    assert json.loads((place.folder / "result.json").read_text()) == RESULT
    assert [line.split("/")[-1] for line in place.ledger()] == ["first 1", "second 1", "second 2"]


def test_a_run_that_is_resumed_an_hour_later_took_no_hour(place: Place) -> None:
    run_id = place.interrupted()
    clock = WallClock(place.folder, ahead_ms=HOUR_MS)
    done = place.cli("resume", env=clock.env)
    assert json.loads(done.stdout) == RESULT, done.stderr
    assert re.search(r"completed after [0-9.]+ m?s$", done.stderr, re.MULTILINE), done.stderr

    [run] = listed(place)
    assert run["completed_at_ms"] - run["created_at_ms"] > HOUR_MS
    assert 0 < run["paused_ms"] - HOUR_MS < 60_000, "from the kill to the resumption"
    assert "1 h" not in place.cli("runs", "list").stdout
    shown = place.cli("runs", "get", run_id).stdout
    assert re.search(r"^took: +[0-9.]+ m?s$", shown, re.MULTILINE)
    assert re.search(r"^paused: +1 h 0 min$", shown, re.MULTILINE)


async def journaled(place: Place, run_id: str) -> set[str | None]:
    """Return the kinds of entries in the journal of a run."""
    store = await LocalRuns(place.folder / ".stepflow").read(run_id)
    try:
        return {entry.WhichOneof("kind") async for entry in journal_entries(store, run_id, 0)}
    finally:
        await store.close()


def test_a_sleep_that_a_resumption_ends_took_the_whole_time(place: Place) -> None:
    nap = "{id: nap, component: /builtin/sleep, input: {duration_ms: 3600000}}"
    place.write("nap.yaml", f"name: nap\nsteps: [{nap}]\noutput: {{$step: nap}}\n")
    with place.started("run", "--flow", "nap.yaml", "--input-json", "{}") as process:
        assert process.stderr is not None
        assert any("nap until" in line for line in process.stderr), "it does not sleep"
        [run_id] = place.run_ids()
        wait_until(lambda: "timer_set" in asyncio.run(journaled(place, run_id)), "the sleep is in the journal")
        process.kill()
    done = place.cli("resume", env=WallClock(place.folder, ahead_ms=HOUR_MS).env)
    assert json.loads(done.stdout) == {"outcome": "success", "result": {"duration_ms": HOUR_MS}}, done.stderr
    [step] = json.loads(place.cli("runs", "get", run_id, "--steps", "--json").stdout)["steps"]
    assert HOUR_MS <= step["duration_ms"] < HOUR_MS + 60_000


def test_several_unfinished_runs_are_listed_and_a_unique_prefix_is_enough(place: Place) -> None:
    first, second = place.interrupted(), place.interrupted()
    done = place.cli("resume")
    assert done.returncode == 2
    assert first in done.stderr
    assert second in done.stderr
    assert place.cli("resume", first[:2]).returncode == 2  # both begin so
    same = next(index for index, pair in enumerate(zip(first, second, strict=True)) if pair[0] != pair[1])
    done = place.cli("resume", second[: same + 1])
    assert (done.returncode, json.loads(done.stdout)) == (0, RESULT)
    assert f"run_id: {second}" in done.stderr
    assert f"run_id: {first}" in place.cli("resume").stderr


def test_resuming_a_completed_run_prints_its_result_again(place: Place) -> None:
    place.write("items.jsonl", '{"text": "only"}\n')
    place.cli("run", "--flow", "echo.yaml", "--inputs", "items.jsonl")
    (place.folder / "stepflow-config.yml").unlink()
    [run_id] = place.run_ids()
    done = place.cli("resume", run_id, "--output", "again.yaml")
    assert done.returncode == 0, done.stderr
    assert (place.folder / "again.yaml").read_text() == "- outcome: success\n  result: only\n"
    done = place.cli("resume")
    assert done.returncode == 2
    assert "no interrupted run" in done.stderr


def test_a_config_that_changed_is_warned_about_and_one_that_is_gone_can_be_replaced(place: Place) -> None:
    place.interrupted()
    config = place.folder / "stepflow-config.yml"
    text = config.read_text()
    config.rename(place.folder / "moved.yml")
    done = place.cli("resume")
    assert done.returncode == 2
    assert str(config) in done.stderr
    assert "--config" in done.stderr
    config.write_text(text + "retry: {transportMaxRetries: 1}\n")
    place.allow(0)
    with place.started("resume") as process:
        wait_until(lambda: len(place.ledger()) == 3, "the second step begins again")
        process.send_signal(signal.SIGINT)
        assert f"{config} has changed since the run began" in stopped(place, process)[1]
    place.allow(1_000_000)
    done = place.cli("resume", "--config", "moved.yml")
    assert (done.returncode, json.loads(done.stdout)) == (0, RESULT)
    assert "has changed" not in done.stderr


def test_a_run_that_another_process_drives_is_not_taken_from_it(place: Place) -> None:
    with place.held_in_second_step() as process:
        [run_id] = place.run_ids()
        done = place.cli("resume", run_id)
        assert done.returncode == 1
        assert "STORE_LOCKED" in done.stderr
        assert str(process.pid) in done.stderr
        done = place.cli("resume")
        assert done.returncode == 2
        assert f"{run_id} is being driven by another process" in done.stderr
        place.allow(1_000_000)
        assert json.loads(stopped(place, process)[0]) == RESULT


def test_a_run_kept_elsewhere_is_resumed_from_there(place: Place) -> None:
    with place.held_in_second_step("--store", "elsewhere") as process:
        process.send_signal(signal.SIGINT)
        stderr = stopped(place, process)[1]
    assert f"--store {place.folder / 'elsewhere'}" in stderr
    place.allow(1_000_000)
    assert place.cli("resume").returncode == 2
    assert json.loads(place.cli("resume", "--store", "elsewhere").stdout) == RESULT


# --- runs ----------------------------------------------------------------------------------------------------------


def listed(place: Place, *args: str) -> list[dict[str, Any]]:
    done = place.cli("runs", "list", "--json", *args)
    assert done.returncode == 0, done.stderr
    runs: list[dict[str, Any]] = json.loads(done.stdout)["runs"]
    return runs


def test_runs_are_listed_while_they_run_and_after_they_were_killed(place: Place) -> None:
    place.echo()
    with place.held_in_second_step() as process:
        assert [(run["flow_name"], run["status"]) for run in listed(place)] == [
            ("gated", "running"),
            ("echo", "completed"),
        ]
        run_id = listed(place, "--status", "running")[0]["run_id"]
        done = place.cli("runs", "get", run_id[:20], "--steps", "--json")
        tree = json.loads(done.stdout)
        assert tree["items"] == [{"item": 0, "status": "running"}]
        steps = [(step["step_id"], step["status"], step["attempt"]) for step in tree["steps"]]
        assert steps == [("first", "completed", 1), ("second", "running", 0)]
        assert tree["steps"][0]["result"] == {"outcome": "success", "result": {"of": {"x": 1}}}
        process.kill()
    assert [run["status"] for run in listed(place)] == ["interrupted", "completed"]
    assert listed(place, "--status", "failed") == []


def test_runs_are_shown_to_people_as_tables(place: Place) -> None:
    assert "no runs in" in place.cli("runs", "list").stderr
    place.echo()
    [run_id] = place.run_ids()
    table = place.cli("runs", "list").stdout.splitlines()
    assert table[0].split() == ["RUN_ID", "STATUS", "FLOW", "ITEMS", "BEGAN", "TOOK"]
    assert table[1].split()[:4] == [run_id, "completed", "echo", "1/1"]
    shown = place.cli("runs", "get", run_id, "--steps").stdout
    assert re.search(r"^status: +completed$", shown, re.MULTILINE)
    assert re.search(r"^say +0 +/builtin/create_messages +completed +1 ", shown, re.MULTILINE)


def test_a_damaged_database_is_named_and_the_others_are_still_listed(place: Place) -> None:
    place.echo()
    [run_id] = place.run_ids()
    runs = place.folder / ".stepflow" / "runs"
    text, folder = (f"01a2082a-0000-7000-8000-00000000000{number}" for number in (1, 2))
    (runs / f"{text}.db").write_text("this is no database at all, whatever its name says")
    (runs / f"{folder}.db").mkdir()
    done = place.cli("runs", "list", "--json")
    found = {run["run_id"]: run["status"] for run in json.loads(done.stdout)["runs"]}
    assert found == {run_id: "completed", text: "damaged", folder: "damaged"}
    for name in (text, folder):
        assert str(runs / f"{name}.db") in done.stderr
        done_one = place.cli("resume", name)
        assert done_one.returncode == 1
        assert f"{name}.db" in done_one.stderr
        assert "Traceback" not in done_one.stderr


def ends_of_transactions(log: bytes) -> list[int]:
    """Return where the transactions end that SQLite reads; the rest of the file is of former generations."""
    (page_bytes,) = struct.unpack_from(">I", log, 8)
    ends = []
    for at in range(32, len(log), 24 + page_bytes):
        if log[at + 8 : at + 16] != log[16:24]:  # the salts of a generation
            break
        if log[at + 4 : at + 8] != b"\0\0\0\0":
            ends.append(at + 24 + page_bytes)
    return ends


def test_no_damage_of_a_log_makes_a_run_vanish(place: Place) -> None:
    run_id = place.interrupted()
    local = LocalRuns(place.folder / ".stepflow")
    log = Path(f"{local.database(run_id)}-wal")
    whole = log.read_bytes()
    ends = ends_of_transactions(whole)
    dice = random.Random(17)

    def status() -> list[tuple[str, str]]:
        return [(run.run_id, status) for run, status in list_runs(local)]

    # No reader has seen the log as it was: one might have copied it to the database.
    for at in [0, 5, 17, 25, 33, 60, 4_000, *(dice.randrange(ends[-1]) for _ in range(40))]:
        log.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        ((found, shown),) = status()
        assert found == run_id
        crash_would_look_so = at >= ends[-3]
        assert shown == "damaged" or (shown == "interrupted" and crash_would_look_so), at
    log.write_bytes(b"\0" * 32 + whole[32:])
    assert status() == [(run_id, "damaged")]
    resumed = place.cli("resume", run_id)
    assert (resumed.returncode, resumed.stdout) == (1, "")
    assert "STORE_CORRUPT" in resumed.stderr
    log.write_bytes(whole)
    assert status() == [(run_id, "interrupted")]


@pytest.mark.parametrize("damage", ["log gone", "log cut", "database empty"])
def test_a_run_whose_data_is_gone_is_listed_and_can_be_removed(place: Place, damage: str) -> None:
    run_id = place.interrupted()
    database = LocalRuns(place.folder / ".stepflow").database(run_id)
    log = Path(f"{database}-wal")
    if damage == "log gone":
        log.unlink()
    elif damage == "log cut":
        log.write_bytes(log.read_bytes()[:100])
    else:
        database.write_bytes(b"")

    listed = json.loads(place.cli("runs", "list", "--json").stdout)["runs"]
    assert [(run["run_id"], run["status"]) for run in listed] == [(run_id, "damaged")]
    for command in (("runs", "get"), ("resume",), ("runs", "delete")):
        done = place.cli(*command, run_id)
        assert (done.returncode, done.stdout) == (1, "")
        assert "STORE_CORRUPT" in done.stderr
        assert "--force" in done.stderr
    assert log.exists() or damage != "database empty", "a log that is whole is kept"
    assert place.cli("runs", "delete", run_id, "--force").returncode == 0
    assert place.run_ids() == []


def test_a_store_that_others_can_change_is_refused_and_one_that_they_can_read_is_told(place: Place) -> None:
    place.echo()
    store = place.folder / ".stepflow"
    store.chmod(0o755)
    told = place.echo()
    assert told.returncode == 0
    assert f"chmod 700 {store}" in told.stderr
    store.chmod(0o770)
    exposed = place.echo()
    assert (exposed.returncode, exposed.stdout) == (1, "")
    assert "STORE_EXPOSED" in exposed.stderr
    store.chmod(0o700)
    assert "chmod" not in place.echo().stderr


def test_the_store_is_for_its_owner_only(place: Place) -> None:
    place.echo()
    store = place.folder / ".stepflow"
    assert store.stat().st_mode & 0o777 == 0o700
    assert (store / ".gitignore").read_text() == "*\n"


# --- what cannot work ----------------------------------------------------------------------------------------------

BROKEN_FLOWS = {
    "malformed": ("name: [unclosed\n", r"broken.yaml:\d+"),
    "unknown back-off member": (
        BUILTIN_FLOW.replace(
            "{$input: text}}}", "{$input: text}}, onError: {action: retry, backoff: {typ: constant}}}"
        ),
        r"backoff",
    ),
    "cycle": (GATED_FLOW.replace("input: {$input: $}", "input: {$step: second}"), r"second"),
    "unknown step": (GATED_FLOW.replace("after: {$step: first}", "after: {$step: nowhere}"), r"nowhere"),
}


@pytest.mark.parametrize("name", BROKEN_FLOWS)
def test_a_flow_that_cannot_run_is_refused_with_its_place(place: Place, name: str) -> None:
    text, expected = BROKEN_FLOWS[name]
    place.write("broken.yaml", text)
    refused(place, place.cli("run", "--flow", "broken.yaml", "--input-json", '{"text": "t"}'), 1, expected)


def refused(place: Place, done: subprocess.CompletedProcess[str], code: int, expected: str) -> None:
    """A clear message, no traceback, nothing on stdout, nothing stored, nothing running."""
    assert (done.returncode, done.stdout) == (code, "")
    assert re.search(expected, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert not place.run_ids()
    assert not place.server_pids()


def test_a_missing_component_is_refused_before_the_run(place: Place) -> None:
    place.write("missing.yaml", BUILTIN_FLOW.replace("/builtin/create_messages", "/nowhere/thing"))
    done = place.cli("run", "--flow", "missing.yaml", "--input-json", '{"text": "t"}')
    refused(place, done, 1, r"`/nowhere/thing`, and no route leads there; routes: `/builtin`")


@pytest.mark.parametrize("option", ["--no-check", "--no-validate-input"])
def test_without_a_check_a_missing_component_fails_the_run(place: Place, option: str) -> None:
    place.write("missing.yaml", BUILTIN_FLOW.replace("/builtin/create_messages", "/nowhere/thing"))
    done = place.cli("run", "--flow", "missing.yaml", "--input-json", '{"text": "t"}', option)
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["code"] == "ORCHESTRATOR_ERROR"
    step, end = (line for line in done.stderr.splitlines() if "ORCHESTRATOR_ERROR" in line)
    for line in (step, end):
        assert "no route for `/nowhere/thing`" in line
        assert "`/builtin`" in line


def test_a_misspelt_member_is_warned_about_with_its_place(place: Place) -> None:
    place.write("misspelt.yaml", BUILTIN_FLOW.replace("{id: say,", "{id: say, timout: 5s,"))
    done = place.cli("run", "--flow", "misspelt.yaml", "--input-json", '{"text": "t"}')
    assert done.returncode == 0
    assert "misspelt.yaml: $.steps[0].timout: `timout` is not a known member" in done.stderr


def test_a_run_does_not_complain_about_paths_that_nothing_can_check(place: Place) -> None:
    """`stepflow validate` names them; said at each run they would hide the warnings that matter."""
    place.write("paths.yaml", "name: p\ndescription: d\noutput: {$input: a.b}\n")
    done = place.cli("run", "--flow", "paths.yaml", "--input-json", '{"a": {"b": 1}}')
    assert (done.returncode, json.loads(done.stdout)["result"]) == (0, 1)
    assert "warning" not in done.stderr
    assert "1003" in place.cli("validate", "--flow", "paths.yaml", "--json").stdout


SERVERS = {
    "exits at once": ("import sys; print('the reason', file=sys.stderr); sys.exit(3)", r"code 3[\s\S]*the reason"),
    "prints garbage": ("import time; print('no protocol', flush=True); time.sleep(60)", r"gated"),
    "never answers": ("import time; time.sleep(60)", r"did not answer"),
}


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_that_does_not_start_ends_the_command_before_the_run_begins(place: Place, name: str) -> None:
    code, expected = SERVERS[name]
    place.write("server.py", code)
    config = (place.folder / "stepflow-config.yml").read_text()
    config = re.sub(r"args: \[[^]]*\]", f"startTimeout: 700ms\n    args: [{place.folder / 'server.py'}]", config)
    place.write("stepflow-config.yml", config)
    refused(place, place.cli("run", "--flow", "gated.yaml", "--input-json", "1"), 1, expected)


def test_a_slow_start_is_talked_about(place: Place) -> None:
    place.write("server.py", "import time; time.sleep(60)")
    config = (place.folder / "stepflow-config.yml").read_text()
    config = re.sub(r"args: \[[^]]*\]", f"startTimeout: 1500ms\n    args: [{place.folder / 'server.py'}]", config)
    place.write("stepflow-config.yml", config)
    refused(place, place.cli("run", "--flow", "gated.yaml", "--input-json", "1"), 1, r"starting gated …")


def test_an_input_of_50_megabytes_is_refused_at_once(place: Place) -> None:
    with (place.folder / "big.json").open("wb") as file:
        file.truncate(50 * 1024 * 1024)
    refused(place, place.cli("run", "--flow", "echo.yaml", "--input", "big.json"), 1, r"52,428,800 bytes; the limit is")


def test_a_schema_that_would_take_for_ever_is_refused_unless_told_otherwise(place: Place) -> None:
    flow = {"name": "b", "schemas": {"properties": {"input": BOMB}}, "output": {"$input": "$"}}
    place.write("bomb.yaml", json.dumps(flow))
    args = ("run", "--flow", "bomb.yaml", "--input-json", '"xxxx"')
    refused(place, place.cli(*args), 1, r"SCHEMA_TOO_LARGE")
    assert json.loads(place.cli(*args, "--no-validate-input").stdout)["result"] == "xxxx"


def test_an_input_that_does_not_fit_the_schema_is_refused_unless_told_otherwise(place: Place) -> None:
    args = ("run", "--flow", "echo.yaml", "--input-json", '{"txt": 1}')
    refused(place, place.cli(*args), 1, r"INPUT_INVALID")
    done = place.cli(*args, "--no-validate-input")
    assert json.loads(done.stdout)["error"]["code"] == "EXPRESSION_FAILURE"


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("--config", "nowhere.yml"), r"nowhere.yml"),
        (("--max-concurrency", "many"), r"many"),
        (("--max-concurrency", "0"), r"0"),
        (("--output", "/nowhere/at/all.json"), r"/nowhere/at/all.json"),
        (("--input-yaml", "{}"), r"exclude each other"),
    ],
)
def test_a_wrong_command_line_ends_with_2(place: Place, args: Sequence[str], expected: str) -> None:
    done = place.cli("run", "--flow", "echo.yaml", "--input-json", '{"text": "t"}', *args)
    refused(place, done, 2, expected)


def test_a_store_that_cannot_be_used_is_named(place: Place) -> None:
    place.write("file", "")
    args = ("run", "--flow", "echo.yaml", "--input-json", '{"text": "t"}', "--store", "file")
    refused(place, place.cli(*args), 1, str(place.folder / "file"))
    refused(place, place.cli("runs", "list", "--store", "file"), 1, str(place.folder / "file"))
    refused(place, place.cli("resume", "abc"), 1, r"no run abc")


def test_a_disk_that_fills_up_stops_the_run_which_can_be_resumed(place: Place) -> None:
    steps = "".join(
        f"  - {{id: s{n}, component: /builtin/create_messages, input: {{user_prompt: {{$input: text}}{after}}}}}\n"
        for n, after in enumerate(["", *(f", after: {{$step: s{n}}}" for n in range(11))])
    )
    place.write("long.yaml", f"name: long\ndescription: d\nsteps:\n{steps}output: {{$step: s11}}\n")
    place.write("input.json", json.dumps({"text": "x" * 12_000}))
    command = [sys.executable, "-m", "stepflow.cli", "run", "--flow", "long.yaml", "--input", "input.json"]
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 100; exec "$@"', "bash", *command],  # noqa: S607  # the shell of the system
        cwd=place.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "STEPFLOW_LOG_LEVEL": "error"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    [run_id] = place.run_ids()
    assert f"{run_id}.db" in done.stderr
    assert f"stepflow resume {run_id}" in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads(place.cli("resume").stdout)["outcome"] == "success"


# --- on a terminal -------------------------------------------------------------------------------------------------


def on_terminal(place: Place, *args: str) -> tuple[int, str]:
    """Run a command on a terminal of its own; return its exit code and all that the terminal got."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "stepflow.cli", *args],
        cwd=place.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"},
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    shown = b""
    try:
        while True:
            try:
                chunk = os.read(master, 65536)
            except OSError as error:
                if error.errno == errno.EIO:  # how Linux says that the other end is closed
                    break
                raise
            if not chunk:
                break
            shown += chunk
        return process.wait(timeout=20), shown.decode()
    finally:
        process.kill()
        process.wait()
        os.close(master)


def test_a_terminal_shows_the_steps_live_and_is_left_as_it_was(place: Place) -> None:
    code, shown = on_terminal(place, "run", "--flow", "gated.yaml", "--input-json", "1")
    assert code == 0, shown
    last = shown.rpartition("\x1b[2K")[2]
    assert re.search(r"done[^\n]*first", last)
    assert re.search(r"done[^\n]*second", last)
    assert "2 steps done" in last
    assert last.rindex("\x1b[?25h") > last.rindex("second")  # the cursor is back


def test_a_terminal_shows_the_progress_of_a_batch(place: Place) -> None:
    place.write("items.jsonl", '{"text": "t"}\n' * 3)
    code, shown = on_terminal(place, "run", "--flow", "echo.yaml", "--inputs", "items.jsonl")
    assert code == 0, shown
    assert "━━━" in shown
    assert "3/3 items" in shown


def test_a_terminal_without_input_is_told_what_the_flow_wants(place: Place) -> None:
    code, shown = on_terminal(place, "run", "--flow", "echo.yaml")
    assert code == 2
    assert "text  (string, required)" in shown
    assert not place.run_ids()


def test_texts_of_servers_cannot_control_a_terminal(place: Place) -> None:
    server = ROOT / "tests" / "data" / "servers" / "odd_texts.py"
    plugin = {"type": "stepflow", "transport": "stdio", "command": sys.executable, "args": [str(server)]}
    plugin["env"] = {"PYTHONPATH": str(ROOT)}
    config = {"plugins": {"odd": plugin}, "routes": {"/odd": [{"plugin": "odd"}]}}
    place.write("stepflow-config.yml", json.dumps(config))
    place.write("odd.yaml", "steps: [{id: a, component: /odd/odd, input: {text: x}}]\noutput: {$step: a}\n")

    offered = place.cli("list-components", "--schemas", "false")
    ran = place.cli("--log-level", "debug", "run", "--flow", "odd.yaml")
    run_id = listed(place)[0]["run_id"]
    shown = [offered.stdout, offered.stderr, ran.stderr, place.cli("runs", "get", run_id).stdout]
    assert r"\x1b[2J" in offered.stdout
    assert all(r"\x1b[2J" in text for text in shown if "Odd" in text or "failed" in text)
    for text in shown:
        assert all(character.isprintable() or character in "\n\t" for character in text), repr(text)
