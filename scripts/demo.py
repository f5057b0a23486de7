"""The demo of `make demo`: run two examples, then kill a run and resume it.

All files are in a temporary folder, except the server of the MCP example in `.cache/servers`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
STEPFLOW = Path(sys.executable).parent / "stepflow"
WAIT_S = 30.0


def heading(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)


def stepflow(*args: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Print a command, run it and print its output. Exit if it fails."""
    print(f"$ stepflow {' '.join(args)}", flush=True)
    done = subprocess.run(
        [STEPFLOW, *args], check=False, text=True, stdout=subprocess.PIPE, env={**os.environ, **(env or {})}
    )
    if done.returncode != 0:
        sys.exit(f"the command failed with exit code {done.returncode}:\n{done.stdout}")
    for line in done.stdout.splitlines():
        print(json.dumps(json.loads(line), indent=2, ensure_ascii=False))
    return done


def time_server() -> Path:
    """Return the MCP server of the second example. Install it in a virtual environment if it is missing."""
    folder = ROOT / ".cache" / "servers" / "mcp-server-time"
    server = folder / "bin" / "mcp-server-time"
    if not server.exists():
        print("Installing mcp-server-time from the package registry", flush=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run(
            [folder / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", "mcp-server-time"], check=True
        )
    return server


def kill_and_resume(store: Path, ledger: Path) -> None:
    """Start a run, kill it after three executions, resume it, and verify the executions."""
    flow = EXAMPLES / "durability" / "flow.yaml"
    env = {**os.environ, "LEDGER": str(ledger)}
    command = [str(STEPFLOW), "run", str(flow), "--input", "{}", "--store", str(store)]
    print(f"$ {' '.join(['stepflow', *command[1:]])}", flush=True)
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + WAIT_S
        while len(executions(ledger)) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    before = executions(ledger)
    print(f"\nkill -9. Executed so far: {', '.join(before)}", flush=True)
    if len(before) != 3:
        sys.exit("the kill came too early or too late: it must follow the third execution; run the demo again")
    print()
    done = stepflow("resume", "--store", str(store), env={"LEDGER": str(ledger)})
    after = executions(ledger)
    print(f"\nExecuted in total: {', '.join(after)}")
    finished = [line.split()[0] for line in before[:-1]]
    repeated = [name for name in finished if sum(line.split()[0] == name for line in after) > 1]
    result = json.loads(done.stdout)
    if repeated or result["outcome"] != "success" or len(result["result"]) != 5:
        sys.exit(f"repeated after the kill: {repeated}; result: {result}")
    print(f"No completed step ran twice ({' and '.join(finished)} were completed).")
    print(f"{before[-1].split()[0]} was in flight and ran again.")


def executions(ledger: Path) -> list[str]:
    return ledger.read_text(encoding="utf-8").splitlines() if ledger.exists() else []


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="stepflow-demo-") as folder:
        store = Path(folder) / "store"
        heading("1. A flow over components written with the SDK (examples/hello)")
        hello = EXAMPLES / "hello"
        stepflow("run", str(hello / "flow.yaml"), "--input", str(hello / "input.json"), "--store", str(store))
        heading("2. The tools of a real MCP server as steps (examples/mcp_time)")
        zones = EXAMPLES / "mcp_time"
        stepflow(
            "run", str(zones / "flow.yaml"), "--input", str(zones / "input.json"), "--store", str(store),
            env={"MCP_SERVER_TIME": str(time_server())},
        )  # fmt: skip
        heading("3. A killed run resumes without repeating completed steps (examples/durability)")
        kill_and_resume(store, Path(folder) / "ledger.txt")
    print("\nAll three examples passed.")


if __name__ == "__main__":
    main()
