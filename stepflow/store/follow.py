"""Follow the keys under a prefix, across all failures of watches.

A watch is a hint: it may be compacted, cut off, or stall silently. So the keys are listed at the start, after every
error of any kind, and every `RELIST_INTERVAL_S` as the backstop. Each watch is opened before the list is read: no
change is missed, and a change in both is reported twice, which followers must tolerate.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from stepflow.errors import StepflowError
from stepflow.retry import doubling
from stepflow.store.protocol import KeyValue, range_all
from stepflow.telemetry import get_logger, log_defect

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stepflow.store.protocol import Store, StoreEvent

log = get_logger(__name__)

RELIST_INTERVAL_S = 30.0
"""Longest delay of a change that the watch has missed."""

RELIST_PAUSE_S = 0.5
"""Pause after an error; after a defect of the follower it doubles up to the interval."""


async def follow(
    store: Store,
    prefix: str,
    *,
    listed: Callable[[list[KeyValue]], None],
    changed: Callable[[Sequence[StoreEvent]], None],
    read: bool = True,
    relist_interval_s: float = RELIST_INTERVAL_S,
) -> None:
    """Call `listed` with all keys under the prefix, then `changed` with the events of each revision, until cancelled.

    `listed` is called again whenever changes may have been missed: keys absent from its list are deleted. With `read`
    false nothing is listed and `listed` gets an empty list, for followers that read the store themselves. An exception
    of a callback is a bug of the follower: it is logged, and after a pause everything is listed again.
    """
    pauses_s = doubling(RELIST_PAUSE_S, RELIST_INTERVAL_S)
    while True:
        watch = store.watch(prefix)
        try:
            listed([item async for item in range_all(store, prefix)] if read else [])
            async with asyncio.timeout(relist_interval_s):
                async for batch in watch:
                    changed(batch.events)
        except TimeoutError:
            pauses_s = doubling(RELIST_PAUSE_S, RELIST_INTERVAL_S)
        except StepflowError as error:
            log.info("watch restarted", prefix=prefix, reason=error.reason)
            await asyncio.sleep(RELIST_PAUSE_S)
        except Exception as error:  # Logged, not raised: the follower would see no change from now on.
            log_defect(log, "follower failed by a defect, listing again", error, prefix=prefix)
            await asyncio.sleep(next(pauses_s))
        finally:
            watch.close()
