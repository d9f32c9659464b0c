"""Compare with gloo inside WireGuard in user space, the other way to encrypt a job unchanged.

    python bench/wireguard.py                            # as root, on Linux with /dev/net/tun

Two hosts, network namespaces (tests/testbed/namespaces.py), are joined by one unlimited link with
an MTU of 9,000. One rank on each runs all_reduce over securefabric, over gloo inside a tunnel
between two wireguard-go, and over gloo in the clear; all three over that link, and in turns. CPU
time includes that of wireguard-go. Where something is missing, it says so and measures nothing.
Without SECUREFABRIC_KEY_FILE, it makes a job key for the run.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from _measure import Turns, ratios, write_json  # noqa: E402  after the path
from _operations import parse_size  # noqa: E402
from _tunnel import Tunnel, version, why_no_tunnel  # noqa: E402
from _wireguard_ranks import compare_all_reduce  # noqa: E402
from ranks import run_ranks  # noqa: E402
from testbed.namespaces import Bed, why_not  # noqa: E402

from securefabric.identity import write_key_file  # noqa: E402

LINK_MTU = 9000
RANKS_TIMEOUT_S = 3600.0
SIZES = "8,1K,64K,256K,1M,16M,64M"


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Make the hosts and the tunnel, run the ranks, and return all figures."""
    turns = Turns(rounds=arguments.rounds, seconds=arguments.seconds, iterations=arguments.iters)
    with tempfile.TemporaryDirectory() as folder, Bed(2, 1, mtu=LINK_MTU) as bed:
        key_file = os.environ.get("SECUREFABRIC_KEY_FILE", "")
        if not key_file:
            key_file = f"{folder}/job.key"
            write_key_file(key_file)
        with Tunnel(bed) as tunnel:
            outcomes = run_ranks(
                compare_all_reduce,
                2,
                arguments.sizes,
                turns,
                [tunnel.interface(host) for host in bed.hosts],
                [tunnel.daemon_pid(host) for host in bed.hosts],
                key_file=key_file,
                timeout_s=RANKS_TIMEOUT_S,
                bed=bed,
            )
            facts = {"wireguard": version(), "link_mtu": LINK_MTU, "tunnel_mtu": tunnel.mtu}
    for outcome in outcomes:
        if outcome.error is not None:
            raise AssertionError(f"{outcome.error}\n{outcome.details}")
    measured = outcomes[0].value
    comparisons = [
        {"rows": rows, "ratios": ratios(rows, "securefabric")} for rows in measured["comparisons"]
    ]
    machine = {**measured["machine"], **facts}
    return {"ranks": 2, "machine": machine, "comparisons": comparisons}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sizes",
        type=lambda text: [parse_size(part) for part in text.split(",")],
        default=SIZES,
        help="sizes (%(default)s)",
    )
    parser.add_argument("--rounds", type=int, default=3, help="turns of each backend (3)")
    parser.add_argument(
        "--iters", type=int, default=0, help="calls a turn; 0: what --seconds allow"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="per backend and size (1.0)")
    parser.add_argument("--json", type=Path, help="also write everything here")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    reason = why_no_tunnel() or why_not()
    if reason:
        print(f"# not compared with WireGuard: {reason}", flush=True)
        return 0
    run = measure(arguments)
    if arguments.json is not None:
        write_json(arguments.json, {"runs": [run]})
    rows = [row for each in run["comparisons"] for row in each["rows"].values()]
    return 1 if any(row.wrong for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
