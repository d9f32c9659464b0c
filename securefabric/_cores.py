"""How many engines a rank runs where nobody has said it: one for each core that it may count on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ._addresses import parse_ports
from .errors import ConfigError
from .options import ENGINES_MAX

if TYPE_CHECKING:
    from .options import Options

__all__ = ["ENGINES_AUTO_MAX", "check_ports", "propose_engines", "usable_cores"]

# Each engine has sockets and links of its own, and what a few of them carry fills most networks.
ENGINES_AUTO_MAX: Final = 4
# An entry has room for the addresses of some 300 sockets; certificates need some of it.
ENTRY_SOCKETS: Final = 192
# cgroup v2: quota and period in microseconds, or "max" for no quota. In a container it is its own.
_CPU_QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")


def usable_cores(quota_file: Path = _CPU_QUOTA) -> int:
    """Return how many cores this process may use at once: affinity, and a container's quota."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = (int(text) for text in quota_file.read_text().split())
    except (OSError, ValueError):  # no such file, or "max"
        return cores
    return max(1, min(cores, quota // max(period, 1)))


def propose_engines(options: Options, local_world_size: int) -> int:
    """Return how many engines suit this rank's host; 1 where it is not known who shares its cores.

    local_world_size: ranks of the job on this host, 0 for unknown. No more than the range of ports
    and a roster entry have room for.
    """
    if local_world_size == 0:
        return 1
    by_cores = min(usable_cores() // local_world_size, ENGINES_AUTO_MAX)
    by_entry = ENTRY_SOCKETS // (options.sockets_per_interface * _interfaces(options.interfaces))
    return max(1, min(by_cores, by_entry, _held_by_ports(options, local_world_size)))


def check_ports(options: Options, local_world_size: int, engines: int) -> None:
    """Raise ConfigError where rank 0 runs more engines than there are ports for here."""
    if engines > 1 and engines > _held_by_ports(options, max(local_world_size, 1)):
        raise ConfigError(
            f"rank 0 runs {engines} engines, and for so many of each rank of this host the ports "
            f"{options.ports} do not suffice; widen SECUREFABRIC_PORTS or set "
            "SECUREFABRIC_ENGINES=1 on all ranks"
        )


def _held_by_ports(options: Options, local_world_size: int) -> int:
    if not options.ports:
        return ENGINES_MAX
    ports = parse_ports(options.ports)
    return (ports.last - ports.first + 1) // (options.sockets_per_interface * local_world_size)


def _interfaces(grammar: str) -> int:
    """Return on how many addresses there will be sockets; what is wrong with them is told later."""
    from . import _C

    try:
        return max(len(_C.select_interfaces(grammar)), 1)
    except (RuntimeError, ValueError):
        return 1
