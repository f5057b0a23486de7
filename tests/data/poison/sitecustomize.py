"""Python imports this at its start where the folder is on its path: an executor that dies of runs named `poison`.

The death is that of a run which takes its process along (out of memory, a crash in native code): no word, no clean-up.
"""

import os
import signal
from typing import Any

from executor.drive import PartitionDriver

turn = PartitionDriver.turn


def deadly(drive: Any) -> None:
    if drive.record.flow_name == "poison" and not drive.paused and drive.state.adoptions_in_a_row <= 5:
        os.kill(os.getpid(), signal.SIGKILL)
    turn(drive)


PartitionDriver.turn = deadly  # type: ignore[method-assign]  # that is what it is for
