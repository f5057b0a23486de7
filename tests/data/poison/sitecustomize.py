"""Kills an executor that drives a run named `poison`, or that reads the journal of a run named `unreadable`.

Python imports this at start if its folder is on the path.

The process dies without a message or clean-up, as of running out of memory or a crash in native code.
"""

import os
import signal
from typing import Any

from executor.adoption import LoadedPartition, PartitionReader
from executor.drive import PartitionDriver

turn = PartitionDriver.turn


def deadly(drive: Any) -> None:
    if drive.record.flow_name == "poison" and not drive.paused and drive.state.adoptions_in_a_row <= 5:
        os.kill(os.getpid(), signal.SIGKILL)
    turn(drive)


async def deadly_replay(_reader: PartitionReader, loaded: LoadedPartition) -> None:
    if loaded.record.flow_name == "unreadable":
        os.kill(os.getpid(), signal.SIGKILL)
    await replay(_reader, loaded)


replay = PartitionReader._replay
PartitionReader._replay = deadly_replay  # type: ignore[method-assign]  # that is what it is for
PartitionDriver.turn = deadly  # type: ignore[method-assign]  # that is what it is for
