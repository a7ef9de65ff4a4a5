"""Addresses as text: the host in that of a client, whom it counts as, and networks named in a configuration."""

import ipaddress
from typing import TypeAlias

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


def host_of(peer: str) -> str:
    """The address in ``ADDRESS:PORT``; empty for a local socket."""
    host, colon, _ = peer.rpartition(":")
    return host if colon else ""


def parse_network(text: str) -> Network:
    """An address or a network such as 192.0.2.0/24. Raises ValueError in words."""
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"an address, or a network such as 192.0.2.0/24 or 2001:db8::/32, not {text!r}") from None


def parse_host(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that ``host`` is, in IPv4 where IPv6 only wraps it; None if it is none."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    if address.version == 6 and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def group(host: str) -> str:
    """The address by which ``host`` is counted: for IPv6 the network that one customer has, a /64."""
    address = parse_host(host)
    if address is None:
        return host
    return str(address) if address.version == 4 else str(ipaddress.ip_network((address, 64), strict=False))
