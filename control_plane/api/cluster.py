"""BlobsService, ComponentsService and ClusterService: decode, read the store or the blob store, encode."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from stepflow.codec import PAYLOAD_BYTES_MAX
from stepflow.errors import FailedPrecondition, Invalid, NotFound
from stepflow.mesh.v1 import (
    blobs_pb2,
    blobs_pb2_grpc,
    cluster_pb2,
    cluster_pb2_grpc,
    components_pb2,
    components_pb2_grpc,
    state_pb2,
)
from stepflow.store import keys, range_all
from stepflow.store.blobs import DATA

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from control_plane.api.values import Values
    from stepflow.store import Store
    from stepflow.store.blobs import BlobStore

CHUNK_BYTES_MAX = 1024 * 1024


class BlobsServicer(blobs_pb2_grpc.BlobsServiceServicer):
    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs

    async def PutBlob(self, request: blobs_pb2.PutBlobRequest, _: Any) -> blobs_pb2.PutBlobResponse:
        identity = await self._blobs.put(request.content, blob_type=request.blob_type or DATA)
        return blobs_pb2.PutBlobResponse(blob_id=identity)

    async def GetBlob(self, request: blobs_pb2.GetBlobRequest, _: Any) -> blobs_pb2.GetBlobResponse:
        content, blob_type = await self._blobs.get(request.blob_id)
        return blobs_pb2.GetBlobResponse(content=content, blob_type=blob_type)

    async def UploadBlob(
        self, requests: AsyncIterator[blobs_pb2.UploadBlobRequest], _: Any
    ) -> blobs_pb2.UploadBlobResponse:
        content = bytearray()
        blob_type = ""
        async for request in requests:
            blob_type = blob_type or request.blob_type
            if len(request.chunk) > CHUNK_BYTES_MAX:
                raise Invalid(
                    "CHUNK_TOO_LARGE", f"a piece of {len(request.chunk):,} bytes; the limit is {CHUNK_BYTES_MAX:,}"
                )
            content += request.chunk
            if len(content) > PAYLOAD_BYTES_MAX:
                raise Invalid("PAYLOAD_TOO_LARGE", f"a blob has at most {PAYLOAD_BYTES_MAX:,} bytes")
        identity = await self._blobs.put(bytes(content), blob_type=blob_type or DATA)
        return blobs_pb2.UploadBlobResponse(blob_id=identity)

    async def DownloadBlob(
        self, request: blobs_pb2.DownloadBlobRequest, _: Any
    ) -> AsyncIterator[blobs_pb2.DownloadBlobResponse]:
        content, blob_type = await self._blobs.get(request.blob_id)
        yield blobs_pb2.DownloadBlobResponse(
            chunk=content[:CHUNK_BYTES_MAX], blob_type=blob_type, content_bytes=len(content)
        )
        for start in range(CHUNK_BYTES_MAX, len(content), CHUNK_BYTES_MAX):
            yield blobs_pb2.DownloadBlobResponse(chunk=content[start : start + CHUNK_BYTES_MAX])


class ComponentsServicer(components_pb2_grpc.ComponentsServiceServicer):
    def __init__(self, store: Store, values: Values) -> None:
        self._store = store
        self._values = values

    async def ListComponents(
        self, request: components_pb2.ListComponentsRequest, _: Any
    ) -> components_pb2.ListComponentsResponse:
        found = await self._components(request.plugin)
        components = [
            await self._message(*found[place], request.value_form, with_schemas=request.include_schemas)
            for place in sorted(found)
        ]
        return components_pb2.ListComponentsResponse(components=components)

    async def GetComponent(
        self, request: components_pb2.GetComponentRequest, _: Any
    ) -> components_pb2.GetComponentResponse:
        for (_plugin, _path, component), found in (await self._components(request.plugin)).items():
            if component == request.component:
                message = await self._message(*found, request.value_form, with_schemas=True)
                return components_pb2.GetComponentResponse(component=message)
        raise NotFound(
            "COMPONENT_NOT_FOUND", f"no live host offers a component {request.component!r} of plugin {request.plugin!r}"
        )

    async def _components(
        self, plugin: str
    ) -> dict[tuple[str, str, str], tuple[str, state_pb2.ComponentListing, list[str]]]:
        """Return what the hosts offer, by plugin, path and name: plugin, listing, hosts."""
        found: dict[tuple[str, str, str], tuple[str, state_pb2.ComponentListing, list[str]]] = {}
        async for item in range_all(self._store, keys.HOST_SESSIONS):
            host_id = keys.tail(keys.HOST_SESSIONS, item.key)
            for listing in state_pb2.HostSession.FromString(item.value).plugins:
                if plugin and listing.plugin != plugin:
                    continue
                for component in listing.components:
                    place = (listing.plugin, component.path, component.component)
                    found.setdefault(place, (listing.plugin, component, []))[2].append(host_id)
        return found

    async def _message(
        self, plugin: str, listing: state_pb2.ComponentListing, host_ids: list[str], form: Any, *, with_schemas: bool
    ) -> components_pb2.Component:
        message = components_pb2.Component(
            plugin=plugin,
            component=listing.component,
            path=listing.path,
            description=listing.description,
            host_ids=host_ids,
        )
        if with_schemas and listing.input_schema_json:
            message.input_schema.CopyFrom(await self._values.write(listing.input_schema_json, form))
        if with_schemas and listing.output_schema_json:
            message.output_schema.CopyFrom(await self._values.write(listing.output_schema_json, form))
        return message


class Drainer(Protocol):
    """Reaches executors and hosts, to have them drained. Raises: NotFound, Unavailable."""

    async def drain_executor(self, executor_id: str) -> None: ...
    async def drain_host(self, host_id: str) -> None: ...


class ClusterServicer(cluster_pb2_grpc.ClusterServiceServicer):
    def __init__(self, store: Store, control_plane_id: str, drainer: Drainer | None) -> None:
        self._store = store
        self._id = control_plane_id
        self._drainer = drainer

    async def GetCluster(self, _request: cluster_pb2.GetClusterRequest, _: Any) -> cluster_pb2.GetClusterResponse:
        leader = await self._store.get(keys.leader())
        reply = cluster_pb2.GetClusterResponse(
            control_plane_id=self._id, leader_id="" if leader is None else leader.value.decode()
        )
        async for item in range_all(self._store, keys.EXECUTOR_SESSIONS):
            executor_id = keys.tail(keys.EXECUTOR_SESSIONS, item.key)
            executor = state_pb2.ExecutorSession.FromString(item.value)
            reply.executors.add(
                executor_id=executor_id,
                address=executor.address,
                runs=await self._count(keys.assigned_to(executor_id)),
                runs_max=executor.runs_max,
                engine_version=executor.engine_version,
                draining=executor.draining,
            )
        async for item in range_all(self._store, keys.HOST_SESSIONS):
            host = state_pb2.HostSession.FromString(item.value)
            reply.hosts.append(_host(keys.tail(keys.HOST_SESSIONS, item.key), host))
        reply.runs_pending = await self._count(keys.PENDING)
        return reply

    async def _count(self, prefix: str) -> int:
        return sum([1 async for _ in range_all(self._store, prefix)])

    async def Drain(self, request: cluster_pb2.DrainRequest, _: Any) -> cluster_pb2.DrainResponse:
        target = request.WhichOneof("target")
        if target is None:
            raise Invalid("DRAIN_TARGET_MISSING", "say what to drain: executor_id or host_id")
        if self._drainer is None:
            raise FailedPrecondition("DRAIN_UNSUPPORTED", "nothing of an embedded mesh can be drained")
        if target == "executor_id":
            await self._drainer.drain_executor(request.executor_id)
        else:
            await self._drainer.drain_host(request.host_id)
        return cluster_pb2.DrainResponse()


def _host(host_id: str, session: state_pb2.HostSession) -> cluster_pb2.HostInfo:
    host = cluster_pb2.HostInfo(
        host_id=host_id, address=session.address, capacity=session.capacity, draining=session.draining
    )
    for plugin in session.plugins:
        host.plugins.add(
            plugin=plugin.plugin,
            type=plugin.type,
            state=state_pb2.PluginListing.State.Name(plugin.state).removeprefix("STATE_").lower(),
            last_error=plugin.last_error,
            components=len(plugin.components),
            restarts=plugin.restarts,
        )
    return host
