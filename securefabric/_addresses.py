"""Which ports a rank's sockets take, and the addresses that its roster entry names instead of them.

    SECUREFABRIC_PORTS      ->  parse_ports       ->  what the native core may bind
    SECUREFABRIC_ADVERTISE  ->  parse_advertised  ->  advertised_addresses: what others send to

Peers send to the addresses in the entry and never look at where a packet came from, so a translator
in between needs no help from us: what it forwards is authentic, or it is dropped.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import ConfigError

if TYPE_CHECKING:
    from .options import Options

__all__ = ["Advertised", "PortRange", "advertised_addresses", "parse_advertised", "parse_ports"]

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, kw_only=True)
class PortRange:
    """The UDP ports that sockets may take, both ends included; first 0 stands for any port."""

    first: int = 0
    last: int = 0


@dataclass(frozen=True, kw_only=True)
class Advertised:
    """Where the sockets of one interface are reached."""

    ip: IpAddress
    port: int | None
    """Where the first port of the range is reached; None: every port is the same outside."""


def parse_ports(text: str) -> PortRange:
    """Read "first-last" or a single port; empty stands for any port. Raises ValueError."""
    if not text:
        return PortRange()
    first, dash, last = text.partition("-")
    ports = PortRange(first=_port(first), last=_port(last if dash else first))
    if ports.first > ports.last:
        raise ValueError(f"the range ends at {ports.last}, before it begins")
    return ports


def parse_advertised(text: str, *, has_ports: bool) -> list[Advertised]:
    """Read the comma-separated items "ip", "ip:port" or "[ipv6]:port". Raises ValueError."""
    items = [_advertised(item.strip()) for item in text.split(",")] if text else []
    if not has_ports and any(item.port is not None for item in items):
        raise ValueError(
            "a port is where the first of the rank's ports is reached, so say which those are "
            "(SECUREFABRIC_PORTS=first-last)"
        )
    return items


def advertised_addresses(bound: list[list[str]], options: Options) -> list[list[str]]:
    """Return what the entry names for each engine's sockets, given where they are bound.

    Raises ConfigError when the setting does not fit the interfaces that were chosen.
    """
    items = parse_advertised(options.advertise, has_ports=bool(options.ports))
    if not items:
        return bound
    per_interface = options.sockets_per_interface
    interfaces = len(bound[0]) // per_interface
    if len(items) != interfaces:
        raise ConfigError(
            f"SECUREFABRIC_ADVERTISE={options.advertise!r} has {len(items)} addresses, this rank "
            f"has sockets on {interfaces} interfaces: {', '.join(bound[0])}. Give one address for "
            "each of them, or choose interfaces (SECUREFABRIC_SOCKET_IFNAME)"
        )
    first = parse_ports(options.ports).first
    named = [
        [_outside(at, items[i // per_interface], first) for i, at in enumerate(sockets)]
        for sockets in bound
    ]
    every = [address for addresses in named for address in addresses]
    if len(set(every)) != len(every):
        raise ConfigError(
            f"SECUREFABRIC_ADVERTISE={options.advertise!r} gives two sockets one address: "
            f"{', '.join(every)}. Interfaces that share an address outside need ports of their own"
        )
    return named


def _outside(bound: str, item: Advertised, first: int) -> str:
    host, _, port_text = bound.rpartition(":")
    if (item.ip.version == 6) != host.startswith("["):
        raise ConfigError(
            f"SECUREFABRIC_ADVERTISE names {item.ip} for the socket at {bound}: both must be IPv4, "
            "or both IPv6"
        )
    port = int(port_text) if item.port is None else item.port + int(port_text) - first
    if port > 65535:
        raise ConfigError(
            f"SECUREFABRIC_ADVERTISE: the socket at {bound} would be reached at port {port}; "
            "begin lower"
        )
    return f"[{item.ip}]:{port}" if item.ip.version == 6 else f"{item.ip}:{port}"


def _advertised(text: str) -> Advertised:
    try:
        return Advertised(ip=_usable(text), port=None)
    except ValueError:
        host, colon, port = text.rpartition(":")
        if not colon:
            raise
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    return Advertised(ip=_usable(host), port=_port(port))


def _usable(text: str) -> IpAddress:
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        raise ValueError(f"{text!r} is no IP address; say ip, ip:port or [ipv6]:port") from None
    if ip.is_unspecified or ip.is_multicast:
        raise ValueError(f"nobody can be reached at {ip}")
    return ip


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 1 << 16):
        raise ValueError(f"{text!r} is no port; say first-last, from 1 to 65535")
    return int(text)
