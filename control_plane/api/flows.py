"""FlowsService: store, read, list and delete flows, over the control plane and the catalog."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from control_plane.catalog import read_name
from control_plane.paging import page_size, read_token, write_token
from stepflow.codec import decode
from stepflow.errors import Invalid
from stepflow.flow import Diagnostics, Flow, flow_from_tree, flow_id, validate_flow
from stepflow.mesh.v1 import flows_pb2, flows_pb2_grpc
from stepflow.off_loop import off_loop
from stepflow.rpc.findings import finding_message
from stepflow.store import keys

if TYPE_CHECKING:
    from control_plane.api.values import Values
    from control_plane.catalog import Catalog
    from control_plane.control_plane import ControlPlane
    from stepflow.mesh.v1 import values_pb2


class FlowsServicer(flows_pb2_grpc.FlowsServiceServicer):
    def __init__(self, control: ControlPlane, catalog: Catalog, values: Values) -> None:
        self._control = control
        self._catalog = catalog
        self._values = values

    async def StoreFlow(self, request: flows_pb2.StoreFlowRequest, _: Any) -> flows_pb2.StoreFlowResponse:
        flow = await read_flow(self._values, request.document)
        diagnostics = Diagnostics(flow.warnings) + validate_flow(flow)
        reply = flows_pb2.StoreFlowResponse(flow_id=flow_id(flow), diagnostics=_messages(diagnostics))
        if request.validate_only:
            return reply

        if request.label and not flow.name:
            raise Invalid(
                "LABEL_INVALID", "a label marks a version of a named flow; give the flow a name or omit the label"
            )

        await self._control.store_flow(flow)
        if flow.name:
            added = await self._catalog.add_version(flow.name, reply.flow_id, request.label)
            reply.version, reply.newest_version, reply.label_from = added.version, added.newest, added.label_from
        reply.stored = True
        return reply

    async def ValidateFlow(self, request: flows_pb2.ValidateFlowRequest, _: Any) -> flows_pb2.ValidateFlowResponse:
        # 1. The flow, given or stored.
        reference = await find_flow(self._values, self._catalog, request.flow)
        if isinstance(reference, str):
            flow, identity = await self._control.find_flow(reference), reference
        else:
            flow, identity = reference, flow_id(reference)

        # 2. What a run would be given.
        names = set(request.variables) if request.variables or request.all_variables else None
        overrides = (
            decode(await self._values.read(request.overrides, "overrides")) if request.HasField("overrides") else None
        )

        # 3. The check.
        checks = self._control.checks
        if request.type_check:
            found, _ = await checks.types_verdict(flow, names, overrides, strict=request.strict)
        else:
            found, _ = await checks.verdict(flow, identity, names, overrides)
            found = found.strict() if request.strict else found
        return flows_pb2.ValidateFlowResponse(flow_id=identity, diagnostics=_messages(found), passed=not found.blocks)

    async def GetFlow(self, request: flows_pb2.GetFlowRequest, _: Any) -> flows_pb2.GetFlowResponse:
        match request.flow.WhichOneof("kind"):
            case "flow_id":
                identity = request.flow.flow_id
            case "named":
                identity = await self._catalog.resolve(request.flow.named.name, request.flow.named.label)
            case _:
                raise Invalid("FLOW_MISSING", "the request names no flow: set flow_id or named")

        document = await self._control.get_flow(identity)
        return flows_pb2.GetFlowResponse(
            flow_id=identity, document=await self._values.write(document, request.value_form)
        )

    async def ListFlows(self, request: flows_pb2.ListFlowsRequest, _: Any) -> flows_pb2.ListFlowsResponse:
        after = read_token(request.page_token, str) or ""
        page = await self._catalog.names_page(request.name_prefix, after, page_size(request.page_size))

        reply = flows_pb2.ListFlowsResponse()
        for item in page.items:
            after = keys.tail(keys.FLOW_NAMES, item.key)
            listed = reply.flows.add(name=after)
            for version in read_name(item.value).versions:
                listed.versions.add(
                    flow_id=version.flow_id,
                    version=version.version,
                    labels=version.labels,
                    stored_at_ms=version.stored_at_ms,
                )

        if page.more:
            reply.next_page_token = write_token(after)
        return reply

    async def DeleteFlow(self, request: flows_pb2.DeleteFlowRequest, _: Any) -> flows_pb2.DeleteFlowResponse:
        await self._catalog.delete(request.name, request.label)
        return flows_pb2.DeleteFlowResponse()


async def find_flow(values: Values, catalog: Catalog, reference: flows_pb2.FlowReference) -> Flow | str:
    """Return the flow of a reference, or the id of a stored one. Raises: Invalid, NotFound."""
    match reference.WhichOneof("kind"):
        case "flow_id":
            return reference.flow_id
        case "named":
            return await catalog.resolve(reference.named.name, reference.named.label)
        case "document":
            return await read_flow(values, reference.document)
        case _:
            raise Invalid("FLOW_MISSING", "the request names no flow: set flow_id, named or document")


async def read_flow(values: Values, document: values_pb2.Value) -> Flow:
    """Parse the flow of a request. Raises: Invalid, NotFound."""
    text = await values.read(document, "the flow")
    return await off_loop(len(text), _parse, text)


def _parse(text: bytes) -> Flow:
    return flow_from_tree(decode(text))


def _messages(found: Diagnostics) -> list[flows_pb2.FlowDiagnostic]:
    return [finding_message(diagnostic.to_tree()) for diagnostic in found]
