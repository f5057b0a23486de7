"""The proxy of an outgoing connection: one rule for all clients.

- Between the parts of a mesh (control planes, executors, hosts, etcd): none, regardless of the environment.
- To loopback addresses: none.
- To other addresses: the proxy named by the environment, except for the hosts in `no_proxy`.

Errors name the proxy and its variable, never its user or password. gRPC clients read other variables than HTTP clients,
hence `grpc_proxy_for` and `proxy_for`.

Not here: SOCKS, which the HTTP clients do not support, and settings outside of the environment.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from stepflow.errors import Invalid

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LOOPBACK = ("localhost", "127.0.0.1", "127.0.0.0/8", "::1")
"""Loopback addresses, in the syntax of `no_proxy`. Some readers do not support networks."""

GATEWAY_STATUSES = frozenset({407, 502, 503, 504})
"""HTTP statuses of a proxy that cannot reach the server."""

DIRECT = ("grpc.enable_http_proxy", 0)
"""Channel option between parts of a mesh; without it, gRPC uses `http_proxy`."""

_PORTS = {"http": 80, "https": 443}

_GRPC_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
"""Variables read by gRPC, in its order; it ignores upper case and `all_proxy`."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy named by the environment. Its text omits the credentials."""

    url: str = field(repr=False)
    variable: str

    def __str__(self) -> str:
        scheme, _, rest = self.url.partition("://")
        return f"{scheme}://{rest.partition('/')[0].rpartition('@')[2]}"


def proxy_for(url: str, environ: Mapping[str, str]) -> Proxy | None:
    """Return the proxy for an `http` or `https` URL. Raises: Invalid `PROXY_UNSUPPORTED`."""
    proxy = named_proxy(url, environ)
    if proxy is not None and not proxy.url.startswith(("http://", "https://")):
        raise Invalid(
            "PROXY_UNSUPPORTED",
            f"the way to {urlsplit(url).hostname} leads{through(proxy)}, and only http:// and https:// proxies are "
            "supported: name one of these, or except the host",
            variable=proxy.variable,
        )
    return proxy


def named_proxy(url: str, environ: Mapping[str, str]) -> Proxy | None:
    """Return the proxy, of any scheme, for an `http` or `https` URL, for clients that read the environment."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        return None  # the client reports the invalid URL
    variable = f"{parts.scheme}_proxy"
    proxy = _first((variable, variable.upper()), environ)
    if proxy is None and not any(name in environ for name in (variable, variable.upper())):
        proxy = _first(("all_proxy", "ALL_PROXY"), environ)
    if proxy is None or is_local(host) or _is_excepted(host, port, _exceptions(("no_proxy", "NO_PROXY"), environ)):
        return None
    return proxy


def grpc_proxy_for(target: str, environ: Mapping[str, str]) -> Proxy | None:
    """Return the proxy for a gRPC target outside of the mesh. gRPC supports `http://` proxies only."""
    if target.startswith(("unix:", "unix-abstract:", "vsock:")):
        return None
    host, port = _host_and_port(target)
    proxy = _first(_GRPC_VARIABLES, environ)
    if proxy is None or not proxy.url.startswith("http://") or is_local(host):
        return None
    exceptions = _exceptions(("no_grpc_proxy", "no_proxy", "NO_PROXY"), environ)
    return None if _is_excepted(host, port, exceptions) else proxy


def grpc_options(proxy: Proxy | None) -> Sequence[tuple[str, Any]]:
    """Return the channel options that select `proxy`, or no proxy."""
    return (DIRECT,) if proxy is None else (("grpc.http_proxy", proxy.url),)


def through(proxy: Proxy | None) -> str:
    """Return the part of an error text that names the proxy; empty without a proxy."""
    if proxy is None:
        return ""
    return f" through the proxy {proxy} that `{proxy.variable}` names (`no_proxy` excepts hosts)"


def is_local(host: str) -> bool:
    """Return True if a host name or address is this machine's own. Names are not resolved."""
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    address = _address(name)
    return address is not None and (address.is_loopback or address.is_unspecified)


def no_proxy_with_loopback(environ: Mapping[str, str]) -> str:
    """Return a value of `no_proxy` that adds loopback to the exceptions of the environment.

    For programs and libraries that read the environment themselves.
    """
    return ",".join([*_exceptions(("no_proxy", "NO_PROXY"), environ), *LOOPBACK])


def no_grpc_proxy_with_loopback(environ: Mapping[str, str]) -> str:
    """Return the like value of `no_grpc_proxy`. When it is set, gRPC ignores `no_proxy`."""
    names = [environ[name] for name in ("no_grpc_proxy", "no_proxy", "NO_PROXY") if environ.get(name)]
    return ",".join([*names, *LOOPBACK])


def _first(variables: Sequence[str], environ: Mapping[str, str]) -> Proxy | None:
    """Return the proxy of the first variable that is set; None if that variable is empty."""
    for variable in variables:
        if variable in environ:
            url = environ[variable].strip()
            if not url:
                return None
            return Proxy(url if "://" in url else f"http://{url}", variable)
    return None


def _exceptions(variables: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    text = next((environ[variable] for variable in variables if environ.get(variable)), "")
    return [entry for part in text.split(",") if (entry := part.strip())]


def _is_excepted(host: str, port: int | None, entries: Sequence[str]) -> bool:
    name = host.lower().rstrip(".")
    address = _address(name)
    for entry in entries:
        if entry == "*":
            return True
        if address is not None and _is_within(address, entry):
            return True
        domain, colon, number = entry.lower().partition(":")
        if colon and number.isdigit() and int(number) != port:
            continue
        domain = domain.removeprefix("*").strip(".")
        if domain and (name == domain or name.endswith(f".{domain}")):
            return True
    return False


def _is_within(address: ipaddress.IPv4Address | ipaddress.IPv6Address, entry: str) -> bool:
    try:
        return address in ipaddress.ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        return False


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _host_and_port(target: str) -> tuple[str, int | None]:
    """Split a target of gRPC: HOST, HOST:PORT, or SCHEME:[//AUTHORITY/]HOST:PORT, the first of several addresses."""
    for scheme in ("dns:", "ipv4:", "ipv6:"):
        if target.startswith(scheme):
            target = target.removeprefix(scheme)
            break
    if target.startswith("//"):
        target = target[2:].partition("/")[2]
    target = target.partition(",")[0]
    if target.startswith("["):
        host, _, port = target[1:].partition("]")
        port = port.removeprefix(":")
    elif target.count(":") == 1:
        host, _, port = target.partition(":")
    else:
        host, port = target, ""
    return host, int(port) if port.isascii() and port.isdigit() else None


__all__ = [
    "DIRECT",
    "GATEWAY_STATUSES",
    "LOOPBACK",
    "Proxy",
    "grpc_options",
    "grpc_proxy_for",
    "is_local",
    "named_proxy",
    "no_grpc_proxy_with_loopback",
    "no_proxy_with_loopback",
    "proxy_for",
    "through",
]
