"""`stepflow runs prune`: delete the runs that ended long ago, of a folder or of a mesh."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stepflow.cli import console
from stepflow.cli.options import JsonOption, QuietOption, TargetServerOption, TargetStoreOption

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepflow.client import Client

ENDED = ("completed", "failed", "cancelled", "recovery_failed")


def prune_runs(
    *,
    older_than: Annotated[
        str, typer.Option("--older-than", metavar="DURATION", help="Time since the end of a run: 12h, 30d.")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
    server: TargetServerOption = None,
    store: TargetStoreOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Delete the runs that ended long ago. Their results, history and blobs go with them.

    Runs that have not ended are never deleted, nor those of a folder that ended within the last minute. What is shared
    by several runs stays.

    \b
    Examples:
      stepflow runs prune --older-than 30d --dry-run
      stepflow runs prune --older-than 12h --server mesh:7840
    """
    from stepflow.cli.tables import print_json
    from stepflow.cli.target import choose_target

    age_ms = _age_ms(older_than)
    target = choose_target(server, store, quiet=quiet)

    def tell(run_id: str, ended_at_ms: int) -> None:
        from stepflow.cli.display.texts import clock

        if not quiet:
            console.say(f"{'would delete' if dry_run else 'deleted'} {run_id}, ended {clock(ended_at_ms)}")

    if target.folder is not None:
        found = _prune_folder(target.folder, age_ms, tell, dry_run=dry_run)
    else:
        assert target.server is not None
        found = _prune_mesh(target.server, age_ms, tell, dry_run=dry_run)

    if json:
        print_json({"run_ids": found, "deleted": not dry_run})
    console.say(f"{'would delete' if dry_run else 'deleted'} {len(found):,} run(s) in {target}")


def _age_ms(text: str) -> int:
    from stepflow.config.file_models import AGE_MS_MAX
    from stepflow.errors import Invalid
    from stepflow.flow import parse_duration_ms

    try:
        return parse_duration_ms(text, AGE_MS_MAX)
    except Invalid as error:
        raise console.Usage("OPTION_INVALID", f"--older-than: {error.message}") from None


def _prune_folder(folder: Path, age_ms: int, tell: "Callable[[str, int], None]", *, dry_run: bool) -> list[str]:
    import asyncio

    from stepflow.embedded.folder_retention import expired_runs, remove_expired
    from stepflow.embedded.runs_folder import LocalRuns

    local = LocalRuns(folder)

    async def prune() -> list[str]:
        rows = await expired_runs(local, age_ms, console.error)
        removed = []
        if dry_run:
            for row in rows:
                tell(row.run_id, row.ended_at_ms)
            return [row.run_id for row in rows]
        async for row in remove_expired(local, rows, console.error):
            removed.append(row.run_id)
            tell(row.run_id, row.ended_at_ms)
        return removed

    return asyncio.run(prune())


def _prune_mesh(server: str, age_ms: int, tell: "Callable[[str, int], None]", *, dry_run: bool) -> list[str]:
    import time

    from stepflow.cli import remote
    from stepflow.errors import NotFound

    before_ms = time.time_ns() // 1_000_000 - age_ms

    async def prune(client: "Client") -> list[str]:
        # All of them first: a list that shrinks between its pages would skip some.
        listed = client.list_runs(statuses=ENDED, page_size=1_000)
        ended = [(run.completed_at_ms, run.run_id) async for run in listed if run.completed_at_ms is not None]
        expired = sorted(pair for pair in ended if pair[0] < before_ms)
        gone = []
        for ended_at_ms, run_id in expired:
            try:
                if not dry_run:
                    await client.delete(run_id)
            except NotFound:  # deleted by another client
                continue
            gone.append(run_id)
            tell(run_id, ended_at_ms)
        return gone

    return remote.ask(server, prune)
