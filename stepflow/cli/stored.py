"""Reading a run in `.stepflow/` back, for `resume`. Databases are opened read-only."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepflow.cli import console
from stepflow.cli.console import Usage
from stepflow.cli.display.runs import run_name
from stepflow.cli.driving import Job
from stepflow.cli.local_results import read_ended
from stepflow.cli.run_list import INTERRUPTED, list_runs
from stepflow.codec import decode
from stepflow.embedded.mesh import reader
from stepflow.errors import NotFound
from stepflow.flow import Redactor, SecretMap, apply_overrides, flow_from_tree
from stepflow.journal import blob_reader, read_record

if TYPE_CHECKING:
    from stepflow.cli.display.outcome import Ended
    from stepflow.cli.display.view import View
    from stepflow.config import Config
    from stepflow.embedded.runs_folder import LocalRuns
    from stepflow.flow import Flow
    from stepflow.mesh.v1 import state_pb2
    from stepflow.store.blobs import BlobStore
    from stepflow.store.sqlite.store import SqliteStore


def only_unfinished(local: LocalRuns) -> str:
    """Return the interrupted run. Raises: Usage, none or several are interrupted; the text lists them."""
    found = list(list_runs(local, ("running", INTERRUPTED)))
    waiting = [run for run, status in found if status == INTERRUPTED]

    if len(waiting) == 1:
        return waiting[0].run_id
    if waiting:
        shown = "\n".join(f"  {run.run_id}  {run_name(run)}" for run in waiting)
        raise Usage("RUN_ID_MISSING", f"{len(waiting)} runs are unfinished; name the run to resume:\n{shown}")
    busy = "".join(f"\n  {run.run_id} is being driven by another process" for run, _ in found)
    raise Usage("NOTHING_TO_RESUME", f"there is no interrupted run in {local.folder}{busy}")


@dataclass(slots=True)
class StoredRun:
    """A run as it was begun. `ended` is None until the run has ended."""

    run_id: str
    flow: Flow
    """Has the overrides applied."""
    labels: dict[str, Any]
    redactor: Redactor
    ended: Ended | None = field(default=None)


async def read_run(local: LocalRuns, run_id: str) -> StoredRun:
    """Read a run back. Raises: NotFound, StoreUnreadable, DataLoss."""
    async with local.reading(run_id) as store:
        blobs = local.blobs()
        control = reader(store, blobs)
        run = await control.get_run(run_id)
        record = await read_record(store, run_id)
        flow = flow_from_tree(decode(await control.get_flow(record.flow_id)))
        if record.overrides_json:
            flow = apply_overrides(flow, decode(record.overrides_json))

        stored = StoredRun(run_id, flow, run.labels, await _redactor(store, blobs, run_id, record, flow))
        if run.terminal:
            stored.ended = await read_ended(local, control, run)
        return stored


async def _redactor(
    store: SqliteStore, blobs: BlobStore, run_id: str, record: state_pb2.RunRecord, flow: Flow
) -> Redactor:
    """Build the redactor of a run. The inputs are read only if the flow declares secrets in its input."""
    inputs: list[Any] = []
    if SecretMap.from_schema(flow.schema("input"), flow.schema_definitions):
        inputs = [decode(payload.json) for payload in record.inputs]
        read = blob_reader(store, blobs)
        for blob in record.partition_inputs:
            inputs += decode(await read(run_id, blob, shared=False) or b"[]")
    return Redactor(flow, inputs, decode(record.variables_json or b"{}"))


def make_job(local: LocalRuns, run: StoredRun, config: Config | None, view: View) -> Job:
    """Return the job that continues a run, with the config it began with unless another config is given.

    Raises: NotFound, ConfigInvalid.
    """
    return Job(
        local=local,
        run_id=run.run_id,
        config=config or _config(run),
        flow=run.flow,
        redactor=run.redactor,
        view=view,
    )


def _config(run: StoredRun) -> Config:
    """Load the run's config again, and warn if it has changed."""
    from stepflow.config import default_config, load_config

    source = run.labels.get("config")
    if source is None:
        return default_config(Path(run.labels.get("working_directory") or Path.cwd()))
    try:
        config = load_config(source)
    except NotFound:
        raise NotFound(
            "CONFIG_NOT_FOUND",
            f"run {run.run_id} began with the config {source}, which no longer exists; name another with --config",
            path=source,
        ) from None
    if config.digest != run.labels.get("config_digest"):
        console.warn(f"{source} has changed since the run began; the remaining steps use the changed config")
    return config
