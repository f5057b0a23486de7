"""A durable AI-workflow engine: the engine, the command line, the client, the SDK, and code shared by the services.

For users:
- `cli/`: the `stepflow` command.
- `client/`: the client of a mesh.
- `component/`: the SDK for component authors.
- `embedded/`: runs without a mesh, in one process.
- `dev/`: a mesh of child processes, for `stepflow dev`.

The engine:
- `flow/`: the language of flows: parsing, checks, expressions.
- `check/`: the check of a flow before a run.
- `run/`: a run as a state machine.
- `routing/`: from component paths to plugins.
- `retry`: back-off, and the classes of failures.
- `config/`: `stepflow-config.yml`.

Storage:
- `store/`: keys and values, leases, fenced writes, blobs; over etcd or SQLite.
- `journal`: reads a run back from the store.
- `result_parts`: results of any size, read in parts.

Wire:
- `rpc/`: gRPC servers and channels, errors as statuses, health, service processes.
- `mesh/`, `etcd/`, `pull/`: messages generated from `proto/`.

Tools:
- `errors`: failures (data) and errors (exceptions), with their gRPC statuses.
- `codec`: checked, compact JSON.
- `failure_data`: the failed step and the trace in the data of a failure.
- `json_problems`: places in JSON, and values that no tree holds.
- `ids`: ids of runs and sub-runs.
- `step_path`: the place of a step in a run, as text.
- `clock`: time that never jumps.
- `telemetry`: logging.
- `log_lines`: log lines of components.
- `printable`: texts of others made safe for a terminal.
- `redaction`: removal of known secrets from texts.
- `proxies`: proxies of outgoing connections.
- `process_guard`: ends a process group with its supervisor.
- `standard_streams`: closed or unwritable stdin, stdout and stderr.
- `stop_signals`: requests to stop by signals.
- `start_interrupts`: Ctrl-C before a process can handle it.
- `value_budget`: memory for large values.
- `whole_file`: files that appear once they are whole.
- `off_loop`: work on large values, off the event loop.
- `process_privacy`: keeps a process from other processes of its user.
- `timer_heap`: instants by key, for many timers.
- `vital`: tasks that a service cannot work without.
"""

TYPE_CHECKING = False
"""As `typing` defines it: importing that takes a tenth of the start of the command line."""

if TYPE_CHECKING:
    from stepflow.client import BlockingClient, Client

__version__ = "0.1.0"

__all__ = ["BlockingClient", "Client", "__version__"]


def __getattr__(name: str) -> object:
    """Import the clients when they are first asked for: they bring gRPC, and the command line must start fast."""
    if name in ("BlockingClient", "Client"):
        import stepflow.client

        return getattr(stepflow.client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
