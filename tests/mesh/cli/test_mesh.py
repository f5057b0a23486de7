"""The commands that talk to a mesh: submit, runs, flows, components, cluster; against one real mesh."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import pytest
from support import free_port, run_cli, wait_until
from support.dev import Dev, dev_mesh, running

from stepflow.cli.remote import tls_from_environment
from stepflow.errors import Invalid

if TYPE_CHECKING:
    from collections.abc import Iterator

FLOWS = {
    "ask.yaml": """
name: ask
schemas:
  properties:
    input: {type: object, required: [question], properties: {question: {type: string}}}
    variables: {type: object, properties: {tone: {type: string, default: kind, env_var: TONE}}}
steps:
  - {id: ask, component: /builtin/create_messages,
     input: {user_prompt: {$input: question}, system_instructions: {$variable: tone}}}
output: {$step: ask, path: messages}
""",
    "long.yaml": """
name: long
steps:
  - {id: quick, component: /builtin/create_messages, input: {user_prompt: x}}
  - {id: nap, component: /builtin/sleep, input: {duration_ms: 60000}}
output: [{$step: quick}, {$step: nap}]
""",
    "fails.yaml": """
name: fails
steps:
  - {id: bad, component: /builtin/create_messages, input: {user_prompt: {$input: no.such.path}}}
output: {$step: bad}
""",
}


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    folder = tmp_path_factory.mktemp("mesh")
    for name, text in FLOWS.items():
        (folder / name).write_text(text)
    with dev_mesh(folder, "--executors", "2") as dev:
        yield dev


def begin(mesh: Dev, flow: str = "long.yaml") -> str:
    """Submit a flow that takes long, and return the run's id."""
    done = mesh.cli("submit", "--flow", flow, "--input-json", "{}", "--no-wait")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def status(mesh: Dev, run_id: str) -> str:
    return str(mesh.json("runs", "get", run_id)["status"])


def test_the_id_of_a_run_is_told_although_stdout_does_not_take_it(mesh: Dev) -> None:
    command = [
        sys.executable,
        "-m",
        "stepflow.cli",
        "submit",
        "--flow",
        "long.yaml",
        "--input-json",
        "{}",
        "--no-wait",
        "-q",
    ]
    environ = {**mesh.environ(), "STEPFLOW_SERVER": mesh.server}
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            command,
            cwd=mesh.folder,
            env=environ,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    run_id = done.stderr.split("run_id: ")[1].split()[0]
    assert status(mesh, run_id) in ("queued", "running")
    assert mesh.cli("runs", "cancel", run_id).returncode == 0


# --- submit ------------------------------------------------------------------------------------------------------


def test_a_submitted_flow_prints_its_result_and_shows_its_steps(mesh: Dev) -> None:
    done = mesh.cli("submit", "--flow", "ask.yaml", "--input-json", '{"question": "why?"}')
    messages = [{"role": "system", "content": "kind"}, {"role": "user", "content": "why?"}]
    assert done.returncode == 0
    assert json.loads(done.stdout) == {"outcome": "success", "result": messages}
    assert "run_id: " in done.stderr
    assert "done    ask" in done.stderr
    assert "completed after" in done.stderr


def test_submit_takes_variables_and_overrides_as_run_does(mesh: Dev) -> None:
    change = json.dumps({"steps": {"ask": {"value": {"input": {"user_prompt": "else"}}}}})
    asked = ("submit", "-q", "--flow", "ask.yaml", "--input-json", '{"question": "why?"}')
    done = mesh.cli(*asked, "--variables-json", '{"tone": "terse"}')
    assert json.loads(done.stdout)["result"][0] == {"role": "system", "content": "terse"}
    done = mesh.cli(*asked, "--overrides-json", change)
    assert json.loads(done.stdout)["result"][1] == {"role": "user", "content": "else"}


def test_a_batch_prints_a_line_per_item_in_the_order_of_the_inputs(mesh: Dev) -> None:
    (mesh.folder / "items.jsonl").write_text("".join(f'{{"question": "{n}"}}\n' for n in range(150)))
    done = mesh.cli("submit", "--flow", "ask.yaml", "--inputs", "items.jsonl", "--output", "results.jsonl")
    assert (done.returncode, done.stdout) == (0, "")
    assert "150 of 150 items completed" in done.stderr
    results = [json.loads(line) for line in (mesh.folder / "results.jsonl").read_text().splitlines()]
    assert [result["result"][1]["content"] for result in results] == [str(n) for n in range(150)]


def test_submit_with_json_gives_the_run_and_its_results(mesh: Dev) -> None:
    tree = mesh.json("submit", "--flow", "ask.yaml", "--input-json", '{"question": "why?"}')
    assert tree["status"] == "completed"
    assert tree["flow_name"] == "ask"
    assert (tree["items_total"], tree["items_completed"]) == (1, 1)
    assert [result["outcome"] for result in tree["results"]] == ["success"]


def test_a_failed_flow_ends_with_1_and_its_failure(mesh: Dev) -> None:
    done = mesh.cli("submit", "--flow", "fails.yaml", "--input-json", "{}")
    assert done.returncode == 1
    assert json.loads(done.stdout)["outcome"] == "failed"
    assert "EXPRESSION_FAILURE" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_same_run_id_again_makes_no_second_run(mesh: Dev) -> None:
    asked = ("submit", "--flow", "ask.yaml", "--input-json", '{"question": "why?"}', "--run-id", str(uuid4()))
    first, second = mesh.json(*asked), mesh.json(*asked)
    assert first == second
    other = mesh.cli(*asked[:-3], '{"question": "what?"}', *asked[-2:])
    assert other.returncode == 2
    assert "error[RUN_EXISTS]" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "returncode", "text"),
    [
        (["--flow", "missing.yaml"], 2, "missing.yaml"),
        (["--flow", "ask.yaml"], 2, "question"),
        (["ask.yaml", "--input", "{}"], 2, "question"),
        (["ask.yaml", "--input", "{"], 2, "--input"),
        (["no-such-flow", "--input", "{}"], 2, "error[FLOW_NAME_NOT_FOUND]"),
        (["ask.yaml", "--input", '{"question": "x"}', "--key", str(UUID(int=0))], 2, "error[RUN_ID_INVALID]"),
        (["ask.yaml", "--input", "{}", "--output", "x.txt"], 2, "x.txt"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_is_wrong_with_a_submission_is_said_without_a_run(
    mesh: Dev, arguments: list[str], returncode: int, text: str
) -> None:
    done = mesh.cli("submit", *arguments)
    assert done.returncode == returncode, done.stderr
    assert text in done.stderr
    assert done.stdout == ""
    assert "run_id:" not in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_lets_the_run_go_on_and_says_how_to_come_back(mesh: Dev) -> None:
    with running(mesh, "submit", "--flow", "long.yaml", "--input-json", "1") as submit:
        wait_until(lambda: "done    quick" in submit.said, "the run is under way", 20)
        submit.signal(signal.SIGINT)
        assert submit.wait() == 130
    run_id = submit.said.split("run_id: ")[1].split()[0]
    assert f"follow it again with: stepflow runs watch {run_id}" in submit.said
    assert "Traceback" not in submit.said
    assert status(mesh, run_id) == "running"
    with running(mesh, "runs", "watch", run_id) as watch:
        wait_until(lambda: "done    quick" in watch.said, "the past is shown", 20)
        assert mesh.cli("runs", "cancel", run_id).returncode == 0
        assert watch.wait() == 1
        assert watch.process.stdout is not None
        assert json.loads(watch.process.stdout.read())["error"]["code"] == "CANCELLED"
    assert "cancelled after" in watch.said


def test_a_second_ctrl_c_cancels_the_run(mesh: Dev) -> None:
    with running(mesh, "submit", "--flow", "long.yaml", "--input-json", "1") as submit:
        wait_until(lambda: "done    quick" in submit.said, "the run is under way", 20)
        submit.signal(signal.SIGINT)
        wait_until(lambda: "Ctrl-C again" in submit.said, "it says what a second one does", 20)
        wait_until(lambda: "cancelling" in submit.said or submit.signal(signal.SIGINT), "a second one is heard")
        assert submit.wait() == 130
    run_id = submit.said.split("run_id: ")[1].split()[0]
    assert f"run {run_id} has ended: cancelled" in submit.said
    assert status(mesh, run_id) == "cancelled"


def test_one_ctrl_c_seen_twice_does_not_cancel_the_run(mesh: Dev) -> None:
    with running(mesh, "submit", "--flow", "long.yaml", "--input-json", "1") as submit:
        wait_until(lambda: "done    quick" in submit.said, "the run is under way", 20)
        submit.signal(signal.SIGINT)
        submit.signal(signal.SIGTERM)  # not another SIGINT: the two might reach the process as one
        assert submit.wait() == 130
    run_id = submit.said.split("run_id: ")[1].split()[0]
    assert "cancelling" not in submit.said
    assert status(mesh, run_id) == "running"
    assert mesh.cli("runs", "cancel", run_id).returncode == 0


def test_a_terminated_submit_lets_go_at_once(mesh: Dev) -> None:
    with running(mesh, "submit", "--flow", "long.yaml", "--input-json", "1") as submit:
        wait_until(lambda: "done    quick" in submit.said, "the run is under way", 20)
        submit.signal(signal.SIGTERM)
        assert submit.wait() == 143
    assert "Ctrl-C again" not in submit.said
    run_id = submit.said.split("run_id: ")[1].split()[0]
    assert mesh.cli("runs", "cancel", run_id).returncode == 0


# --- runs --------------------------------------------------------------------------------------------------------


def test_runs_are_listed_read_and_deleted(mesh: Dev) -> None:
    run_id = mesh.json("submit", "--flow", "ask.yaml", "--input-json", '{"question": "q"}')["run_id"]
    listed = mesh.json("runs", "list", "--status", "completed")["runs"]
    assert run_id in [run["run_id"] for run in listed]
    assert all(run["status"] == "completed" for run in listed)
    assert len(mesh.json("runs", "list", "--limit", "1")["runs"]) == 1
    got = mesh.json("runs", "get", run_id[:32], "--steps")
    assert got["items"][0]["result"]["outcome"] == "success"
    assert [step["step_id"] for step in got["steps"]] == ["ask"]
    steps = mesh.json("runs", "steps", run_id)
    assert steps["run_id"] == run_id
    assert steps["steps"][0].keys() == {
        "run_id", "item", "step_id", "component", "depth", "status", "attempt", "retries", "started_at_ms",
        "completed_at_ms", "duration_ms", "path", "skipped_for", "result",
    }  # fmt: skip
    table = mesh.cli("runs", "list").stdout
    assert table.startswith("RUN_ID")
    assert run_id in table
    assert "create_messages" in mesh.cli("runs", "get", run_id, "--steps").stdout
    assert mesh.json("runs", "delete", run_id) == {"run_ids": [run_id]}
    gone = mesh.cli("runs", "get", run_id)
    assert gone.returncode == 2
    assert "error[RUN_NOT_FOUND]" in gone.stderr


def test_a_run_that_has_not_ended_is_deleted_by_force_only(mesh: Dev) -> None:
    run_id = begin(mesh)
    refused = mesh.cli("runs", "delete", run_id)
    assert refused.returncode == 1
    assert "error[RUN_NOT_ENDED]" in refused.stderr
    assert mesh.cli("runs", "delete", run_id, "--force").returncode == 0
    assert mesh.cli("runs", "show", run_id).returncode == 2


def test_a_run_is_named_by_its_end_its_beginning_or_as_the_last(mesh: Dev) -> None:
    asked = ("submit", "ask.yaml", "--input", '{"question": "q"}', "--key", f"order {uuid4()}", "--label", "for=Ada")
    run_id = mesh.json(*asked)["run_id"]
    assert mesh.json(*asked)["run_id"] == run_id, "the key makes one run"
    for name in (run_id, run_id[-8:], run_id[:-1], "last"):
        shown = mesh.json("runs", "show", name)
        assert (shown["run_id"], shown["labels"]["for"]) == (run_id, "Ada")
    assert [step["step_id"] for step in shown["steps"]] == ["ask"]
    assert "labels: for=Ada" in mesh.cli("runs", "show", "last").stdout

    filters = ("runs", "list", "--flow", "ask", "--since", "1h", "--label", "batch=false", "--label")
    assert [run["run_id"] for run in mesh.json(*filters, "for=Ada")["runs"]] == [run_id]
    assert mesh.json(*filters, "for=Eve") == {"runs": []}
    unknown = mesh.cli("runs", "show", "ffff")
    assert (unknown.returncode, "error[RUN_NOT_FOUND]" in unknown.stderr) == (2, True)


def test_a_timeout_ends_the_command_and_not_the_run(mesh: Dev) -> None:
    done = mesh.cli("submit", "long.yaml", "--input", "-", "--timeout", "1.5s", input="1")
    assert (done.returncode, done.stdout) == (124, "")
    run_id = done.stderr.split("run_id: ")[1].split()[0]
    assert f"follow it again with: stepflow runs watch {run_id}" in done.stderr
    assert status(mesh, run_id) == "running"
    assert mesh.cli("runs", "cancel", run_id).returncode == 0


def test_watch_with_json_prints_every_event_on_a_line(mesh: Dev) -> None:
    run_id = mesh.json("submit", "--flow", "ask.yaml", "--input-json", '{"question": "q"}')["run_id"]
    done = mesh.cli("runs", "watch", run_id, "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0
    assert [event["kind"] for event in events] == ["run_adopted", "step_completed", "item_completed", "run_ended"]
    assert events[1]["step_id"] == "ask"
    assert events[-1]["run"]["status"] == "completed"
    assert "why" not in done.stdout, "values are not shown"


def test_cancel_ends_runs_and_says_so(mesh: Dev) -> None:
    ids = [begin(mesh), begin(mesh)]
    tree = mesh.json("runs", "cancel", *ids)
    assert [(run["run_id"], run["status"]) for run in tree["runs"]] == [(run_id, "cancelled") for run_id in ids]
    assert mesh.json("runs", "cancel", ids[0])["runs"][0]["status"] == "cancelled", "again changes nothing"


def test_a_named_store_is_read_whatever_the_environment_says(mesh: Dev) -> None:
    done = mesh.cli("runs", "list", "--store", "elsewhere")
    assert done.returncode == 0
    assert "no runs in" in done.stderr
    assert "elsewhere" in done.stderr


# --- flows, components, cluster ----------------------------------------------------------------------------------


def test_flows_are_stored_listed_read_run_and_forgotten(mesh: Dev) -> None:
    text = FLOWS["ask.yaml"].replace("name: ask", "name: kept")
    (mesh.folder / "kept.yaml").write_text(text)
    stored = mesh.json("flows", "store", "--flow", "kept.yaml", "--label", "live")
    assert (stored["name"], stored["version"], stored["label"]) == ("kept", 1, "live")
    (mesh.folder / "kept.yaml").write_text(text.replace("default: kind", "default: curt"))
    assert mesh.cli("flows", "store", "--flow", "kept.yaml").returncode == 0
    (flow,) = mesh.json("flows", "list", "kept")["flows"]
    assert [(version["version"], version["labels"]) for version in flow["versions"]] == [(1, ["live"]), (2, [])]
    assert "kept" in mesh.cli("flows", "list").stdout
    assert "user_prompt" in mesh.cli("flows", "show", "kept@live").stdout
    asked = ("--input-json", '{"question": "q"}')
    assert mesh.json("submit", "--flow", "kept@live", *asked)["results"][0]["result"][0]["content"] == "kind"
    assert mesh.json("submit", "--flow", "kept", *asked)["results"][0]["result"][0]["content"] == "curt"
    assert mesh.json("submit", "--flow", stored["flow_id"], *asked)["flow_id"] == stored["flow_id"]
    here = mesh.cli("run", "kept@1", *asked, "-q")
    assert json.loads(here.stdout)["result"][0]["content"] == "kind", "a stored flow runs on this machine, too"
    assert mesh.json("flows", "delete", "kept@live") == {"name": "kept", "label": "live"}
    assert "error[LABEL_NOT_FOUND]" in mesh.cli("flows", "get", "kept@live").stderr
    assert mesh.cli("flows", "delete", "kept").returncode == 0
    assert mesh.json("flows", "list", "kept") == {"flows": []}


def test_the_flows_of_a_folder_are_stored_together_after_a_dry_run_and_a_check_of_all(mesh: Dev) -> None:
    folder = mesh.folder / "flows"
    (folder / "deep").mkdir(parents=True)
    (folder / "stepflow-config.yml").write_text("plugins: {b: {type: builtin}}\nroutes: {}\n")
    for name, output in (("a.yaml", "1"), ("deep/b.json", "2"), ("c.yaml", "3")):
        (folder / name).write_text(f'{{"name": "many-{name[-6]}", "output": {output}}}')
    same = (folder / "a.yaml").read_text()
    (folder / "deep/d.yml").write_text(same.replace("1", "4"))

    def stored(*options: str) -> list[tuple[str, int, str]]:
        tree = mesh.json("flows", "store", "flows", "--tag", "all", *options)
        assert (tree["stored"], tree["left_out"]) == ("--dry-run" not in options, ["flows/stepflow-config.yml"])
        return [(flow["flow"], flow["version"], flow["change"]) for flow in tree["flows"]]

    planned = stored("--dry-run")
    assert mesh.json("flows", "list", "many-") == {"flows": []}
    assert stored() == planned
    assert [(flow, version, change) for flow, version, change in stored("--dry-run") if change != "unchanged"] == []

    (folder / "c.yaml").write_text("name: many-c\noutput: {$step: nowhere}\n")
    (folder / "a.yaml").write_text(same.replace("1", "5"))
    refused = mesh.cli("flows", "store", "flows")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "=== flows/c.yaml ===" in refused.stderr
    assert "nothing was stored: 1 of 4 flows cannot be stored" in refused.stderr
    assert [len(flow["versions"]) for flow in mesh.json("flows", "list", "many-")["flows"]] == [2, 1, 1]


def test_a_version_is_named_by_its_number_and_a_moved_label_and_an_old_version_are_told(mesh: Dev) -> None:
    for greeting in ("one", "two"):
        (mesh.folder / f"{greeting}.yaml").write_text(f"name: numbered\noutput: {greeting}\n")
    store = ("flows", "store", "--label", "live", "--flow")
    assert "warning" not in mesh.cli(*store, "one.yaml").stderr
    assert "the tag live was on version 1 and is now on version 2" in mesh.cli(*store, "two.yaml").stderr
    again = mesh.cli("flows", "store", "--flow", "one.yaml")
    assert "version 2 remains the newest; name this one as numbered@1" in again.stderr
    asked = ("submit", "-q", "--input-json", "{}", "--flow")
    named = {name: json.loads(mesh.cli(*asked, name).stdout)["result"] for name in ("numbered", "numbered@1")}
    assert named == {"numbered": "two", "numbered@1": "one"}
    unknown = mesh.cli(*asked, "numbered@3")
    assert "error[LABEL_NOT_FOUND]" in unknown.stderr
    assert "its labels are live, its versions 1, 2" in unknown.stderr


def test_a_flow_that_cannot_run_is_not_stored(mesh: Dev) -> None:
    (mesh.folder / "broken.yaml").write_text("name: broken\noutput: {$step: nowhere}\n")
    done = mesh.cli("flows", "store", "--flow", "broken.yaml")
    assert done.returncode == 1
    assert "nowhere" in done.stderr
    assert mesh.json("flows", "list", "broken") == {"flows": []}


def test_components_of_the_hosts_are_listed(mesh: Dev) -> None:
    listed = mesh.json("components", "list", "--plugin", "builtin")["components"]
    created = next(component for component in listed if component["path"] == "/create_messages")
    assert created.keys() >= {"plugin", "component", "path", "description", "input_schema", "hosts"}
    assert len(created["hosts"]) == 1
    assert "/create_messages" in mesh.cli("components", "list").stdout


def test_the_cluster_is_shown(mesh: Dev) -> None:
    tree = mesh.json("cluster", "status")
    assert tree["leader_id"]
    assert len(tree["executors"]) == 2
    assert [plugin["state"] for host in tree["hosts"] for plugin in host["plugins"]] == ["ready"]
    shown = mesh.cli("cluster", "status").stdout
    for name in ("executor-1", "executor-2", "host-1", "leader"):
        assert name in shown


def test_a_drained_executor_gives_its_runs_away_and_the_run_goes_on(mesh: Dev) -> None:
    run_id = begin(mesh)
    busy = wait_until(
        lambda: next((e for e in mesh.json("cluster", "status")["executors"] if e["runs"]), None), "somebody owns it"
    )
    done = mesh.cli("cluster", "drain", busy["executor_id"])
    assert done.returncode == 0, done.stderr

    def moved() -> bool:
        executors = {e["executor_id"]: e for e in mesh.json("cluster", "status")["executors"]}
        others = [e for name, e in executors.items() if name != busy["executor_id"]]
        return any(e["runs"] for e in others)

    wait_until(moved, "the other one owns the run", 20)
    assert status(mesh, run_id) == "running"
    assert mesh.cli("runs", "cancel", run_id).returncode == 0
    nobody = mesh.cli("cluster", "drain", "nobody")
    assert nobody.returncode == 2
    assert "error[DRAIN_TARGET_NOT_FOUND]" in nobody.stderr


# --- this machine ------------------------------------------------------------------------------------------------


def test_runs_of_this_machine_are_shown_and_deleted_without_a_mesh(tmp_path: Path) -> None:
    (tmp_path / "ask.yaml").write_text(FLOWS["ask.yaml"])
    (tmp_path / "long.yaml").write_text(FLOWS["long.yaml"])
    asked = ["run", "--flow", "ask.yaml", "--input-json", '{"question": "q"}']
    assert run_cli(asked, cwd=tmp_path).returncode == 0
    local = Dev(tmp_path)
    with running(local, "run", "--flow", "long.yaml", "--input-json", "1") as run:
        wait_until(lambda: "done    quick" in run.said, "the run is under way", 20)
        run.signal(signal.SIGINT)
        assert run.wait() == 130
    runs = json.loads(run_cli(["runs", "list", "--json"], cwd=tmp_path).stdout)["runs"]
    ids = {entry["status"]: entry["run_id"] for entry in runs}
    assert ids.keys() == {"interrupted", "completed"}
    assert len(json.loads(run_cli(["runs", "list", "--json", "--limit", "1"], cwd=tmp_path).stdout)["runs"]) == 1
    steps = json.loads(run_cli(["runs", "steps", ids["completed"], "--json"], cwd=tmp_path).stdout)["steps"]
    assert [(step["step_id"], step["status"]) for step in steps] == [("ask", "completed")]
    refused = run_cli(["runs", "delete", ids["interrupted"]], cwd=tmp_path)
    assert refused.returncode == 1
    assert "error[RUN_NOT_ENDED]" in refused.stderr
    assert "stepflow resume" in refused.stderr
    assert run_cli(["runs", "delete", ids["interrupted"], "--force"], cwd=tmp_path).returncode == 0
    assert run_cli(["runs", "delete", ids["completed"]], cwd=tmp_path).returncode == 0
    assert json.loads(run_cli(["runs", "list", "--json"], cwd=tmp_path).stdout) == {"runs": []}
    assert list((tmp_path / ".stepflow" / "runs").iterdir()) == []


def test_tls_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CA", "CERT", "KEY"):
        monkeypatch.delenv(f"STEPFLOW_TLS_{name}", raising=False)
    assert tls_from_environment() is None
    monkeypatch.setenv("STEPFLOW_TLS_CA", "ca.pem")
    found = tls_from_environment()
    assert found is not None
    assert (str(found.ca), found.cert, found.key) == ("ca.pem", None, None)
    monkeypatch.setenv("STEPFLOW_TLS_CERT", "cert.pem")
    with pytest.raises(Invalid) as caught:
        tls_from_environment()
    assert caught.value.reason == "TLS_INVALID"


# --- no mesh -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", [["cluster", "status"], ["runs", "list"], ["flows", "list"], ["runs", "watch", "x"]]
)
def test_where_no_mesh_is_the_way_to_one_is_told(command: list[str]) -> None:
    server = f"localhost:{free_port()}"
    done = run_cli([*command, "--server", server])
    assert done.returncode == 3
    assert "error[SERVER_UNAVAILABLE]" in done.stderr
    assert server in done.stderr
    assert "`stepflow dev`" in done.stderr
    assert "Traceback" not in done.stderr
