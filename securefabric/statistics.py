"""What this process's fabric has done: counters for programs, a summary for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final

from ._fabric import ProcessFabric, current_fabric
from .errors import ForkError, SecureFabricError

__all__ = ["Stats", "stats", "summary"]

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")


@dataclass(frozen=True, kw_only=True)
class Stats:
    """Counters of a process's fabric since it was made, over all groups, peers and paths.

    Sizes are in bytes; "on the wire" means UDP payload, header and tag included.
    """

    rank: int
    world_size: int
    suite: str
    """The cipher suite that seals every packet."""
    provider: str
    """Which implementation of the suite this CPU runs."""
    engines: int
    """Of this rank; what follows is the sum of theirs."""
    peers: int
    """Ranks with which this one has a link, or one for each engine."""
    paths_active: int
    """Paths that are confirmed and usable now, over all peers."""
    paths_used: int
    """Paths on which messages have travelled, over all peers."""
    gso: bool
    """Whether bursts still go to the kernel in one send."""
    gro: bool
    """Whether bursts still come from the kernel in one receive."""
    packets_sealed: int
    bytes_sealed: int
    """On the wire."""
    packets_opened: int
    """Packets whose tag verified."""
    bytes_opened: int
    """On the wire."""
    message_bytes_sent: int
    """Payload sent, resends included."""
    message_bytes_received: int
    """Payload accepted, each byte once."""
    packets_lost: int
    """Packets declared lost, rightly or not."""
    fragments_resent: int
    bytes_resent: int
    """Payload of those fragments."""
    spurious_losses: int
    """Packets declared lost whose acknowledgement came after all."""
    duplicate_fragments: int
    """Fragments whose payload had arrived before."""
    tail_probes: int
    """Silent paths that were asked for a sign of life."""
    probe_timeouts: int
    """Times that none came from any path of a peer."""
    paths_suspected: int
    """How often a path was put under suspicion of being dead."""
    epochs_begun: int
    """How often a link got fresh keys by a key exchange, over all links."""
    acks_sent: int
    ce_received: int
    """Packets that arrived with a congestion mark."""
    unexpected_messages: int
    """Messages that arrived before their receive was posted."""
    kernel_drops: int
    """Datagrams that the kernel dropped because a socket's receive buffer was full."""
    drops: Mapping[str, int]
    """Datagrams dropped without a reaction, by cause; "auth_failed": the tag did not verify."""

    @property
    def auth_failures(self) -> int:
        """Datagrams whose tag did not verify: damaged, forged, or sealed with another key."""
        return self.drops["auth_failed"]


@dataclass(frozen=True, kw_only=True)
class PathStats:
    """One path to one peer: a pair of sockets over which this rank sends."""

    engine: int
    """Which engine's, on both ranks."""
    peer: int
    """The peer's rank."""
    socket: int
    """Number of this engine's socket, in the order of its addresses."""
    peer_socket: int
    """Number of the peer's socket."""
    address: str
    """Where the peer's socket is reached."""
    state: str
    """What the path is good for now; data goes over "active" ones, and over "avoided" ones, which
    have just met congestion or loss, only if no other has room."""
    in_use: bool
    """Whether data is sent on it; others stand by."""
    srtt_us: float
    """Smoothed round-trip time; 0.0 before the first sample."""
    delay_us: float
    """The part of it that the network takes, without what packets waited in either host."""
    window_bytes: int
    """How much may be in flight."""
    in_flight_bytes: int
    """How much is."""
    mtu_bytes: int
    """The largest datagram that it is known to carry."""
    packets_sealed: int
    """Datagrams of all kinds sent over it."""
    packets_lost: int
    """Datagrams declared lost, rightly or not."""
    message_bytes: int
    """Payload sent over it, resends included."""
    epoch: int
    """How often the link to this peer has changed its keys; the same for all of its paths."""


def stats() -> Stats:
    """Return the counters of this process's fabric, also after its groups were destroyed.

    Raises SecureFabricError before the first group was made, and ForkError in a forked child.
    """
    fabric = _own_fabric()
    known = {name: getattr(fabric, name) for name in ("rank", "world_size", "suite", "provider")}
    counted: dict[str, object] = {**known, **fabric.native.stats()}
    return _stats_of(counted)


def paths() -> tuple[PathStats, ...]:
    """Return every path to every peer that this rank has a link with, as it is now.

    Empty when the fabric has ended. Raises SecureFabricError before the first group was made, and
    ForkError in a forked child.
    """
    fabric = _own_fabric()
    return tuple(PathStats(**path) for path in fabric.native.paths())  # type: ignore[arg-type]


def _own_fabric() -> ProcessFabric:
    fabric = current_fabric()
    if fabric is None:
        raise SecureFabricError(
            "this process has no fabric yet: call init_process_group('securefabric') first"
        )
    fabric.check_not_forked()
    return fabric


def _stats_of(counted: Mapping[str, object]) -> Stats:
    values: dict[str, object] = {field.name: counted[field.name] for field in fields(Stats)}
    return Stats(**values)  # type: ignore[arg-type]  # the native side's types, tested there


def summary(counted: Stats | None = None) -> str:
    """Return a few lines that say what the fabric did; of now, unless counters are given.

    Empty in a forked child, which did nothing and may print what its parent has left to be printed
    at exit.
    """
    try:
        s = counted if counted is not None else stats()
    except ForkError:
        return ""
    dropped = {cause: count for cause, count in s.drops.items() if count}
    causes = f" ({', '.join(f'{cause} {count:,}' for cause, count in dropped.items())})"
    offloads = f"GSO {_on(s.gso)}, GRO {_on(s.gro)}"
    engines = f"{s.engines} engines, " if s.engines > 1 else ""
    return "\n".join(
        (
            f"rank {s.rank} of {s.world_size}: {s.suite} by {s.provider}, {engines}"
            f"{s.peers} peers, {s.paths_active} paths active, {s.paths_used} used, {offloads}",
            f"  sealed  {s.packets_sealed:>12,} packets {_size(s.bytes_sealed):>12}",
            f"  opened  {s.packets_opened:>12,} packets {_size(s.bytes_opened):>12}",
            f"  resent  {s.fragments_resent:>12,} fragments {_size(s.bytes_resent):>10}, "
            f"{s.packets_lost:,} packets lost, {s.spurious_losses:,} of them wrongly",
            f"  rekeyed {s.epochs_begun:>12,} times, a link each",
            f"  dropped {sum(dropped.values()):>12,} datagrams{causes if dropped else ''}, "
            f"{s.auth_failures:,} authentication failures, {s.kernel_drops:,} lost to full buffers",
        )
    )


def _on(is_on: bool) -> str:
    return "on" if is_on else "off"


def _size(size_bytes: float) -> str:
    for unit in _UNITS:
        if size_bytes < 1024 or unit == _UNITS[-1]:
            break
        size_bytes /= 1024
    return f"{size_bytes:,.0f} {unit}" if unit == "B" else f"{size_bytes:,.2f} {unit}"
