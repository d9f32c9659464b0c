"""Jobs over hosts with several links: real kernels, real ECMP, cables that are pulled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from jobs import ROOT
from ranks import join, run_ranks
from steady import SteadyJob, check_all_reduce, run_steady_job
from testbed.namespaces import Bed, why_not
from testbed.stages import Stages, wait_until

REASON = why_not()
pytestmark = [
    pytest.mark.skipif(bool(REASON), reason=REASON),
    pytest.mark.usefixtures("clean_environment"),
]

MBIT = 400.0
LIVELY = {"SECUREFABRIC_DEATH_TIMEOUT_S": "6", "SECUREFABRIC_HEARTBEAT_S": "0.5"}


@pytest.fixture(scope="module")
def shared_bed() -> Iterator[Bed]:
    with Bed(2, 4, rate_mbit=MBIT) as made:
        yield made


@pytest.fixture
def bed(shared_bed: Bed) -> Iterator[Bed]:
    yield shared_bed
    for link in range(1, shared_bed.links + 1):
        for host in shared_bed.hosts:
            shared_bed.set_down(host.number, link, is_down=False)
    shared_bed.set_loss(0.0)
    shared_bed.set_bytes_max(None)
    shared_bed.set_rate(MBIT)


def shares(bed: Bed, host: int, run: Callable[[], object]) -> list[float]:
    """What share of a host's bytes each link carried meanwhile."""
    before = bed.link_bytes(host)
    run()
    sent = [after - first for first, after in zip(before, bed.link_bytes(host), strict=True)]
    return [one / max(1, sum(sent)) for one in sent]


def test_many_paths__use_all_four_links(bed: Bed, key_file: str, tmp_path: Path) -> None:
    """Sixty-four pairs of ports, hashed over four links by the kernel."""
    wide = {"SECUREFABRIC_SOCKETS_PER_INTERFACE": "8", "SECUREFABRIC_PATHS_PER_PEER": "64"}
    used = shares(
        bed,
        1,
        lambda: run_steady_job(
            tmp_path, key_file, lambda job: job.wait_for_rounds(20), bed=bed, environment=wide
        ),
    )
    assert min(used) > 0.05, used
    assert max(used) < 0.6, used


WIDE = {
    "SECUREFABRIC_SOCKETS_PER_INTERFACE": "4",
    "SECUREFABRIC_PATHS_PER_PEER": "16",
}


def _even_ports(bed: Bed) -> dict[str, str]:
    """Ports for WIDE on two hosts with which the kernels give every link two of the first paths.

    By chance, one run in 25 gives a link none of its 16 paths, and nothing could use that link.
    """
    count = int(WIDE["SECUREFABRIC_SOCKETS_PER_INTERFACE"])
    # The paths that are opened first: PROTOCOL.md, section 3.4.
    pairs = [(low, (low + distance) % count) for distance in (0, 1) for low in range(count)]
    even = sorted(2 * list(range(1, bed.links + 1)))
    for first in range(20_000, 30_000, count):  # below the ports that kernels give away
        there = [(first + low, first + high) for low, high in pairs]
        back = [(high, low) for low, high in there]
        if sorted(bed.links_of(1, 2, there)) == sorted(bed.links_of(2, 1, back)) == even:
            return {"SECUREFABRIC_PORTS": f"{first}-{first + count - 1}"}
    raise AssertionError("the kernels hash no ports evenly")


def _silently_one_way(bed: Bed, link: int) -> None:
    bed.set_down(2, link)


def _silently_both_ways(bed: Bed, link: int) -> None:
    bed.set_loss(1.0, link=link)


def _announced(bed: Bed, link: int) -> None:
    bed.set_down(1, link)


def _degraded(bed: Bed, link: int) -> None:
    bed.set_rate(MBIT / 4, link=link)


def _repair(bed: Bed, link: int) -> None:
    bed.set_down(1, link, is_down=False)
    bed.set_down(2, link, is_down=False)
    bed.set_loss(0.0)
    bed.set_rate(MBIT)


def test_links_that_fail__no_collective_does(bed: Bed, key_file: str, tmp_path: Path) -> None:
    """Each way of failing in turn, in one running job, each repaired before the next."""

    def fail(job: SteadyJob) -> None:
        for link, break_it in enumerate(
            (_silently_one_way, _silently_both_ways, _announced, _degraded), start=1
        ):
            break_it(bed, link)
            job.wait_for_rounds(10)
            _repair(bed, link)
            job.wait_for_rounds(5)
        # The repaired links are in use again.
        for link in range(1, 5):
            before = bed.link_bytes(1)[link - 1]
            wait_until(
                lambda link=link, before=before: bed.link_bytes(1)[link - 1] > before + 1_000_000,
                f"data on link {link}",
                patience_s=30.0,
            )

    environment = {**WIDE, **_even_ports(bed)}
    counted = run_steady_job(tmp_path, key_file, fail, bed=bed, environment=environment)
    assert sum(one["packets_lost"] for one in counted) > 0


def test_all_links_down_for_three_seconds__no_collective_fails(
    bed: Bed, key_file: str, tmp_path: Path
) -> None:
    def cut(job: SteadyJob) -> None:
        for link in range(1, 5):
            bed.set_down(2, link)
        time.sleep(3.0)  # the length of the outage, not a wait for anything
        for link in range(1, 5):
            bed.set_down(2, link, is_down=False)
        job.wait_for_rounds(5)

    run_steady_job(tmp_path, key_file, cut, bed=bed, environment=WIDE)


def test_loss_on_every_link__exact(bed: Bed, key_file: str, tmp_path: Path) -> None:
    bed.set_loss(0.01)
    run_steady_job(
        tmp_path, key_file, lambda job: job.wait_for_rounds(20), bed=bed, environment=WIDE
    )


def test_interfaces__named_ones_carry_it_all(bed: Bed, key_file: str, tmp_path: Path) -> None:
    """No ECMP: sockets on two of the four interfaces, each a path of its own."""
    used = shares(
        bed,
        1,
        lambda: run_steady_job(
            tmp_path,
            key_file,
            lambda job: job.wait_for_rounds(10),
            bed=bed,
            environment={"SECUREFABRIC_SOCKET_IFNAME": "=p2,p3"},
        ),
    )
    assert used[0] + used[3] < 0.01, used
    assert min(used[1], used[2]) > 0.1, used


def test_ipv6__over_four_links(key_file: str, tmp_path: Path) -> None:
    with Bed(2, 4, rate_mbit=MBIT, is_ipv6=True) as bed:

        def cut(job: SteadyJob) -> None:
            job.wait_for_rounds(5)
            bed.set_down(2, 1)
            job.wait_for_rounds(10)

        environment = {**WIDE, **_even_ports(bed)}
        used = shares(
            bed,
            1,
            lambda: run_steady_job(tmp_path, key_file, cut, bed=bed, environment=environment),
        )
    assert sum(share > 0.05 for share in used) >= 3, used


def test_mtu__a_narrow_link_beside_a_wide_one(key_file: str, tmp_path: Path) -> None:
    with Bed(2, 2, rate_mbit=MBIT, mtu=(1500, 9000)) as bed:
        used = shares(
            bed,
            1,
            lambda: run_steady_job(
                tmp_path,
                key_file,
                lambda job: job.wait_for_rounds(10),
                bed=bed,
                environment={"SECUREFABRIC_SOCKET_IFNAME": "=p1,p2"},
            ),
        )
    assert min(used) > 0.1, used


def _until_peer_is_lost(rank: int, folder: str) -> tuple[str, float]:
    join()
    check_all_reduce(rank, 100_000, 0)
    Stages(folder).reach("start", rank)
    at = time.monotonic()
    try:
        while True:
            at = time.monotonic()
            dist.all_reduce(torch.ones(100_000))
    except dist.DistBackendError as error:
        return str(error), time.monotonic() - at


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_peer_on_another_host_ends__is_named_within_the_death_timeout(
    bed: Bed, key_file: str, tmp_path: Path, how: int
) -> None:
    def strike(processes: dict[int, Any]) -> None:
        stages = Stages(tmp_path)
        stages.wait("start", 4)
        stages.open("start")
        os.kill(processes[1].pid, how)
        for rank in (0, 2, 3):
            processes[rank].join(60)
        processes[1].kill()

    outcomes = run_ranks(
        _until_peer_is_lost,
        4,
        str(tmp_path),
        key_file=key_file,
        environment={**WIDE, **LIVELY},
        meanwhile=strike,
        bed=bed,
    )
    for rank in (0, 2, 3):
        assert outcomes[rank].error is None, outcomes[rank]
        message, waited_s = outcomes[rank].value
        assert "PeerLost" in message
        assert "rank 1 (10.99.0.2:" in message
        assert waited_s < 2 * float(LIVELY["SECUREFABRIC_DEATH_TIMEOUT_S"])


# Launchers, with hosts of their own


def digests(output: str) -> set[str]:
    """What train_digits.py prints about the parameters it ended with."""
    return {line for line in output.splitlines() if line.startswith("parameters ")}


@pytest.mark.slow
def test_mpirun__over_four_hosts_trains(key_file: str, tmp_path: Path) -> None:
    with Bed(4, 2) as bed:
        agent = bed.write_launch_agent(tmp_path / "agent")
        hosts = ",".join(f"{host.management}:1" for host in bed.hosts)
        command = [
            *bed.hosts[0].prefix,
            str(ROOT / "tools/mpirun.sh"),
            *("--prtemca", "plm_ssh_agent", str(agent)),
            *("--prtemca", "prte_if_include", "m0", "--pmixmca", "ptl_tcp_if_include", "m0"),
            *("--mca", "btl_tcp_if_include", "m0", "--mca", "btl", "tcp,self"),
            # All these hosts share this machine's cores, which MPI does not know of.
            *("--mca", "mpi_yield_when_idle", "1", "--host", hosts, "-n", "4"),
            *("-x", "SECUREFABRIC_KEY_FILE", "-x", "SECUREFABRIC_SOCKET_IFNAME"),
            *("-x", "OMP_NUM_THREADS", "-x", f"MASTER_ADDR={bed.hosts[0].management}"),
            *(sys.executable, "examples/train_digits.py", "--epochs", "1"),
        ]
        ended = run_command(command, key_file)
        assert "4 ranks" in ended
        assert len(digests(ended)) == 1
        assert sum(bed.link_bytes(2)) > 1_000_000


@pytest.mark.slow
def test_torchrun__over_two_hosts_trains(bed: Bed, key_file: str, tmp_path: Path) -> None:
    nodes = []
    for number, host in enumerate(bed.hosts):
        command = [
            *host.prefix,
            *(sys.executable, "-m", "torch.distributed.run"),
            *("--nnodes", "2", "--nproc-per-node", "2", "--rdzv-backend", "securefabric"),
            *("--rdzv-endpoint", f"{bed.hosts[0].management}:29500"),
            # Namespaces share this machine's name, by which it would find out.
            *("--rdzv-conf", f"is_host={int(number == 0)}"),
            *("--local-addr", host.management, "examples/train_digits.py", "--epochs", "1"),
        ]
        nodes.append(start_command(command, key_file))
    before = sum(bed.link_bytes(1))
    outputs = [node.communicate(timeout=120)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(outputs)
    assert "4 ranks" in "".join(outputs)
    assert len(digests("".join(outputs))) == 1
    assert sum(bed.link_bytes(1)) > before + 1_000_000


def start_command(command: list[str], key_file: str) -> subprocess.Popen[str]:
    settings = {
        "SECUREFABRIC_KEY_FILE": key_file,
        "SECUREFABRIC_SOCKET_IFNAME": "=e0",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_command(command: list[str], key_file: str) -> str:
    running = start_command(command, key_file)
    output, _ = running.communicate(timeout=120)
    assert running.returncode == 0, output
    return output
