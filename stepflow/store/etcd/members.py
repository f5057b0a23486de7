"""The members of an etcd: status, version, and which of them to start with."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from stepflow.errors import Forbidden, StepflowError
from stepflow.etcd.v1 import etcd_pb2 as pb
from stepflow.store.etcd.client import STATUS, EtcdClient, check_version
from stepflow.store.etcd.metrics import read_metrics
from stepflow.store.protocol import StoreUnavailable
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from stepflow.store.etcd.config import EtcdConfig

log = get_logger(__name__)

UNKNOWN_VERSION = "unknown"


@dataclass(frozen=True, slots=True)
class EtcdStatus:
    """Status of a member. `size_bytes` is the size of its database file, which counts against its quota."""

    endpoint: str
    version: str
    size_bytes: int
    size_in_use_bytes: int
    has_leader: bool


async def choose_endpoint(client: EtcdClient) -> str:
    """Check the version of all members that answer, start all channels with the first one, and return its version."""
    endpoints = client.config.endpoints
    answers = await asyncio.gather(*(_ask_status(client.config, endpoint) for endpoint in endpoints))

    errors: list[StepflowError] = []
    version = ""
    for index, answer in enumerate(answers):
        if isinstance(answer, StepflowError):
            errors.append(answer)
            continue
        if answer.version != UNKNOWN_VERSION:
            check_version(answer.version, answer.endpoint)
        if not version and answer.has_leader:
            version = answer.version
            for channel in (client.kv, client.lease, client.watch):
                channel.prefer(index)
    if version:
        return version

    # No member can be used: report the most definite error.
    other = next((error for error in errors if not isinstance(error, StoreUnavailable)), None)
    if other is not None:
        raise other
    if errors:
        raise StoreUnavailable(
            "STORE_UNREACHABLE",
            f"no etcd answers at {', '.join(endpoints)} ({errors[0].message}): is it running, and the address right?",
        )
    raise StoreUnavailable("STORE_UNREACHABLE", f"the etcd members at {', '.join(endpoints)} have no leader now")


async def _ask_status(config: EtcdConfig, endpoint: str) -> EtcdStatus | StepflowError:
    client = EtcdClient(replace(config, endpoints=(endpoint,)))
    try:
        return await ask_member(client, endpoint)
    except Forbidden:
        log.warning("etcd does not tell this user its version; it must be 3.5.17 or later", endpoint=endpoint)
        return EtcdStatus(endpoint, UNKNOWN_VERSION, 0, 0, True)
    except StepflowError as error:
        return error
    finally:
        await client.close()


async def ask_member(client: EtcdClient, endpoint: str) -> EtcdStatus:
    """Return the status of a member. Raises: StoreUnavailable; Forbidden, and it serves no metrics either."""
    try:
        reply: pb.StatusResponse = await client.call(client.kv, STATUS, pb.StatusRequest())
    except Forbidden as refusal:  # with logins, status is for root only; metrics are public
        try:
            metrics = await read_metrics(client.config, endpoint)
            return EtcdStatus(
                endpoint,
                metrics["etcd_server_version"],
                int(float(metrics["etcd_mvcc_db_total_size_in_bytes"])),
                int(float(metrics["etcd_mvcc_db_total_size_in_use_in_bytes"])),
                metrics["etcd_server_has_leader"] != "0",
            )
        except (StoreUnavailable, KeyError, ValueError):
            raise refusal from None
    return EtcdStatus(endpoint, reply.version, reply.db_size, reply.db_size_in_use, reply.leader != 0)
