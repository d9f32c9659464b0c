"""How many engines a rank runs where nobody has said it: one for each core that it may count on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ._addresses import parse_ports

if TYPE_CHECKING:
    from .options import Options

__all__ = ["ENGINES_AUTO_MAX", "propose_engines", "usable_cores"]

# Each engine has sockets and links of its own, and what a few of them carry fills most networks.
ENGINES_AUTO_MAX: Final = 4
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

    local_world_size: ranks of the job on this host, 0 for unknown. A range of ports that was wide
    enough for one engine of each rank stays so.
    """
    if local_world_size == 0:
        return 1
    engines = min(usable_cores() // local_world_size, ENGINES_AUTO_MAX)
    if options.ports:
        ports = parse_ports(options.ports)
        sockets = options.sockets_per_interface * local_world_size
        engines = min(engines, (ports.last - ports.first + 1) // sockets)
    return max(engines, 1)
