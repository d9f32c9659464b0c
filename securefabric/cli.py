"""The ``securefabric`` command: make a job key or certificates, examine this host."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

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

With certificates, so that no rank can pass for another:
  securefabric ca init ca && securefabric ca issue ca --job night --ranks 4
  export SECUREFABRIC_CERT_FILE=$PWD/ca/night/rank-{rank}.pem
  export SECUREFABRIC_CA_FILE=$PWD/ca/night/ca.pem
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parsed = _parser().parse_args(arguments)
    if parsed.command == "keygen":
        return _keygen(parsed.file, parsed.suite)
    if parsed.command == "ca":
        return _ca(parsed)
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
    named = _quoted(Path(path))
    print(f"next: copy it to every host of the job, and `export SECUREFABRIC_KEY_FILE={named}`")
    return 0


def _quoted(path: Path) -> str:
    """Return a path as a shell takes it, from the root: ranks may start in another folder."""
    return shlex.quote(str(path.absolute()))


def _ca(parsed: argparse.Namespace) -> int:
    from . import authority

    try:
        if parsed.action == "init":
            path = authority.init(parsed.dir, trust_domain=parsed.trust_domain, days=parsed.days)
            print(f"{path}: CA of trust domain {parsed.trust_domain}, for {parsed.days:g} days")
            print(f"next: `securefabric ca issue {parsed.dir} --job JOB --ranks N`")
            return 0
        ranks = range(parsed.ranks) if parsed.rank is None else range(parsed.rank, parsed.rank + 1)
        folder = authority.issue(
            parsed.dir, job=parsed.job, ranks=ranks, out=parsed.out, days=parsed.days
        )
    except RuntimeError as error:  # ConfigError, named without importing torch
        print(f"securefabric ca {parsed.action}: {error}", file=sys.stderr)
        return 1
    print(f"{folder}: {len(ranks)} certificates for job {parsed.job}, for {parsed.days:g} days")
    print("next: give each host the files of its ranks and ca.pem (ca.key stays here), and")
    print(f"  export SECUREFABRIC_CERT_FILE={_quoted(folder / 'rank-{rank}.pem')}")
    print(f"  export SECUREFABRIC_CA_FILE={_quoted(folder / 'ca.pem')}")
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
    _add_ca(commands)
    commands.add_parser(
        "doctor",
        help="say what this host can do",
        description="Check the installation, the cipher suites, the kernel's offloads, the job "
        "key and the network interfaces. The exit status is 1 when a job could not start here.",
    )
    return parser


def _add_ca(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from .authority import CA_DAYS, LEAF_DAYS, TRUST_DOMAIN

    actions = commands.add_parser(
        "ca", help="make certificates for the ranks of a job"
    ).add_subparsers(dest="action", required=True, metavar="ACTION")
    init = actions.add_parser(
        "init",
        help="make a certificate authority",
        description="Make a certificate authority: ca.pem, which every rank gets, and ca.key, "
        "which stays here. Whoever holds ca.key can be any rank.",
    )
    init.add_argument("dir", help="folder for it; made if absent")
    init.add_argument("--trust-domain", default=TRUST_DOMAIN, help=f"default: {TRUST_DOMAIN}")
    init.add_argument("--days", type=float, default=CA_DAYS, help=f"default: {CA_DAYS:g}")
    issue = actions.add_parser(
        "issue",
        help="issue certificates for ranks",
        description="Issue a certificate and a fresh private key for every rank of a job, or for "
        "one. They live for days, because nothing revokes them; issuing again replaces them.",
    )
    issue.add_argument("dir", help="folder of the CA")
    issue.add_argument("--job", required=True, help="the job's id")
    which = issue.add_mutually_exclusive_group(required=True)
    which.add_argument("--ranks", type=int, metavar="N", help="ranks 0 to N-1")
    which.add_argument("--rank", type=int, metavar="R", help="one rank")
    issue.add_argument("--out", default="", help="folder for them (default: DIR/JOB)")
    issue.add_argument("--days", type=float, default=LEAF_DAYS, help=f"default: {LEAF_DAYS:g}")


if __name__ == "__main__":
    sys.exit(main())
