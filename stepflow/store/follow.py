"""Following the keys under a prefix for as long as somebody cares, whatever happens to watches on the way.

A watch is a hint: it may be compacted, cut off, or stall without a sign. So the keys are listed when the following
begins, again after every error, and every `RELIST_INTERVAL_S` in any case. Each watch is opened before the list is
read, so nothing falls between the two; what falls into both is told twice, and followers must bear that.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from stepflow.errors import StepflowError
from stepflow.store.protocol import KeyValue, range_all
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stepflow.store.protocol import Store, StoreEvent

log = get_logger(__name__)

RELIST_INTERVAL_S = 30.0
"""How long a change that no watch has told may go unnoticed."""

RELIST_PAUSE_S = 0.5
"""After an error, before the store is asked again."""


async def follow(
    store: Store,
    prefix: str,
    *,
    listed: Callable[[list[KeyValue]], None],
    changed: Callable[[Sequence[StoreEvent]], None],
    read: bool = True,
    relist_interval_s: float = RELIST_INTERVAL_S,
) -> None:
    """Until cancelled, call `listed` with all keys under the prefix, then `changed` with what each revision does.

    `listed` is called again whenever changes may have been missed: what it does not name is gone. With `read` false
    nothing is listed and `listed` gets an empty list, for followers who then look at what they care about themselves.
    An exception of a callback ends the following: it is a mistake of the follower's.
    """
    while True:
        watch = store.watch(prefix)
        try:
            listed([item async for item in range_all(store, prefix)] if read else [])
            async with asyncio.timeout(relist_interval_s):
                async for batch in watch:
                    changed(batch.events)
        except TimeoutError:
            continue
        except StepflowError as error:
            log.info("following anew", prefix=prefix, reason=error.reason)
            await asyncio.sleep(RELIST_PAUSE_S)
        finally:
            watch.close()
