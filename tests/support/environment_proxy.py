"""An HTTP proxy for the proxy variables of the environment: it records every request and refuses it."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

SECRET = "proxy-passw0rd"  # noqa: S105  # no secret

VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
EXCEPTIONS = ("no_proxy", "NO_PROXY", "no_grpc_proxy")


class RecordingProxy:
    """A running proxy. `asked` holds the target of each request: HOST:PORT for a tunnel, a URL for plain HTTP."""

    def __init__(self, port: int) -> None:
        self.asked: list[str] = []
        self.shown = f"http://127.0.0.1:{port}"
        """Its URL as errors may show it."""
        self.url = f"http://someone:{SECRET}@127.0.0.1:{port}"

    @property
    def environ(self) -> dict[str, str]:
        return environ_with(self.url)


def environ_with(url: str) -> dict[str, str]:
    """Return every variable that configures a proxy, set to `url`, with no exceptions (NO_PROXY)."""
    return {**dict.fromkeys(VARIABLES, url), **dict.fromkeys(EXCEPTIONS, "")}


@contextmanager
def recording_proxy(status: int = 502) -> Iterator[RecordingProxy]:
    """Run a proxy on loopback that answers every request with `status`."""

    class Handler(BaseHTTPRequestHandler):
        def refuse(self) -> None:
            proxy.asked.append(self.path)
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.send_header("Connection", "close")
            self.end_headers()
            self.close_connection = True

        do_CONNECT = do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = refuse  # noqa: N815  # the library's names

        def log_message(self, *args: object) -> None:
            del args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    proxy = RecordingProxy(server.server_port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


__all__ = ["EXCEPTIONS", "SECRET", "VARIABLES", "RecordingProxy", "environ_with", "recording_proxy"]
