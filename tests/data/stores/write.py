"""Write the stores of a checkout into a folder: see README.md beside this file.

    PYTHONPATH=CHECKOUT ETCD_BIN=ETCD python -P tests/data/stores/write.py CHECKOUT tests/data/stores/VERSION

Only commands of that checkout write and read the stores here; this script starts and kills them.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import urllib.request
import zlib
from pathlib import Path
from typing import Any

HOME = Path("/tmp/shop")
"""Where the runs are begun: their records name the configuration by its path."""

PORT = "7849"

CONFIG = """\
plugins:
  builtin: {type: builtin}
  gated:
    type: stepflow
    command: $GATED_PYTHON
    args: [$GATED_SERVER]
    env: {GATED_FOLDER: $GATED_FOLDER, PYTHONPATH: $GATED_PATH}
routes:
  /gated: [{plugin: gated}]
  /builtin: [{plugin: builtin}]
"""


def step(step_id: str, component: str, input: Any = None, **more: Any) -> dict[str, Any]:
    return {"id": step_id, "component": component, "input": input, **more}


def of(step_id: str, path: str = "") -> dict[str, Any]:
    return {"$step": step_id, "path": path} if path else {"$step": step_id}


def work(step_id: str, input: Any = None, **more: Any) -> dict[str, Any]:
    return step(step_id, "/gated/work", input, **more)


def flow(name: str, output: Any, *steps: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "description": name, "steps": list(steps), "output": output}


IN = {"$input": "$"}
RETRY = {"action": "retry", "maxRetries": 4, "backoff": {"type": "constant", "delayMs": 20}}
INNER = {"steps": [work("one", IN), work("two", of("one"))], "output": of("two")}
COUNT = {
    "steps": [work("n", IN)],
    "output": {
        "$if": {"$coalesce": [{"$input": "last"}, False]},
        "then": {"result": of("n")},
        "else": {"next": {"n": of("n"), "last": True}},
    },
}

FLOWS = {
    name: flow(name, *rest)
    for name, *rest in (
        ("chain", of("c"), work("a", IN), work("b", of("a")), work("c", of("b"))),
        ("picky", of("a"), work("a", {"$input": "value"})),
        ("refused", of("a"), step("a", "/gated/refuse")),
        ("retried", of("a"), step("a", "/gated/flaky", {"value": IN}, onError=RETRY)),
        ("default", of("a"), step("a", "/gated/refuse", onError={"action": "useDefault", "defaultValue": 7})),
        (
            "mapped",
            [of("m", "results"), of("end")],
            step("m", "/builtin/map", {"workflow": {"$literal": INNER}, "items": [1, 2, 3], "max_concurrency": 2}),
            work("end", of("m", "successful")),
        ),
        (
            "evaluated",
            of("e"),
            step("put", "/builtin/put_blob", {"data": {"$literal": INNER}, "blob_type": "flow"}),
            step("value", "/builtin/put_blob", {"data": IN, "blob_type": "data"}),
            step("e", "/builtin/eval", {"flow_id": of("put", "blob_id"), "input": of("value", "blob_id")}),
        ),
        (
            "iterated",
            of("i"),
            step("i", "/builtin/iterate", {"flow": {"$literal": COUNT}, "initial_input": {"n": 5}}),
        ),
        (
            "slept",
            of("b"),
            work("a", IN),
            step("nap", "/builtin/sleep", {"duration_ms": {"$input": "ms"}, "passthrough": of("a")}),
            work("b", of("nap", "passthrough")),
        ),
        (
            "signalled",
            of("b"),
            work("a", IN),
            step("wait", "/builtin/wait_for_signal", {"name": "go", "after": of("a")}),
            work("b", of("wait", "payload")),
        ),
        ("large", of("c"), work("a", IN), work("b", of("a")), work("c", of("b", "of.of.n"))),
    )
}

LARGE = {"n": 1, "text": "a long text, again and again. " * 1500}


class Place:
    """A folder of the runs, with the commands of the checkout."""

    def __init__(self, checkout: Path) -> None:
        self.checkout = checkout
        self.gate = HOME / "gate"

    def prepare(self) -> None:
        shutil.rmtree(HOME, ignore_errors=True)
        self.gate.mkdir(parents=True)
        (HOME / "stepflow-config.yml").write_text(CONFIG)
        for name, tree in FLOWS.items():
            (HOME / f"{name}.json").write_text(json.dumps(tree))

    def environ(self) -> dict[str, str]:
        return {
            **os.environ,
            "GATED_PYTHON": sys.executable,
            "GATED_SERVER": str(self.checkout / "tests/data/servers/gated.py"),
            "GATED_FOLDER": str(self.gate),
            "GATED_PATH": str(self.checkout),
            "STEPFLOW_SERVER": f"127.0.0.1:{PORT}",
        }

    def start(self, *args: str, out: Any = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", "-m", "stepflow.cli", *args]
        log = (HOME / "log").open("ab")
        return subprocess.Popen(command, cwd=HOME, env=self.environ(), stdin=subprocess.DEVNULL, stdout=out, stderr=log)

    def cli(self, *args: str, code: int | None = 0, local: bool = False) -> str:
        environ = self.environ()
        if local:
            del environ["STEPFLOW_SERVER"]
        command = [sys.executable, "-P", "-m", "stepflow.cli", *args]
        done = subprocess.run(
            command, cwd=HOME, env=environ, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
        )
        assert code in (None, done.returncode), (args, done.returncode, done.stdout, done.stderr)
        return done.stdout

    def json(self, *args: str, local: bool = False) -> Any:
        return json.loads(self.cli(*args, "--json", local=local))

    # --- the gate ---

    def ledger(self) -> list[str]:
        path = self.gate / "ledger"
        return path.read_text().splitlines() if path.exists() else []

    def allow(self, more: int | None) -> None:
        """Let that many executions end from now on; None: all."""
        path = self.gate / "allowed"
        if more is None:
            path.unlink(missing_ok=True)
        else:
            new = path.with_suffix(".new")
            new.write_text(str(len(self.ledger()) + more))
            new.replace(path)

    def wait_for(self, more: int, since: int) -> None:
        until(lambda: len(self.ledger()) >= since + more, f"{more} executions")


def until(found: Any, what: str, timeout_s: float = 30.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (value := found()):
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.02)
    return value


# --- embedded ---------------------------------------------------------------------------------------------------------


def run_ids() -> set[str]:
    return {path.stem for path in (HOME / ".stepflow" / "runs").glob("*.db")}


def embedded(place: Place, out: Path) -> None:
    place.prepare()
    names: dict[str, str] = {}

    def run(title: str, name: str, *args: str, code: int = 0) -> None:
        before = run_ids()
        place.cli("run", "--flow", f"{name}.json", *args, code=code, local=True)
        (names[title],) = run_ids() - before

    def interrupted(title: str, name: str, allowed: int, begun: int, *args: str) -> None:
        """Kill a run once `begun` executions have begun, of which `allowed` may end."""
        before, since = run_ids(), len(place.ledger())
        place.allow(allowed)
        process = place.start("run", "--flow", f"{name}.json", *args)
        place.wait_for(begun, since)
        time.sleep(0.5)  # what has ended is journaled
        process.kill()
        process.wait()
        time.sleep(0.5)  # its servers end
        place.allow(None)
        (names[title],) = run_ids() - before

    (HOME / "items.jsonl").write_text('{"value": 1}\n{"other": 2}\n{"value": 3}\n')
    (HOME / "large-input.json").write_text(json.dumps(LARGE))
    (HOME / "many.jsonl").write_text("".join(f"{n}\n" for n in range(70)))
    run("success", "chain", "--input-json", "1")
    run("failed item", "picky", "--inputs", "items.jsonl", code=1)
    run("failed", "refused", "--input-json", "{}", code=1)
    run("retried", "retried", "--input-json", "5")
    run("default", "default", "--input-json", "{}")
    run("mapped", "mapped", "--input-json", "{}")
    run("evaluated", "evaluated", "--input-json", "[1]")
    run("iterated", "iterated", "--input-json", "{}")
    run("slept", "slept", "--input-json", '{"ms": 50}')
    run("large", "large", "--input", "large-input.json")
    run("two partitions", "picky", "--inputs", "many.jsonl", "--no-validate-input", code=1)
    interrupted("interrupted in a step", "chain", 1, 2, "--input-json", '{"n": 1}')
    interrupted("interrupted in a map", "mapped", 3, 5, "--input-json", "{}")
    interrupted("interrupted in a batch", "chain", 4, 7, "--inputs", "items.jsonl", "--max-concurrency", "3")
    interrupted("interrupted asleep", "slept", 1, 1, "--input-json", '{"ms": 3000}')
    interrupted("interrupted while it waits", "signalled", 1, 1, "--input-json", "{}")
    interrupted("interrupted with large values", "large", 1, 2, "--input", "large-input.json")
    place.cli(
        "runs", "signal", names["interrupted while it waits"], "go", "--payload-json", '{"by": "Ada"}', local=True
    )

    # Databases may not change any more: reading may move the write-ahead log into the database.
    files = [*sorted((HOME / ".stepflow").rglob("*")), HOME / "stepflow-config.yml", place.gate / "ledger"]
    pack(out / "embedded.tar.xz", [path for path in files if path.is_file() and not path.name.endswith("-shm")])
    golden: dict[str, Any] = {"names": names, "list": place.json("runs", "list", local=True), "runs": {}, "ends": {}}
    for title, run_id in names.items():
        # Version 0.1.0 could not list the steps of a local run with large results.
        steps = () if "large" in title else ("--steps",)
        golden["runs"][run_id] = place.json("runs", "get", run_id, *steps, local=True)
    for title, run_id in names.items():
        if title.startswith("interrupted"):
            lines = place.cli("resume", run_id, local=True).splitlines()
            golden["ends"][run_id] = [json.loads(line) for line in lines]
    write_json(out / "embedded.json", golden)


def pack(path: Path, files: list[Path]) -> None:
    with tarfile.open(path, "w:xz", preset=9) as archive:
        for file in files:
            data = file.read_bytes()
            info = tarfile.TarInfo(file.relative_to(HOME).as_posix())
            info.size, info.mode = len(data), 0o600
            archive.addfile(info, io.BytesIO(data))


def write_json(path: Path, tree: Any) -> None:
    path.write_text(json.dumps(tree, indent=1, sort_keys=True) + "\n", encoding="utf-8")


# --- mesh -------------------------------------------------------------------------------------------------------------


class Dev:
    """A `stepflow dev` of the checkout."""

    def __init__(self, place: Place) -> None:
        out = HOME / "dev.out"
        self.process = place.start(
            "dev", "--json", "--port", PORT, "--config", "stepflow-config.yml", out=out.open("wb")
        )
        until(lambda: out.read_text().endswith("\n"), "the mesh is ready", 90)

    def pid(self, service: str) -> int:
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    words = (entry / "cmdline").read_bytes().decode().split("\0")
                except (OSError, UnicodeDecodeError):
                    continue
                if service in words and any(str(HOME) in word for word in words):
                    return int(entry.name)
        raise AssertionError(f"no {service}")

    def etcd(self) -> str:
        words = Path(f"/proc/{self.pid('executor')}/cmdline").read_bytes().decode().split("\0")
        return words[words.index("--etcd") + 1]

    def kill(self, *services: str) -> None:
        """Kill everything at once."""
        pids = [self.pid(service) for service in services]
        self.process.kill()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        self.process.wait()
        time.sleep(1)


def etcd_call(address: str, path: str, **body: Any) -> Any:
    request = urllib.request.Request(
        f"http://{address}/v3/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as reply:  # noqa: S310  # an etcd of this script
        return json.load(reply)


def dump(address: str) -> dict[str, Any]:
    """Return all keys in the order of their creation. Values as base64 of zlib; `lease` where one holds the key."""
    everything = base64.b64encode(b"\0").decode()
    reply = etcd_call(address, "kv/range", key=everything, range_end=everything)
    found = sorted(reply["kvs"], key=lambda item: int(item["create_revision"]))
    return {
        "revision": int(reply["header"]["revision"]),
        "keys": [
            {
                "key": base64.b64decode(item["key"]).decode(),
                "value": base64.b64encode(zlib.compress(base64.b64decode(item.get("value", "")), 9)).decode(),
                "revision": int(item["create_revision"]),
                "lease": "lease" in item,
            }
            for item in found
        ],
    }


def mesh(place: Place, out: Path) -> None:
    place.prepare()
    (HOME / "items.jsonl").write_text('{"value": 1}\n{"other": 2}\n{"value": 3}\n')
    (HOME / "large-input.json").write_text(json.dumps(LARGE))
    (HOME / "many.jsonl").write_text("".join(f'{{"value": {n}}}\n' for n in range(130)))
    dev = Dev(place)
    names: dict[str, str] = {}

    def submit(title: str, name: str, *args: str) -> str:
        names[title] = place.cli("submit", "--flow", name, *args, "--no-wait").strip()
        return names[title]

    def ended(run_id: str) -> None:
        until(
            lambda: place.json("runs", "get", run_id)["status"] not in ("queued", "pending", "running"),
            f"{run_id} ends",
        )

    place.cli("flows", "store", "--flow", "chain.json", "--label", "live")
    place.cli("flows", "store", "--flow", "chain.json", "--label", "next")
    place.cli("flows", "store", "--flow", "mapped.json")
    finished = [
        submit("by name", "chain@live", "--input-json", "1"),
        submit("failed item", "picky.json", "--inputs", "items.jsonl"),
        submit("failed", "refused.json", "--input-json", "{}"),
        submit("retried", "retried.json", "--input-json", "5"),
        submit("mapped", "mapped", "--input-json", "{}"),
        submit("evaluated", "evaluated.json", "--input-json", "[1]"),
        submit("iterated", "iterated.json", "--input-json", "{}"),
        submit("slept", "slept.json", "--input-json", '{"ms": 50}'),
        submit("large", "large.json", "--input", "large-input.json"),
        submit("three partitions", "picky.json", "--inputs", "many.jsonl"),
    ]
    for run_id in finished:
        ended(run_id)
    waits = submit("signal taken", "signalled.json", "--input-json", "{}")
    place.cli("runs", "signal", waits, "go", "--payload-json", "[1, 2]")
    ended(waits)
    cancelled = submit("cancelled", "signalled.json", "--input-json", "{}")
    place.cli("runs", "cancel", cancelled, code=None)
    ended(cancelled)

    def live(title: str, name: str, allowed: int, begun: int, *args: str) -> None:
        since = len(place.ledger())
        place.allow(allowed)
        submit(title, name, *args)
        place.wait_for(begun, since)
        time.sleep(0.5)

    live("live while it waits", "signalled.json", 1, 1, "--input-json", "{}")
    live("live with a signal on the way", "signalled.json", 1, 1, "--input-json", "{}")
    live("live with a cancel on the way", "signalled.json", 1, 1, "--input-json", "{}")
    live("live asleep", "slept.json", 1, 1, "--input-json", '{"ms": 20000}')
    # From here on, what is held back stays so.
    live("live in a step", "chain", 1, 2, "--input-json", '{"n": 1}')
    live("live in a map", "mapped", 0, 2, "--input-json", "{}")
    live("live with large values", "large.json", 0, 1, "--input", "large-input.json")

    executor = dev.pid("executor")
    os.kill(executor, signal.SIGSTOP)
    sessions = base64.b64encode(b"stepflow/sessions/executors/").decode()
    end = base64.b64encode(b"stepflow/sessions/executors0").decode()
    until(lambda: "kvs" not in etcd_call(dev.etcd(), "kv/range", key=sessions, range_end=end), "its lease ends")
    submit("live and never placed", "picky.json", "--inputs", "many.jsonl")
    place.cli("runs", "signal", names["live with a signal on the way"], "go", "--payload-json", '{"by": "Ada"}')
    place.cli("runs", "cancel", names["live with a cancel on the way"], code=None)  # nobody ends it for now
    time.sleep(0.5)

    golden: dict[str, Any] = {
        "names": names,
        "list": place.json("runs", "list"),
        "flows": place.json("flows", "list"),
        "runs": {run_id: place.json("runs", "get", run_id, "--steps") for run_id in names.values()},
        "events": {},
        "ends": {},
    }
    for title, run_id in names.items():
        if not title.startswith("live"):
            code = 1 if golden["runs"][run_id]["status"] != "completed" else 0
            lines = place.cli("runs", "watch", run_id, "--json", code=code).splitlines()
            golden["events"][run_id] = [json.loads(line) for line in lines]
    address = dev.etcd()
    os.kill(dev.pid("control_plane"), signal.SIGSTOP)
    os.kill(dev.pid("component_host"), signal.SIGSTOP)
    time.sleep(0.2)
    write_json(out / "etcd.json", dump(address))
    files = [*sorted((HOME / ".stepflow/dev/blobs").rglob("*")), HOME / "stepflow-config.yml", place.gate / "ledger"]
    pack(out / "mesh.tar.xz", [path for path in files if path.is_file()])
    dev.kill("executor", "component_host", "control_plane")

    # The same tree goes on, for the results that are expected.
    place.allow(None)
    dev = Dev(place)
    place.cli("runs", "signal", names["live while it waits"], "go", "--payload-json", '"late"')
    for title, run_id in names.items():
        if title.startswith("live"):
            ended(run_id)
            golden["ends"][run_id] = {
                "status": place.json("runs", "get", run_id)["status"],
                "items": place.json("runs", "get", run_id)["items"],
            }
    dev.process.send_signal(signal.SIGTERM)
    dev.process.wait()
    write_json(out / "mesh.json", golden)


def main(checkout: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    place = Place(checkout.resolve())
    for write in (embedded, mesh):
        if write.__name__ in (sys.argv[3:] or ("embedded", "mesh")):
            write(place, out)
    shutil.rmtree(HOME)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]).resolve())
