#!/usr/bin/env bash
# The main job, twice: a small CNN trained on 4 ranks whose every gradient crosses the network
# sealed, started by mpirun and then by torchrun. Needs tools/setup.sh demo.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly RANKS="${RANKS:-4}"
readonly PYTHON="$PWD/.venv/bin/python"
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT

.venv/bin/securefabric keygen "$folder/job.key"
export SECUREFABRIC_KEY_FILE="$folder/job.key"
export OMP_NUM_THREADS=1 # as torchrun does: the ranks share this host's cores

printf '\n==> mpirun: %s ranks\n' "$RANKS"
tools/mpirun.sh -n "$RANKS" "$PYTHON" examples/train_digits.py

printf '\n==> torchrun: %s ranks\n' "$RANKS"
"$PYTHON" -m torch.distributed.run --standalone --local-addr 127.0.0.1 \
  --nproc-per-node "$RANKS" examples/train_digits.py
