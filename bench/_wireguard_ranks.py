"""What the ranks of the comparison with WireGuard run, each in a process on its host of the bed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
from _backends import TorchBackend
from _measure import Row, Turns, describe_machine, say, take_turns
from _operations import OPERATIONS, format_size
from _tables import print_comparison, print_heading, print_means
from _tunnel import daemon_cpu_s

TUNNELLED: Final = "gloo-wireguard"


class TunnelledBackend(TorchBackend):
    """gloo, on the tunnel's device; its CPU time includes the tunnel's process on this host."""

    def __init__(self, group: dist.ProcessGroup, interface: str, daemon_pid: int) -> None:
        super().__init__(TUNNELLED, group)
        self._interface = interface
        self._daemon_pid = daemon_pid

    def cpu_s(self) -> float:
        """Return the CPU time of this process and of the tunnel's so far."""
        return super().cpu_s() + daemon_cpu_s(self._daemon_pid)

    def sent_bytes(self) -> int:
        """Return how much has gone out through the tunnel."""
        for line in Path("/proc/self/net/dev").read_text().splitlines():
            name, _, counters = line.partition(":")
            if name.strip() == self._interface:
                return int(counters.split()[8])
        raise AssertionError(f"no {self._interface} here")


def compare_all_reduce(
    rank: int, sizes: list[int], turns: Turns, interfaces: list[str], daemon_pids: list[int]
) -> dict[str, Any]:
    """Let three backends take turns on two ranks, and return a comparison for each size."""
    torch.set_num_threads(1)
    dist.init_process_group("securefabric")
    ours = TorchBackend("securefabric", None)
    in_clear = TorchBackend("gloo", dist.new_group(backend="gloo"))
    os.environ["GLOO_SOCKET_IFNAME"] = interfaces[rank]  # gloo asks when a group is made
    tunnelled = TunnelledBackend(
        dist.new_group(backend="gloo"), interfaces[rank], daemon_pids[rank]
    )
    backends = [ours, tunnelled, in_clear]
    names = [backend.name for backend in backends]
    comparisons: list[dict[str, Row]] = []
    if rank == 0:
        print_heading("all_reduce", ours.ranks, names)
    for size in sizes:
        say(ours, f"all_reduce {format_size(size)} between two hosts ...")
        before = tunnelled.sent_bytes()
        rows = take_turns(
            backends,
            OPERATIONS["all_reduce"],
            size,
            dtype=torch.float32,
            reduce_op="sum",
            turns=turns,
        )
        expected = size * rows[TUNNELLED].iterations  # two ranks exchange everything
        if tunnelled.sent_bytes() - before < expected:
            raise AssertionError("gloo did not use the tunnel")
        comparisons.append(rows)
        if rank == 0:
            print_comparison(rows, names)
    if rank == 0:
        print_means(comparisons, names)
    machine = describe_machine(backends)
    dist.destroy_process_group()
    return {"machine": machine, "comparisons": comparisons}
