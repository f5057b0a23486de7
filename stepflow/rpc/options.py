"""HTTP/2 settings of the mesh's servers and channels: message sizes, keep-alives, reconnects."""

from __future__ import annotations

from stepflow.codec import PAYLOAD_BYTES_MAX

MESSAGE_BYTES_MAX = 2 * PAYLOAD_BYTES_MAX

KEEPALIVE_MS = 20_000
"""Ping interval of a silent connection."""

KEEPALIVE_TIMEOUT_MS = 5_000

LINK_PING_MS = 2_000
LINK_PING_TIMEOUT_MS = 2_000
"""Interval and time-out between services, in both directions. Their sum is below the time after which an executor
considers a host lost, so that messages delayed by the network until then meet a connection closed by the host."""

PING_INTERVAL_MIN_MS = 1_000
"""A server disconnects clients that ping more often."""

PENDING_CALLS_MAX = 20_000
"""Waiting calls; thousands of clients may reconnect at once."""

RECONNECT_BACKOFF_MIN_MS = 100
RECONNECT_BACKOFF_MAX_MS = 2_000

RECEIVED_AHEAD_BYTES = 512 * 1024
"""Received of a stream before it is read, by a server with a budget for large values."""

assert PING_INTERVAL_MIN_MS < LINK_PING_MS < KEEPALIVE_MS


def ping_options(interval_ms: int, timeout_ms: int) -> tuple[tuple[str, int], ...]:
    """Return options that ping a silent connection and close it without an answer."""
    return (
        ("grpc.keepalive_time_ms", interval_ms),
        ("grpc.keepalive_timeout_ms", timeout_ms),
        ("grpc.http2.ping_timeout_ms", timeout_ms),  # without it gRPC waits for a minute, despite the line above
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
    # By default a server cancels calls once a thousand wait.
    ("grpc.server.max_pending_requests", PENDING_CALLS_MAX // 2),
    ("grpc.server.max_pending_requests_hard_limit", PENDING_CALLS_MAX),
    ("grpc.so_reuseport", 0),  # two servers on one port would share its clients silently
)
BUDGETED_SERVER_OPTIONS = (
    # By default gRPC receives tens of megabytes of each stream ahead of its reader, which no budget counts. A message
    # that is being read is received whole all the same.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", RECEIVED_AHEAD_BYTES),
)
CHANNEL_OPTIONS = (
    *COMMON_OPTIONS,
    ("grpc.initial_reconnect_backoff_ms", RECONNECT_BACKOFF_MIN_MS),
    ("grpc.min_reconnect_backoff_ms", RECONNECT_BACKOFF_MIN_MS),
    ("grpc.max_reconnect_backoff_ms", RECONNECT_BACKOFF_MAX_MS),
    ("grpc.enable_retries", 0),  # callers know which calls may be repeated
    ("grpc.service_config", '{"loadBalancingConfig":[{"round_robin":{}}]}'),
)
