"""Which network addresses an artifact may be fetched from.

A model's address is written by a user, the fetch is done by the node: without this rule a user could read
what only the node can reach (its own admin ports, the cloud's metadata service). The name is resolved once
and the connection is made to the address that was judged, so that a second answer of the name server changes
nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Collection
from urllib.parse import urlsplit

from msm.kit.errors import LoadFailed

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
SHARED_SPACE = ipaddress.ip_network("100.64.0.0/10")  # carrier-grade NAT: private in effect


def is_public(address: str) -> bool:
    """Whether an address belongs to the public internet, also when it is an IPv4 one in IPv6 clothes."""
    found: Address = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour
        if inner is not None:
            found = inner
    if isinstance(found, ipaddress.IPv4Address) and found in SHARED_SPACE:
        return False
    return found.is_global and not found.is_multicast and not found.is_reserved


def host_and_port(url: str) -> tuple[str, int]:
    """Host (lower case) and port, with the scheme's own port when none is written."""
    parts = urlsplit(url)
    port = parts.port if parts.port is not None else (443 if parts.scheme == "https" else 80)
    return (parts.hostname or "").lower(), port


async def allowed_address(url: str, private_hosts: Collection[str]) -> str:
    """The address to connect to for `url`.

    Raises LoadFailed: "source_blocked" when any address of the name is not public and the host is not listed
    in `private_hosts`, "fetch_failed" when the name has no address.
    """
    host, port = host_and_port(url)
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise LoadFailed(f"the host {host!r} has no address", reason="fetch_failed") from error
    addresses = [str(entry[4][0]) for entry in found]
    if f"{host}:{port}" not in private_hosts and not all(map(is_public, addresses)):
        raise LoadFailed(
            f"the host {host}:{port} has a private or local address; it is allowed only when the node's settings "
            "list it",
            reason="source_blocked",
        )
    return addresses[0]
