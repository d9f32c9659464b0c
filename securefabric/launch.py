"""Run a script that nobody wants to change as one rank of a job.

    mpirun -n 4 python -m securefabric.launch train.py --epochs 3
    srun   -n 4 python -m securefabric.launch train.py --epochs 3

Sets RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT as torchrun does,
then runs the script as ``__main__``. What is already set (by torchrun, or by hand) stays.
"""

from __future__ import annotations

import argparse
import os
import runpy
import socket
import sys
import traceback
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path

from . import placement
from ._mpi import (
    Communicator,
    local_placement,
    master_address,
    port_from,
    told_by_first,
    world,
)
from ._torch_autoload import autoload
from .errors import ConfigError
from .placement import Placement
from .rendezvous import ENCRYPTED, STORE_VARIABLE

__all__ = ["main"]

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# Below the range from which Linux takes ports for outgoing connections (32768 and up).
_SLURM_PORT_FIRST = 20_000
_SLURM_PORTS = 12_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of ``python -m securefabric.launch``; returns the exit status."""
    parsed = _parser().parse_args(arguments)
    if parsed.store:
        os.environ[STORE_VARIABLE] = parsed.store
    try:
        communicator = prepare_environment(os.environ, parsed.init)
    except (ConfigError, ValueError, OSError) as error:
        print(f"securefabric.launch: {error}", file=sys.stderr)
        return 2
    autoload()  # also where torch's own autoload is switched off
    if communicator is None or communicator.size == 1:
        _run(parsed.script, parsed.arguments, is_module=parsed.is_module)
    else:
        _run_or_abort(communicator, parsed)
    return 0


def prepare_environment(
    environment: MutableMapping[str, str], init: str = "auto"
) -> Communicator | None:
    """Set what ``env://`` needs; returns MPI's communicator when MPI was asked.

    init is "auto", "env" (trust what is set) or "mpi". Raises ConfigError when that cannot work.
    """
    missing = [name for name in _NEEDED if not environment.get(name)]
    if init == "env" and missing:
        raise ConfigError(f"--init env, but {', '.join(missing)} are not set")
    if init == "env" or (init == "auto" and not missing):
        return None
    place = placement.discover(environment)
    if init == "auto" and place is not None and place.launcher == "Slurm":
        _set_from_slurm(environment, place)
        return None
    if init == "mpi" or placement.is_under_mpi(environment):
        communicator = world()
        _set_from_mpi(environment, communicator)
        return communicator
    if place is not None:
        raise ConfigError(
            f"{place.launcher} says rank {place.rank} of {place.world_size}, but "
            f"{', '.join(missing)} are not set"
        )
    _set_alone(environment)
    return None


def reserve_port(address: str) -> int:
    """Return a free TCP port of this host that nobody else is given for the next minute.

    A connection to itself leaves the port in TIME_WAIT: the kernel then hands it out to nobody,
    while a server that sets SO_REUSEADDR, as torch's store does, can still take it.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address, 0))
        server.listen(1)
        with socket.socket(family, socket.SOCK_STREAM) as client:
            client.connect(server.getsockname())
            accepted, _ = server.accept()
            accepted.close()  # this side closes first, so its end keeps the TIME_WAIT
        return int(server.getsockname()[1])


def _set_from_mpi(environment: MutableMapping[str, str], communicator: Communicator) -> None:
    address = master_address(communicator)
    port, failure = 0, ""
    if communicator.rank == 0:
        try:
            port = reserve_port(address)
        except OSError as error:  # the others wait for news
            failure = f"no port at {address}: {error}"
    told, failure = told_by_first(communicator, str(port), failure)
    if failure:
        raise ConfigError(f"rank 0 found {failure}")
    port = port_from(told)
    local_rank, local_world_size = local_placement(communicator)
    _set(
        environment,
        Placement(
            rank=communicator.rank,
            world_size=communicator.size,
            local_rank=local_rank,
            local_world_size=local_world_size,
            launcher="MPI",
        ),
        address,
        port,
    )


def _set_from_slurm(environment: MutableMapping[str, str], place: Placement) -> None:
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST", "")
    host = placement.first_host(nodes)
    _set(environment, place, host, _slurm_port(environment))


def _slurm_port(environment: Mapping[str, str]) -> int:
    """Return a port that all ranks of a step compute alike and other steps hardly ever do."""
    job, step = (int(environment.get(name, "0")) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return _SLURM_PORT_FIRST + (job * 7 + step) % _SLURM_PORTS


def _set_alone(environment: MutableMapping[str, str]) -> None:
    place = Placement(rank=0, world_size=1, local_rank=0, local_world_size=1, launcher="none")
    _set(environment, place, "127.0.0.1", reserve_port("127.0.0.1"))


def _set(environment: MutableMapping[str, str], place: Placement, address: str, port: int) -> None:
    wanted = {
        "RANK": place.rank,
        "WORLD_SIZE": place.world_size,
        "LOCAL_RANK": place.local_rank,
        "LOCAL_WORLD_SIZE": place.local_world_size,
        "MASTER_ADDR": address,
        "MASTER_PORT": port,
    }
    for name, value in wanted.items():
        if value is not None:
            environment.setdefault(name, str(value))
    if (place.local_world_size or 1) > 1:
        # As torchrun does: by default each rank would start a thread per core of the host.
        environment.setdefault("OMP_NUM_THREADS", "1")


def _run(script: str, arguments: list[str], *, is_module: bool) -> None:
    sys.argv = [script, *arguments]
    if is_module:
        runpy.run_module(script, run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(script).resolve().parent)
        runpy.run_path(script, run_name="__main__")


def _run_or_abort(communicator: Communicator, parsed: argparse.Namespace) -> None:
    """Run the script; when it fails, end the whole job.

    A rank that failed would otherwise wait in MPI's finalisation for ranks that wait for it.
    """
    try:
        _run(parsed.script, parsed.arguments, is_module=parsed.is_module)
    except SystemExit as error:
        if error.code is None or error.code == 0:
            raise
        code = error.code if isinstance(error.code, int) else 1
        if not isinstance(error.code, int):
            print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    else:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    communicator.Abort(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m securefabric.launch",
        description="Run an unchanged training script as one rank of a job: sets the variables of "
        "init_method='env://' from MPI or Slurm, then runs the script.",
        epilog="Example: mpirun -n 4 python -m securefabric.launch train.py --epochs 3",
    )
    parser.add_argument(
        "--init",
        choices=("auto", "env", "mpi"),
        default="auto",
        help="who tells rank, size and the store's address: what is set already (env), mpi4py "
        "(mpi), or whichever is there (auto, the default)",
    )
    parser.add_argument(
        "--store",
        choices=(ENCRYPTED,),
        help="let init_method='env://', the default, mean the encrypted store; needs the job key",
    )
    parser.add_argument(
        "-m", dest="is_module", action="store_true", help="run a module, as python -m does"
    )
    parser.add_argument("script", help="the script or, with -m, the module to run")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="arguments of the script")
    return parser


if __name__ == "__main__":
    sys.exit(main())
