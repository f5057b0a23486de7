"""Every limit that a user can hit: its subject, the constant, the effect of exceeding it, and the setting.

`docs/reference/limits.md` is generated: `PYTHONPATH=.:tests python tests/limits.py > docs/reference/limits.md`.
`tests/unit/test_reference.py` checks that the page is current, and that every public constant `*_MAX` has a row here or
an exemption with a reason.

A constant is written as `path NAME`. The path is a folder, or a module without `.py`.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CODE = ("stepflow", "control_plane", "executor", "component_host")
GENERATED = ("stepflow/mesh/v1", "stepflow/etcd/v1", "stepflow/pull/v1")

PAGE_HEAD = """# Limits

Everything that comes from outside has a bound. For example, a flow whose step returns 20 MiB:

```
{"outcome": "failed", "error": {"code": "COMPONENT_FAILED", "message": "… the limit is 16,777,216"}}
```

The numbers come from the code. A limit without a "Set by" is fixed. [errors.md](errors.md) explains the reasons and
failure codes. This page is generated from `tests/limits.py`.
"""


@dataclass(frozen=True, slots=True)
class Limit:
    """One row of the page. `unit` is bytes, s, ms, share, or empty for a count."""

    what: str
    constant: str
    beyond: str
    unit: str = ""
    set_by: str = ""


VALUES = (
    Limit(
        "One value: an input, a result, a blob, a document",
        "stepflow/codec PAYLOAD_BYTES_MAX",
        "`PAYLOAD_TOO_LARGE`; a larger result fails its step",
        "bytes",
    ),
    Limit(
        "A value kept inline",
        "stepflow/codec INLINE_BYTES_MAX",
        "Stored as a blob; nothing to do",
        "bytes",
    ),
    Limit(
        "The result of a run's item, or of `map`, `eval` and `iterate`",
        "stepflow/codec RESULT_BYTES_MAX",
        "The item or the step fails",
        "bytes",
    ),
    Limit("Parts of such a result", "stepflow/flow PIECES_MAX", "The item or the step fails"),
    Limit(
        "Results of a `map` that are composed, and not results of steps",
        "stepflow/run COPIED_BYTES_MAX",
        "The step fails",
        "bytes",
    ),
    Limit("Nesting of JSON and YAML", "stepflow/codec JSON_DEPTH_MAX", "`JSON_TOO_DEEP`"),
    Limit(
        "Nesting of a `google.protobuf.Value` in an API reply",
        "control_plane VALUE_DEPTH_MAX",
        "`VALUE_TOO_DEEP`; ask for JSON",
        set_by="`value_form`",
    ),
    Limit(
        "Integers in a `google.protobuf.Value` over gRPC pull",
        "stepflow/pull EXACT_MAX",
        "`NUMBER_TOO_LARGE`; pass text",
    ),
    Limit(
        "Nesting over gRPC pull, in levels of messages", "stepflow/pull DEPTH_MAX", "`VALUE_TOO_DEEP`; return JSON text"
    ),
    Limit("Digits of an integer in YAML", "stepflow/flow INTEGER_DIGITS_MAX", "`YAML_INVALID`"),
    Limit(
        "What all YAML aliases of a document stand for, in characters and nodes",
        "stepflow/flow ALIAS_SIZE_MAX",
        "`YAML_INVALID`",
    ),
    Limit("A configuration file", "stepflow/config FILE_BYTES_MAX", "`CONFIG_INVALID`", "bytes"),
    Limit("Nested defaults in `${VAR:-default}`", "stepflow/config NESTING_MAX", "`CONFIG_INVALID`"),
)

RUNS = (
    Limit("Items of a batch", "control_plane RUN_ITEMS_MAX", "`TOO_MANY_ITEMS`"),
    Limit("Items of a sub-run", "stepflow/run ITEMS_MAX", "The step fails with INVALID_INPUT"),
    Limit("Runs in one `SubmitRuns`", "control_plane RUNS_PER_CALL_MAX", "`TOO_MANY_RUNS`"),
    Limit(
        "Variables, overrides and labels of a run, each",
        "control_plane VARIABLES_BYTES_MAX",
        "`VARIABLES_TOO_LARGE`, `OVERRIDES_TOO_LARGE`, `LABELS_TOO_LARGE`",
        "bytes",
    ),
    Limit(
        "Calls in flight of a run, over all items and sub-runs",
        "control_plane CONCURRENCY_MAX_DEFAULT",
        "Steps wait",
        set_by="`--max-concurrency`, `concurrency_max=`",
    ),
    Limit("Sub-runs within sub-runs", "stepflow/run DEPTH_MAX", "The step fails with ORCHESTRATOR_ERROR"),
    Limit(
        "Entries of a journal (one partition of 64 items)",
        "stepflow/run JOURNAL_ENTRIES_MAX",
        "The run fails with ORCHESTRATOR_ERROR; split it",
    ),
    Limit(
        "Size of a journal",
        "stepflow/run JOURNAL_BYTES_MAX",
        "The run fails with ORCHESTRATOR_ERROR; split it",
        "bytes",
    ),
    Limit(
        "Tracebacks and ends of stderr in the failures of one partition",
        "stepflow/run TRACES_BYTES_MAX",
        "Later failures have none",
        "bytes",
    ),
    Limit(
        "Characters of the frames of one exception of a component",
        "stepflow/component FRAMES_CHARS_MAX",
        "The outer ones are left out",
    ),
    Limit(
        "Characters of a traceback of another server's worker",
        "component_host/stepflow_bridge TRACEBACK_CHARS_MAX",
        "Its beginning is left out",
    ),
    Limit(
        "Characters that a server writes to stderr during a call that fails",
        "component_host/supervision STDERR_CALL_CHARS_MAX",
        "Its beginning is left out",
    ),
    Limit(
        "Messages to a run (cancel, signals) that its owner has not taken yet",
        "control_plane INBOX_MESSAGES_MAX",
        "`INBOX_FULL`",
    ),
    Limit(
        "Signals of a partition taken before a step waits for them",
        "executor SIGNALS_UNRECEIVED_MAX",
        "Further ones stay in the inbox until a step waits for them",
    ),
    Limit("Characters of a signal's name", "stepflow/run SIGNAL_NAME_CHARS_MAX", "`SIGNAL_INVALID`"),
    Limit(
        "Executors in a row that die within a minute of taking a run over or die reading it, or give it back",
        "stepflow/run ADOPTIONS_IN_A_ROW_MAX",
        "The run ends as RECOVERY_FAILED",
    ),
    Limit(
        "Take-overs of a run without any progress in between",
        "stepflow/run ADOPTIONS_FRUITLESS_MAX",
        "The run ends as RECOVERY_FAILED",
    ),
    Limit(
        "Runs removed at the end of a local run by its retention",
        "stepflow/embedded/folder_retention RUNS_REMOVED_MAX",
        "The ends of the next runs remove the others",
    ),
    Limit(
        "Databases opened at the end of a local run, to find out whether their runs have ended",
        "stepflow/embedded/folder_retention RUNS_EXAMINED_MAX",
        "The ends of the next runs open the others",
    ),
    Limit(
        "Shared blobs removed at the end of a local run by its retention",
        "stepflow/embedded/expired_blobs BLOBS_REMOVED_MAX",
        "The end of a later run removes the others",
    ),
    Limit(
        "Local runs that have not ended and are searched for references to shared blobs",
        "stepflow/embedded/expired_blobs RUNS_SEARCHED_MAX",
        "With more, every shared blob stays",
    ),
    Limit("Age in `retention`", "stepflow/config AGE_MS_MAX", "`CONFIG_INVALID`", "ms"),
    Limit("All results of a sub-run for a component", "component_host REPORT_BYTES_MAX", "`REPORT_TOO_LARGE`", "bytes"),
)

RETRIES = (
    Limit(
        "Retries of a component under `onError: retry`",
        "stepflow/run MAX_RETRIES_DEFAULT",
        "The failure stands",
        set_by="`onError.maxRetries`",
    ),
    Limit("Largest `maxRetries`", "stepflow/flow RETRIES_MAX", "`FLOW_INVALID`"),
    Limit("Longest `timeout` and `idleTimeout`", "stepflow/flow DURATION_MS_MAX", "`DURATION_INVALID`", "ms"),
    Limit("Longest back-off delay", "stepflow/retry DELAY_MS_MAX", "`BACKOFF_INVALID`", "ms"),
    Limit("Longest pause that a service may ask for", "stepflow/retry RETRY_AFTER_MS_MAX", "A shorter pause", "ms"),
    Limit("Largest back-off `factor`", "stepflow/retry FACTOR_MAX", "`BACKOFF_INVALID`"),
    Limit("Jitter added to a back-off", "stepflow/retry JITTER_MAX", "", "share"),
)

SCHEMAS = (
    Limit("Members and elements of a schema", "stepflow/flow SCHEMA_NODES_MAX", "`SCHEMA_TOO_LARGE`"),
    Limit("Patterns of a schema", "stepflow/flow PATTERNS_MAX", "`SCHEMA_TOO_LARGE`"),
    Limit("Size of a compiled pattern", "stepflow/flow PATTERN_BYTES_MAX", "`SCHEMA_TOO_LARGE`", "bytes"),
    Limit("Patterns over 64 KiB compiled", "stepflow/flow HEAVY_PATTERNS_MAX", "`SCHEMA_TOO_LARGE`"),
    Limit(
        "Work to check the inputs of a submission, in steps",
        "stepflow/flow CHECK_UNITS_MIN",
        "`SCHEMA_TOO_LARGE`, unless 20 steps per byte of input are more",
        set_by="`--no-check`, `check_input=False`",
    ),
    Limit("Warnings of one flow", "stepflow/flow WARNINGS_MAX", "The rest is left out"),
    Limit("Errors and fatal diagnostics of one flow", "stepflow/flow BLOCKING_MAX", "The rest is left out"),
    Limit("Findings of one type check", "stepflow/flow FINDINGS_MAX", "The rest is left out"),
    Limit("Nodes of a type", "stepflow/flow TYPE_NODES_MAX", "The type is unknown"),
    Limit("Alternatives of a type", "stepflow/flow ALTERNATIVES_MAX", "The type is unknown"),
    Limit("Alternatives of a made union", "stepflow/flow UNION_MAX", "Their common `type`, or unknown"),
    Limit("Definitions of one type check", "stepflow/flow DEFINITIONS_MAX", "Further references are unknown"),
    Limit("Work of one type check, in units", "stepflow/flow WORK_MAX", "Further types are unknown; 500 more a step"),
    Limit("Depth of literal flows in a type check", "stepflow/flow INNER_DEPTH_MAX", "Deeper ones are unknown"),
    Limit("Literal flows in a type check", "stepflow/flow INNER_FLOWS_MAX", "Further ones are unknown"),
    Limit("Depth of literal flows checked before a run", "stepflow/check INNER_DEPTH_MAX", "Deeper ones cannot run"),
    Limit("Literal flows checked before a run", "stepflow/check INNER_FLOWS_MAX", "Further ones are not checked"),
)

FLOWS = (
    Limit("Characters of `--key`", "stepflow/cli/commands/submit KEY_CHARS_MAX", "`RUN_ID_INVALID`"),
    Limit("Characters of a step path", "stepflow/step_path STEP_PATH_CHARS_MAX", "`STEP_PATH_INVALID`"),
    Limit("Versions under one flow name", "control_plane VERSIONS_MAX", "The oldest version without a label goes"),
    Limit("Labels of one flow name", "control_plane LABELS_MAX", "`TOO_MANY_LABELS`"),
    Limit("Characters of a flow name or label", "control_plane NAME_CHARS_MAX", "`FLOW_NAME_INVALID`, `LABEL_INVALID`"),
    Limit(
        "Schemas of components that checks of a control plane know",
        "control_plane SCHEMAS_BYTES_MAX",
        "Further ones are unknown",
        "bytes",
    ),
    Limit("A piece of `UploadBlob`", "control_plane CHUNK_BYTES_MAX", "`CHUNK_TOO_LARGE`", "bytes"),
    Limit("Page size of a list", "control_plane PAGE_SIZE_MAX", "Fewer entries come", set_by="`page_size`"),
    Limit(
        "Runs that a filter examines for one page",
        "control_plane RUNS_READ_MAX",
        "The page ends, empty perhaps; follow `next_page_token`",
    ),
    Limit(
        "Results of one page",
        "control_plane PAGE_BYTES_MAX",
        "The page ends; follow `next_page_token`",
        "bytes",
    ),
    Limit(
        "Live events waiting for a slow watcher",
        "control_plane LIVE_EVENTS_MAX",
        "The oldest are dropped; durable events are not",
    ),
)

MESH = (
    Limit(
        "Time that the large values of a client that does not read them count",
        "stepflow/rpc HELD_S_MAX",
        "Their memory is lent to other calls",
        "s",
    ),
    Limit(
        "Unary requests with values that a control plane receives at a time; more if half of `--value-memory` is more",
        "stepflow/rpc RECEIVED_AT_ONCE_MIN",
        "Further ones wait at their clients",
        set_by="`--value-memory`",
    ),
    Limit(
        "Time for such a request to arrive",
        "stepflow/rpc RECEIVED_S_MAX",
        "Its memory is lent to other requests",
        "s",
    ),
    Limit("Runs waiting for an executor", "control_plane PENDING_RUNS_MAX", "`TOO_MANY_PENDING`"),
    Limit(
        "Packed runs in the blob store, without their blobs",
        "control_plane/archive PACKED_BYTES_MAX",
        "The runs that ended first are removed before their time",
        "bytes",
        "`--packed-bytes-max`",
    ),
    Limit(
        "Partitions of one executor",
        "executor/executor RUNS_MAX",
        "Further runs go to other executors, or wait",
        set_by="`--runs-max`",
    ),
    Limit(
        "Calls in flight of one host",
        "component_host CAPACITY_DEFAULT",
        "Further calls wait in their executors",
        set_by="`--capacity`",
    ),
    Limit(
        "Results that a host holds",
        "component_host HELD_BYTES_MAX",
        "The oldest are dropped, first results that wait for the blob store",
        "bytes",
    ),
    Limit("Time that a host holds a result", "component_host HELD_S_MAX", "The result is dropped", "s"),
    Limit(
        "Filling of etcd's quota",
        "control_plane FULL_SHARE",
        "New runs get `STORE_FULL`; above 40 % they slow down",
        "share",
        "`--etcd-quota-bytes`",
    ),
    Limit(
        "Wait of a submission for its turn, while the store fills",
        "control_plane TURN_S_MAX",
        "`STORE_FULL`, with the time to try again",
        "s",
    ),
    Limit("Route prefixes of one configuration", "component_host PREFIXES_MAX", "`TOO_MANY_ROUTES`"),
    Limit(
        "Wait of new calls for the calls in a former server, during a restart",
        "component_host IDLE_WAIT_S",
        "The new server takes them",
        "s",
    ),
    Limit(
        "The same, if both servers cannot run at a time",
        "component_host BUSY_S_MAX",
        "The plugin is not restarted",
        "s",
    ),
    Limit("Folders watched by `stepflow dev --reload`", "stepflow/dev FOLDERS_MAX", "The others are not watched"),
    Limit("Files watched by `stepflow dev --reload`", "stepflow/dev FILES_MAX", "The others are not watched"),
    Limit("One gRPC message", "stepflow/rpc MESSAGE_BYTES_MAX", "The call fails", "bytes"),
    Limit("Unsent bytes of one stream", "stepflow/rpc QUEUE_BYTES_MAX", "`STREAM_OVERRUN`; it reconnects", "bytes"),
    Limit(
        "A host out of reach",
        "executor/hosts OUT_OF_REACH_S_MAX",
        "Its calls are retried on other hosts",
        "s",
    ),
    Limit("Bytes of `--etcd-prefix`", "stepflow/store/etcd PREFIX_BYTES_MAX", "`ETCD_CONFIG_INVALID`"),
    Limit("Operations of a transaction", "stepflow/store TXN_OPS_MAX", "`TXN_TOO_MANY_OPS`"),
    Limit("Size of a transaction", "stepflow/store TXN_BYTES_MAX", "`TXN_TOO_LARGE`", "bytes"),
)

SERVERS = (
    Limit(
        "Calls waiting for a server over stdio or HTTP",
        "component_host/stepflow_bridge/pool QUEUE_MAX",
        "RESOURCE_UNAVAILABLE",
    ),
    Limit("Calls waiting for a pull worker", "component_host/stepflow_bridge/pull OFFERS_MAX", "RESOURCE_UNAVAILABLE"),
    Limit("Workers of one queue", "component_host/stepflow_bridge/pull WORKERS_MAX", "`WORKERS_FULL`"),
    Limit(
        "A message to a pull worker that reads gRPC's default",
        "stepflow/pull RECEIVE_BYTES_MAX",
        "The call fails with INVALID_INPUT",
        "bytes",
    ),
    Limit(
        "A line of a server over stdio",
        "component_host/stepflow_bridge/stdio REPLY_BYTES_MAX",
        "The call fails with COMPONENT_FAILED",
        "bytes",
    ),
    Limit(
        "Requests of one server over stdio at once",
        "component_host/stepflow_bridge/stdio CALLBACKS_MAX",
        "Further requests wait or are refused",
    ),
    Limit(
        "Requests of pull workers at once",
        "component_host/stepflow_bridge/pull CALLBACKS_MAX",
        "`CALLBACKS_FULL`",
    ),
    Limit("Blob references in one input", "component_host/stepflow_bridge REFERENCES_MAX", "`TOO_MANY_BLOBS`"),
    Limit(
        "A component's wait for a sub-run over gRPC pull",
        "component_host/stepflow_bridge/pull WAIT_S_MAX",
        "Answered with the run as it is; ask again",
        "s",
    ),
    Limit(
        "Progress reports to one executor in 0.1 s",
        "component_host PROGRESS_MAX",
        "Of further ones, the latest of each call is sent later",
    ),
    Limit(
        "Progress reports of one server in 0.1 s",
        "component_host REPORTS_MAX",
        "Of further ones, the latest of each call passes later",
    ),
    Limit("Calls of one server with a report that waits", "component_host WAITING_MAX", "Further reports are dropped"),
    Limit("Messages of one JSON-RPC batch", "component_host BATCH_MAX", "The rest is skipped"),
    Limit("Tools and resources of an MCP server", "component_host/mcp_bridge OFFERS_MAX", "The rest is left out"),
    Limit("Pages of an MCP listing", "component_host/mcp_bridge PAGES_MAX", "The rest is left out"),
    Limit("A message of an MCP server", "component_host/mcp_bridge MESSAGE_BYTES_MAX", "The call fails", "bytes"),
    Limit("A file for `load_file`", "component_host/builtin FILE_BYTES_MAX", "INVALID_INPUT", "bytes"),
    Limit("A response for `openai`", "component_host/builtin RESPONSE_BYTES_MAX", "COMPONENT_FAILED", "bytes"),
    Limit("Open connections of `openai`", "component_host/builtin CONNECTIONS_MAX", "Further requests wait"),
    Limit(
        "Failed starts in a row until calls fail at once",
        "component_host/supervision START_FAILURES_MAX",
        "Calls fail with UNREACHABLE until a start succeeds",
    ),
    Limit(
        "Bytes that a stdio server has not read",
        "component_host/supervision OUTGOING_BYTES_MAX",
        "Further calls wait",
        "bytes",
    ),
    Limit(
        "Time that a stdio server reads nothing of them",
        "component_host/supervision UNREAD_S_MAX",
        "It is ended and started again; its calls fail with UNREACHABLE",
        "s",
    ),
    Limit(
        "Unread bytes of a stdio server that sends further requests",
        "component_host/stepflow_bridge/stdio FLOOD_BYTES_MAX",
        "It is ended and started again",
        "bytes",
    ),
    Limit("Pause between restarts", "component_host/supervision BACKOFF_S_MAX", "", "s"),
    Limit("Pause between starts of a plugin that failed", "component_host/supervision DELAY_S_MAX", "", "s"),
    Limit("A line read by our SDK", "stepflow/component LINE_BYTES_MAX", "The line is refused", "bytes"),
    Limit(
        "Threads of our SDK for sync components",
        "stepflow/component THREADS_MAX",
        "Calls wait for a thread",
        set_by="`serve(threads=…)`",
    ),
    Limit(
        "Threads of our SDK that are replaced while they run abandoned calls",
        "stepflow/component REPLACED_MAX",
        "Calls wait for a thread",
    ),
    Limit(
        "Abandoned executes that a server keeps running for 10 s (at most half of its `concurrency`)",
        "component_host ABANDONED_MAX",
        "The server is started again",
    ),
    Limit("Addresses that tasks may name to a pull worker", "stepflow/component CHANNELS_MAX", "`TOO_MANY_ADDRESSES`"),
    Limit(
        "Former servers of a plugin that still execute calls after restarts",
        "component_host FORMER_SERVERS_MAX",
        "A restart keeps the running server, and says so",
    ),
)

LOGS = (
    Limit("Characters of a log line of a component", "stepflow/log_lines LINE_CHARS_MAX", "Cut"),
    Limit(
        "Log lines of a call in 0.25 s, from our SDK",
        "stepflow/component LINES_MAX",
        "The latest are sent, the others counted",
    ),
    Limit(
        "Log lines of a call in 0.25 s, at the host",
        "component_host CALL_LINES_MAX",
        "Dropped and counted; the last ones are kept for a failure",
    ),
    Limit("Log lines of a plugin in 0.25 s", "component_host PLUGIN_LINES_MAX", "Dropped and counted"),
    Limit("Log lines that a host keeps of a plugin", "component_host RING_LINES_MAX", "The oldest go"),
    Limit("The same, in bytes", "component_host RING_BYTES_MAX", "The oldest go", "bytes"),
    Limit(
        "Log lines behind which a control plane is, at a host",
        "component_host WAITING_BYTES_MAX",
        "Dropped and counted",
        "bytes",
    ),
    Limit("Log lines held for a client that watches a run", "control_plane LOG_LINES_MAX", "Dropped and counted"),
    Limit(
        "Runs whose log lines a control plane follows", "component_host FOLLOWED_MAX", "No log lines of further ones"
    ),
    Limit("Log lines kept with a failure", "stepflow/log_lines TAIL_BYTES_MAX", "The last ones are kept", "bytes"),
    Limit(
        "Log lines kept with the failures of a journal",
        "stepflow/run PARTITION_TAILS_BYTES_MAX",
        "Each further failure keeps 200 bytes",
        "bytes",
    ),
    Limit(
        "Log lines of a run of this machine, in its folder",
        "stepflow/embedded LOG_FILE_BYTES_MAX",
        "The oldest go",
        "bytes",
    ),
    Limit("Log of an earlier start of `stepflow dev`", "stepflow/dev LOG_BYTES_MAX", "The end is kept", "bytes"),
    Limit("Marked values of a run, for hosts", "executor SECRETS_MAX", "Hosts keep no log lines of the run"),
    Limit("The same, in characters", "executor SECRET_CHARS_MAX", "Hosts keep no log lines of the run"),
    Limit("Marked values of runs, at a host", "component_host RUN_SECRETS_MAX", "The oldest that ended are forgotten"),
)

SECTIONS = {
    "Values and documents": VALUES,
    "Runs": RUNS,
    "Retries and timeouts": RETRIES,
    "Schemas and diagnostics": SCHEMAS,
    "Flows, blobs and lists": FLOWS,
    "The mesh": MESH,
    "Component servers": SERVERS,
    "Logs of components": LOGS,
}
LIMITS = tuple(limit for limits in SECTIONS.values() for limit in limits)

EXEMPT = {
    "How much of a text people are shown; the whole is elsewhere": (
        "stepflow/check HINTS_MAX",
        "stepflow/check NAMES_MAX",
        "stepflow/check NAMES_SEARCHED_MAX",
        "stepflow/check PATHS_MAX",
        "stepflow/cli HELP_CHARS_MAX",
        "stepflow/cli LINE_ITEMS_MAX",
        "stepflow/cli LOG_ITEMS_MAX",
        "stepflow/component LINE_CHARS_MAX",
        "stepflow/run SHORT_TAIL_BYTES_MAX",
        "component_host RAW_CHARS_MAX",
        "component_host/supervision STDERR_LOGGED_MAX",
        "component_host/stepflow_bridge NOTICE_LINES_MAX",
        "stepflow/cli ROWS_MAX",
        "stepflow/cli ROWS_KEPT_MAX",
        "stepflow/cli TEXT_CHARS_MAX",
        "stepflow/cli DIFFERENCES_MAX",
        "stepflow/cli EXAMPLE_CHARS_MAX",
        "stepflow/cli OFFERED_MAX",
        "stepflow/cli READ_FILES_MAX",
        "stepflow/cli READ_BYTES_MAX",
        "stepflow/cli SHOWN_CHARS_MAX",
        "stepflow/cli WARNINGS_SHOWN_MAX",
        "stepflow/cli ID_SEARCH_RUNS_MAX",
        "stepflow/component MESSAGE_CHARS_MAX",
        "stepflow/component PROBLEMS_MAX",
        "stepflow/component LISTED_MAX",
        "stepflow/config PROBLEMS_SHOWN_MAX",
        "stepflow/dev NAMES_MAX",
        "stepflow/dev TAIL_LINE_CHARS_MAX",
        "stepflow/json_problems NAME_SHOWN_CHARS_MAX",
        "stepflow/flow MESSAGE_CHARS_MAX",
        "stepflow/flow NOTES_MAX",
        "stepflow/flow PROBLEMS_MAX",
        "stepflow/flow PROBLEMS_SHOWN_MAX",
        "stepflow/flow LOOKUPS_MAX",
        "stepflow/flow PROBLEMS_MAX",
        "stepflow/flow CONST_CHARS_MAX",
        "stepflow/flow COMPARED_CHARS_MAX",
        "stepflow/flow COMPARED_NAMES_MAX",
        "stepflow/dev PARSED_BYTES_MAX",
        "stepflow/flow TEXT_CHARS_MAX",
        "stepflow/rpc ERROR_TEXT_BYTES_MAX",
        "stepflow/rpc ERROR_DETAIL_CHARS_MAX",
        "stepflow/rpc ERROR_DETAILS_MAX",
        "stepflow/telemetry TEXT_CHARS_MAX",
        "stepflow/telemetry TRACEBACK_CHARS_MAX",
        "stepflow/telemetry DEFECT_FRAMES_MAX",
        "executor MESSAGE_CHARS_MAX",
        "component_host/builtin ERROR_TEXT_MAX",
        "component_host MESSAGE_CHARS_MAX",
        "component_host PROGRESS_CHARS_MAX",
        "component_host/stepflow_bridge FAILURE_MESSAGE_CHARS_MAX",
        "component_host/stepflow_bridge FAILURE_DATA_BYTES_MAX",
        "component_host/stepflow_bridge DATA_BYTES_MAX",
        "component_host/stepflow_bridge NOISE_CHARS_MAX",
        "component_host/supervision STDERR_LINES_MAX",
        "component_host/supervision STDERR_LINE_CHARS_MAX",
        "component_host/supervision STDERR_PARTIAL_BYTES_MAX",
        "component_host/supervision STDERR_LINES_KEPT_MAX",
        "stepflow/component CODE_CHARS_MAX",
        "stepflow/component NAME_CHARS_MAX",
        "stepflow/component CAUSES_MAX",
        "stepflow/component CAUSE_CHARS_MAX",
        "stepflow/component OWN_FRAMES_MAX",
        "stepflow/component LIBRARY_FRAMES_MAX",
        "stepflow/cli FAILED_ITEMS_MAX",
    ),
    "The largest pause of a back-off inside a service": (
        "stepflow/client BACKOFF_MAX_S",
        "stepflow/client PAUSE_S_MAX",
        "stepflow/component RECONNECT_S_MAX",
        "stepflow/dev RESTART_DELAY_MAX_S",
        "stepflow/rpc RECONNECT_BACKOFF_MAX_MS",
        "stepflow/store/etcd BACKOFF_S_MAX",
        "stepflow/store/blobs/waiting RETRY_S_MAX",
        "stepflow/store/writer BACKOFF_S_MAX",
        "control_plane RECONNECT_S_MAX",
        "control_plane RETRY_S_MAX",
        "control_plane/archive RETRY_S_MAX",
        "control_plane/archive PAUSE_S_MAX",
        "executor RETURN_S_MAX",
        "executor RECONNECT_S_MAX",
        "component_host RETRY_S_MAX",
        "component_host ASK_S_MAX",
        "stepflow/vital RESTART_S_MAX",
    ),
    "Tries of one internal operation; the error at their end is in errors.md": (
        "control_plane ADMISSION_TRIES_MAX",
        "control_plane CANCEL_TRIES_MAX",
        "control_plane TRIES_MAX",
        "control_plane/archive GONE_TRIES_MAX",
        "component_host TRIES_MAX",
        "component_host LAUNCHES_FAILED_MAX",
        "component_host CONNECTIONS_PER_CALL_MAX",
        "component_host PORTS_TRIED_MAX",
        "component_host DELETED_MAX",
        "stepflow/rpc STORE_FAILURES_MAX",
        "stepflow/rpc STORE_LOST_S_MAX",
    ),
    "The size of an internal cache": (
        "stepflow/routing REMEMBERED_PATHS_MAX",
        "executor/hosts REMEMBERED_MAX",
        "control_plane FLOWS_KEPT_MAX",
        "control_plane VERDICTS_MAX",
        "control_plane FINDINGS_KEPT_MAX",
        "control_plane VERDICT_CHARS_MAX",
        "control_plane KEPT_BYTES_MAX",
        "control_plane/archive CACHE_BYTES_MAX",
        "executor PLANS_MAX",
        "component_host RUNS_MAX",
        "component_host PARTITIONS_MAX",
        "component_host INSTANCES_MAX",
        "component_host CONNECTIONS_KEPT_MAX",
    ),
    "The size of an internal batch, page or buffer; more goes into the next one": (
        "control_plane LABELS_LISTED_BYTES_MAX",
        "stepflow/rpc METADATA_BYTES_MAX",
        "stepflow/rpc DATA_BYTES_MAX",
        "stepflow/rpc TEXT_CHARS_MAX",
        "control_plane STATUSES_READ_MAX",
        "control_plane PARTITIONS_READ_MAX",
        "control_plane WINDOW_MS_MAX",
        "control_plane/archive TIME_SPANS_MAX",
        "control_plane/archive SEGMENT_RUNS_MAX",
        "control_plane/archive WHOLE_RUN_BYTES_MAX",
        "control_plane/archive CHANGES_MAX",
        "control_plane/archive NAMED_BLOBS_MAX",
        "control_plane/archive TEXT_INLINE_BYTES_MAX",
        "control_plane/archive PARTS_INLINE_BYTES_MAX",
        "stepflow/store/blobs READ_BYTES_MAX",
        "executor REFUSED_BY_MAX",
        "stepflow/rpc FRAME_BYTES_MAX",
        "stepflow/rpc PENDING_CALLS_MAX",
        "stepflow/store PAGE_KEYS_MAX",
        "stepflow/store PAGE_BYTES_MAX",
        "stepflow/store WATCH_BACKLOG_MAX",
        "stepflow/store GROUP_OPS_MAX",
        "stepflow/store GROUP_BYTES_MAX",
        "stepflow/store GROUP_KEYS_READ_MAX",
        "stepflow/store HISTORY_REVISIONS_MAX",
        "stepflow/store HISTORY_BYTES_MAX",
        "stepflow/cli LINE_BYTES_MAX",
        "stepflow/client OLD_BATCH_BYTES_MAX",
        "stepflow/client BREAKS_MAX",
        "stepflow/store ROWS_MAX",
        "stepflow/store STATEMENTS_MAX",
        "stepflow/store BATCH_REQUESTS_MAX",
        "stepflow/store FLUSH_OPS_MAX",
        "stepflow/store FLUSH_BYTES_MAX",
        "stepflow/store SUBMISSION_OPS_MAX",
        "stepflow/store SUBMISSION_COMPARES_MAX",
        "stepflow/store SUBMISSION_BYTES_MAX",
        "stepflow/component RECEIVE_BYTES_MAX",
        "stepflow/component UNSENT_BYTES_MAX",
        "control_plane RECORDS_READ_MAX",
        "control_plane STEPS_DONE_MAX",
        "control_plane REMOVED_MAX",
        "control_plane RECORD_INPUTS_BYTES_MAX",
        "control_plane RECORD_BLOBS_BYTES_MAX",
        "control_plane/signals INLINE_BYTES_MAX",
        "executor ENTRIES_BYTES_MAX",
        "executor TAKEN_MAX",
        "executor RESULTS_INLINE_BYTES_MAX",
        "executor LIST_BYTES_MAX",
        "executor TEXT_BYTES_MAX",
        "executor SHORT_TEXT_BYTES_MAX",
        "stepflow/flow SKELETON_PIECES_MAX",
        "stepflow/flow NULL_BYTES_MAX",
        "executor REPORT_INLINE_BYTES_MAX",
        "stepflow/run WANTED_BYTES_MAX",
        "executor INPUT_BYTES_MAX",
        "stepflow/run REPLAY_BYTES_MAX",
        "executor EVENTS_MAX",
        "component_host SESSION_BYTES_MAX",
        "component_host REQUESTS_MAX",
        "component_host BLOBS_MAX",
        "component_host PIECE_BYTES_MAX",
        "component_host ANNOUNCEMENT_BYTES_MAX",
        "component_host DRAIN_READS_MAX",
        "component_host STARTS_MAX",
        "component_host NOTICE_BYTES_MAX",
        "component_host BRANCH_DEPTH_MAX",
        "component_host ODD_MAX",
        "component_host PROGRESS_BYTES_MAX",
    ),
    "Above it work moves to a thread": (
        "stepflow/store INLINE_HASH_BYTES_MAX",
        "stepflow/off_loop INLINE_WORK_BYTES_MAX",
        "stepflow/off_loop INLINE_WORK_ITEMS_MAX",
        "component_host LOOP_BYTES_MAX",
        "control_plane INLINE_SCAN_BYTES_MAX",
    ),
    "A bound of a format or a foreign system that nothing reasonable reaches": (
        "stepflow/component NUMBER_MAX",
        "stepflow/component PORTS_MAX",
        "stepflow/flow INDEX_DIGITS_MAX",
        "stepflow/flow ERROR_UNITS_MAX",
        "stepflow/run WAIT_MS_MAX",
        "stepflow/store LEASE_TTL_S_MAX",
        "stepflow/telemetry DEPTH_MAX",
        "control_plane INTEGER_MAX",
        "component_host INPUT_DEPTH_MAX",
        "component_host/stepflow_bridge/pull RECEIVE_BYTES_MAX",
    ),
    "The same bound as another row, for another transport": (
        "component_host/stepflow_bridge/http CALLBACKS_MAX",
        "component_host/stepflow_bridge REPLY_BYTES_MAX",
    ),
    "How long a service waits for itself": (
        "executor HAND_OVER_S_MAX",
        "executor FORGIVE_S_MAX",
        "component_host UNDECIDED_S_MAX",
        "executor WAKE_S_MAX",
        "executor NOT_OWNED_S_MAX",
    ),
}
"""Reason → the bounds that a user never sets, meets or has to know. One line covers every module below its path."""


@cache
def defined() -> tuple[tuple[str, str], ...]:
    """Return (path, NAME) of every public constant at the top of a module."""
    found = []
    for folder in CODE:
        for path in sorted((ROOT / folder).rglob("*.py")):
            relative = path.relative_to(ROOT).as_posix()
            if relative.startswith(GENERATED):
                continue
            for node in ast.parse(path.read_text("utf-8")).body:
                targets = node.targets if isinstance(node, ast.Assign) else []
                if isinstance(node, ast.AnnAssign):
                    targets = [node.target]
                names = (target.id for target in targets if isinstance(target, ast.Name))
                found += [(relative, name) for name in names if name.isupper() and not name.startswith("_")]
    return tuple(found)


def places_of(constant: str) -> list[str]:
    """Return the modules at or below the path of `path NAME` that define the name."""
    path, _, name = constant.partition(" ")
    return [module for module, each in defined() if each == name and is_at(module, path)]


def is_at(module: str, path: str) -> bool:
    return module.startswith((path + ".py", path + "/"))


def place_of(constant: str) -> str:
    """Return the one module of a row: a module of the folder itself comes before those below it."""
    found = places_of(constant)
    direct = [module for module in found if module.rpartition("/")[0] == constant.partition(" ")[0]]
    candidates = direct if len(direct) == 1 else found
    assert len(candidates) == 1, f"{constant}: moved, renamed or ambiguous ({candidates})"
    return candidates[0]


def value_of(constant: str) -> float:
    path = place_of(constant)
    module = import_module(path.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    value = getattr(module, constant.partition(" ")[2])
    assert isinstance(value, int | float)
    return value


def shown(value: float, unit: str) -> str:
    """Return a number as people read it: `16 MiB`, `1,000`, `15 min`, `70 %`."""
    if unit == "bytes":
        for name, size in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
            if value >= size:
                return f"{value / size:g} {name}"
        return f"{value:g} bytes"
    if unit == "share":
        return f"{100 * value:g} %"
    if unit in {"s", "ms"}:
        seconds = value / 1000 if unit == "ms" else value
        for name, size in (("days", 86_400), ("h", 3_600), ("min", 60)):
            if seconds >= 2 * size:
                return f"{seconds / size:.3g} {name}"
        return f"{seconds:g} s"
    return f"{value:,.0f}"


def page() -> str:
    """Return the page for users."""
    parts = [PAGE_HEAD]
    for title, limits in SECTIONS.items():
        parts.append(f"\n## {title}\n\n| what | limit | beyond it | set by |\n|---|---|---|---|\n")
        for limit in limits:
            number = shown(value_of(limit.constant), limit.unit)
            parts.append(f"| {limit.what} | {number} | {limit.beyond} | {limit.set_by} |\n")
    return "".join(parts)


if __name__ == "__main__":
    print(page(), end="")
