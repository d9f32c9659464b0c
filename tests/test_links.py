"""Jobs over hosts with several links: real kernels, real ECMP, cables that are pulled."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from steady import SteadyJob, run_steady_job
from testbed.namespaces import Bed, why_not
from testbed.stages import wait_until

REASON = why_not()
pytestmark = [
    pytest.mark.skipif(bool(REASON), reason=REASON),
    pytest.mark.usefixtures("clean_environment"),
]

MBIT = 400.0


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

    counted = run_steady_job(tmp_path, key_file, fail, bed=bed, environment=WIDE)
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


def test_ipv6__over_four_links(key_file: str, tmp_path: Path) -> None:
    with Bed(2, 4, rate_mbit=MBIT, is_ipv6=True) as bed:

        def cut(job: SteadyJob) -> None:
            job.wait_for_rounds(5)
            bed.set_down(2, 1)
            job.wait_for_rounds(10)

        used = shares(
            bed, 1, lambda: run_steady_job(tmp_path, key_file, cut, bed=bed, environment=WIDE)
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
