"""HTTP/2 settings of the mesh's servers and channels: message sizes, keep-alives, reconnects."""

from __future__ import annotations

from stepflow.codec import PAYLOAD_BYTES_MAX

MESSAGE_BYTES_MAX = 2 * PAYLOAD_BYTES_MAX

KEEPALIVE_MS = 20_000
"""How often a silent connection is asked whether the other side still lives."""

KEEPALIVE_TIMEOUT_MS = 5_000

LINK_PING_MS = 2_000
LINK_PING_TIMEOUT_MS = 2_000
"""The same between services, from both sides. Together less than the time after which an executor takes a host for
lost: what the network kept back from a host until then must meet a connection that the host has given up."""

PING_INTERVAL_MIN_MS = 1_000
"""A server cuts clients that ask more often."""

PENDING_CALLS_MAX = 20_000
"""Calls of one moment: thousands of clients that come back together must all be heard."""

RECONNECT_BACKOFF_MIN_MS = 100
RECONNECT_BACKOFF_MAX_MS = 2_000

assert PING_INTERVAL_MIN_MS < LINK_PING_MS < KEEPALIVE_MS


def ping_options(interval_ms: int, timeout_ms: int) -> tuple[tuple[str, int], ...]:
    """Return what makes gRPC ask a silent connection for a sign of life, and give it up without one."""
    return (
        ("grpc.keepalive_time_ms", interval_ms),
        ("grpc.keepalive_timeout_ms", timeout_ms),
        ("grpc.http2.ping_timeout_ms", timeout_ms),  # without it gRPC waits for a minute, whatever the line above says
    )


CLIENT_PINGS = ping_options(KEEPALIVE_MS, KEEPALIVE_TIMEOUT_MS)
LINK_PINGS = ping_options(LINK_PING_MS, LINK_PING_TIMEOUT_MS)
COMMON_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)
SERVER_OPTIONS = (
    *COMMON_OPTIONS,
    ("grpc.http2.min_ping_interval_without_data_ms", PING_INTERVAL_MIN_MS),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", PING_INTERVAL_MIN_MS),
    # By default a server drops calls, as CANCELLED, once a thousand have arrived that it has not yet looked at.
    ("grpc.server.max_pending_requests", PENDING_CALLS_MAX // 2),
    ("grpc.server.max_pending_requests_hard_limit", PENDING_CALLS_MAX),
    ("grpc.so_reuseport", 0),  # two servers on one port would share its clients silently
)
CHANNEL_OPTIONS = (
    *COMMON_OPTIONS,
    ("grpc.initial_reconnect_backoff_ms", RECONNECT_BACKOFF_MIN_MS),
    ("grpc.min_reconnect_backoff_ms", RECONNECT_BACKOFF_MIN_MS),
    ("grpc.max_reconnect_backoff_ms", RECONNECT_BACKOFF_MAX_MS),
    ("grpc.enable_retries", 0),  # whoever calls knows what may be repeated
    ("grpc.service_config", '{"loadBalancingConfig":[{"round_robin":{}}]}'),
)
