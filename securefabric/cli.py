"""The ``securefabric`` command: make a job key, examine this host."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import __version__
from .identity import SUITES, suite_refusal, write_key_file

__all__ = ["main"]

_EPILOG = """\
A first job on this host:
  securefabric keygen job.key
  export SECUREFABRIC_KEY_FILE=$PWD/job.key
  torchrun --nproc-per-node 4 train.py    # with init_process_group("securefabric") inside

On several hosts, copy job.key to each of them (mode 600) and start as ever. `securefabric doctor`
says what this host can do and what is in the way.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parsed = _parser().parse_args(arguments)
    if parsed.command == "keygen":
        return _keygen(parsed.file, parsed.suite)
    return _doctor()


def _keygen(path: str, suite: str) -> int:
    try:
        key_id = write_key_file(path, suite)
    except RuntimeError as error:  # ConfigError, named without importing torch
        print(f"securefabric keygen: {error}", file=sys.stderr)
        return 1
    print(f"{path}: job key {key_id}, {suite}, mode 0600")
    refusal = suite_refusal(suite)
    if refusal:
        print(f"note: this host cannot run that suite: {refusal}", file=sys.stderr)
    print(f"next: copy it to every host of the job, and `export SECUREFABRIC_KEY_FILE={path}`")
    return 0


def _doctor() -> int:
    from .doctor import examine

    findings = examine()
    for finding in findings:
        print(finding)
    return 1 if any(finding.is_fatal for finding in findings) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="securefabric",
        description="Encrypted collectives for torch.distributed: the command line.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"securefabric {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    keygen = commands.add_parser(
        "keygen",
        help="make a job key",
        description="Make a job key: 256 random bits, the cipher suite of the job, and a key id. "
        "The file is new and has mode 0600. Whoever can read it is a member of the job.",
    )
    keygen.add_argument("file", help="where to write it; must not exist")
    keygen.add_argument(
        "--suite",
        choices=SUITES,
        default=SUITES[0],
        help=f"seals every packet of the job (default: {SUITES[0]})",
    )
    commands.add_parser(
        "doctor",
        help="say what this host can do",
        description="Check the installation, the cipher suites, the kernel's offloads, the job "
        "key and the network interfaces. The exit status is 1 when a job could not start here.",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
