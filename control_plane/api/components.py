"""ComponentsService: list the components of live hosts, read from their sessions; restart their servers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepflow.errors import FailedPrecondition, Invalid, NotFound
from stepflow.mesh.v1 import components_pb2, components_pb2_grpc, state_pb2
from stepflow.store import keys, range_all

if TYPE_CHECKING:
    from control_plane.api.values import Values
    from control_plane.restarts import Restarts
    from stepflow.store import Store


class ComponentsServicer(components_pb2_grpc.ComponentsServiceServicer):
    def __init__(self, store: Store, values: Values, restarts: Restarts | None = None) -> None:
        self._store = store
        self._values = values
        self._restarts = restarts

    async def ListComponents(
        self, request: components_pb2.ListComponentsRequest, _: Any
    ) -> components_pb2.ListComponentsResponse:
        found = await self._components(request.plugin)
        components = [
            await self._message(*found[key], request.value_form, with_schemas=request.include_schemas)
            for key in sorted(found)
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

    async def RestartPlugin(
        self, request: components_pb2.RestartPluginRequest, _: Any
    ) -> components_pb2.RestartPluginResponse:
        if not request.plugin:
            raise Invalid("PLUGIN_MISSING", "the request names no plugin: set plugin")
        if self._restarts is None:
            raise FailedPrecondition("RESTART_UNSUPPORTED", "an embedded mesh restarts no plugins")
        outcomes = await self._restarts.restart(request.plugin, request.host_id)
        return components_pb2.RestartPluginResponse(
            hosts=[
                components_pb2.HostRestart(host_id=each.host_id, outcome=each.outcome, detail=each.detail)
                for each in outcomes
            ]
        )

    async def _components(
        self, plugin: str
    ) -> dict[tuple[str, str, str], tuple[str, state_pb2.ComponentListing, list[str]]]:
        """Return plugin, listing and host ids of each component, by plugin, path and name."""
        found: dict[tuple[str, str, str], tuple[str, state_pb2.ComponentListing, list[str]]] = {}
        async for item in range_all(self._store, keys.HOST_SESSIONS):
            host_id = keys.tail(keys.HOST_SESSIONS, item.key)
            for listing in state_pb2.HostSession.FromString(item.value).plugins:
                if plugin and listing.plugin != plugin:
                    continue

                for component in listing.components:
                    key = (listing.plugin, component.path, component.component)
                    found.setdefault(key, (listing.plugin, component, []))[2].append(host_id)
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
