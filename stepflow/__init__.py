"""A durable AI-workflow engine: what the services and the command line share."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepflow.client import BlockingClient, Client

__version__ = "0.1.0"

__all__ = ["BlockingClient", "Client", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the clients when they are first asked for: they bring gRPC, and the command line must start fast."""
    if name in ("BlockingClient", "Client"):
        import stepflow.client

        return getattr(stepflow.client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
