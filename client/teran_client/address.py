"""Where a client connects to: one server, or several that it takes turns with."""

import ipaddress
import json
from collections.abc import Sequence

from teran.errors import TeranInputError

CHANNEL_OPTIONS: Sequence[tuple[str, int | str]] = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # A server that vanished without a word is noticed, also while requests wait for it.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # Its health service can't be watched (Triton 2.51), so only connections tell who is up.
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
)
"""How every channel is set up: servers in turn, those that are up."""


def target(url: str) -> str:
    """What gRPC connects to.

    Args:
        url: host:port, several of them with commas, where the hosts are IP addresses of one kind,
            or dns:///host:port for all addresses of a name.

    Raises:
        TeranInputError: it is something else.
    """
    addresses = [part.strip() for part in url.removeprefix("dns:///").split(",")]
    if not all(addresses) or any("://" in one or ":" not in one for one in addresses):
        raise TeranInputError(
            f"url is {url!r}, expected host:port, several with commas, or dns:///host:port"
        )
    if len(addresses) == 1:
        return url
    try:
        versions = {
            ipaddress.ip_address(one.rpartition(":")[0].strip("[]")).version for one in addresses
        }
    except ValueError:
        versions = set()
    if len(versions) != 1 or url.startswith("dns:"):
        raise TeranInputError(
            f"url is {url!r}: several servers go by IP addresses of one kind; for all addresses of "
            "a name, write dns:///host:port"
        )
    return f"ipv{versions.pop()}:{','.join(addresses)}"
