"""The handshake with a stdio server, and the traits of its generation.

Generations before our SDK announce nothing, so they are probed: an execute of a component that does not exist, once
without the member required since 0.7.0 and once without the member required since 0.4.0. Servers do not answer
requests without required members, so the answers tell the generation: the longest line, and whether call-backs carry
span ids. The probe works behind any launcher, unlike a look at installed packages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from component_host.stepflow_bridge import protocol
from component_host.stepflow_bridge.listing import components_of
from stepflow.codec import PAYLOAD_BYTES_MAX

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from component_host.backend import ComponentInfo
    from component_host.stepflow_bridge.stdio.questions import Questions
    from component_host.supervision.process import ServerProcess

LINE_BYTES_OLD = 64 * 1024
"""Longest line of 0.2.1 to 0.3.0; a longer line crashes them."""

LINE_BYTES_0_4 = 512 * 1024
"""Longest line of 0.4.0 to 0.7.0."""

LINE_BYTES_OWN = PAYLOAD_BYTES_MAX + 1024 * 1024
"""Longest line of servers with our SDK that announce no limit: any payload and its envelope."""

_PROBE_COMPONENT = "/stepflow-mesh/does-not-exist"

assert LINE_BYTES_OWN > PAYLOAD_BYTES_MAX


@dataclass(frozen=True, slots=True)
class ServerTraits:
    """What the host has to know of a server's generation."""

    attributed: bool = False
    """Call-backs name their execute."""
    line_bytes_max: int = LINE_BYTES_OLD
    cancels: bool = False
    """The server stops an execute on `components/cancel`."""


async def shake_hands(
    process: ServerProcess, questions: Questions, plugin: str, on_traits: Callable[[ServerTraits], None]
) -> list[ComponentInfo]:
    """Initialize a server and return its components.

    `on_traits` gets the traits; again if a probe is answered late. Raises: ServerEndedError, ServerRefusedError.
    """
    # 1. Initialize.
    reply = await questions.ask(process, "initialize", protocol.initialize_params(plugin))
    capabilities = protocol.capabilities_of(reply)
    process.make_output_blocking()
    process.write(protocol.line_of(protocol.Notification("initialized", {})))

    # 2. Probe, before the next question: stepflow-py answers in order, so its answer follows those to the probes.
    probes = [] if capabilities is not None else _probe(process, questions, on_traits)

    # 3. List.
    reply = await questions.ask(process, "components/list", {})
    components = components_of(reply, plugin)

    # 4. Tell the traits.
    if capabilities is None:
        on_traits(_traits_of(probes))
        process.forget_stderr()  # complaints about the probes, written before the answer
    else:
        line_bytes_max = capabilities.line_bytes_max or LINE_BYTES_OWN
        on_traits(ServerTraits(attributed=True, line_bytes_max=line_bytes_max, cancels=capabilities.cancel))
    return components


def _probe(
    process: ServerProcess, questions: Questions, on_traits: Callable[[ServerTraits], None]
) -> list[asyncio.Future[protocol.Line]]:
    """Send the executes that only older generations answer: without ids (before 0.7.0), without attempt (before 0.4.0).

    Late answers, of servers that answer out of order, change the traits.
    """
    known = {"component": _PROBE_COMPONENT, "input": None, "step_id": "", "run_id": "", "flow_id": ""}
    probes = [
        questions.send_question(process, "components/execute", {**known, "attempt": 1}),
        questions.send_question(process, "components/execute", {**known, "observability": {}}),
    ]
    for probe in probes:
        probe.add_done_callback(lambda _: on_traits(_traits_of(probes)))
    return probes


def _traits_of(probes: list[asyncio.Future[protocol.Line]]) -> ServerTraits:
    ids_required, attempt_required = (not probe.done() for probe in probes)
    return ServerTraits(
        attributed=ids_required and attempt_required,
        line_bytes_max=LINE_BYTES_0_4 if attempt_required else LINE_BYTES_OLD,
    )
