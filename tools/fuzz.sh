#!/usr/bin/env bash
# Builds the fuzz targets with clang and runs each for a while: tools/fuzz.sh [seconds each]
# What Python decodes is fuzzed by tests/fuzz/entries_fuzz.py in the same way.
#
# New inputs are kept in build/fuzz/corpus; a crash is kept beside them and ends the run.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"

readonly SECONDS_EACH="${1:-60}"
clang="$(compgen -c clang++ | grep -E '^clang\+\+(-[0-9]+)?$' | sort -V | tail -1 || true)"
[[ -n "$clang" ]] || { printf 'fuzzing needs clang: apt-get install clang\n' >&2; exit 1; }

cmake -S . -B build/fuzz -G Ninja -DCMAKE_CXX_COMPILER="$clang" -DSF_BUILD_PYTHON=OFF \
  -DSF_BUILD_FUZZERS=ON -DSF_SANITIZE=address,undefined >build/fuzz-configure.log ||
  { cat build/fuzz-configure.log; exit 1; }
cmake --build build/fuzz

for target in build/fuzz/*_fuzz entries_fuzz; do
  name="$(basename "$target")"
  found="build/fuzz/corpus/$name"
  mkdir -p "$found"
  seeds=()
  for folder in "tests/fuzz/corpus/$name" "tests/fuzz/corpus/${name%_fuzz}"; do
    [[ ! -d "$folder" ]] || seeds+=("$folder")
  done
  printf '==> %s for %s s\n' "$name" "$SECONDS_EACH"
  command=("$target")
  [[ "$target" != entries_fuzz ]] ||
    command=(env PYTHONPATH="$PWD" python tests/fuzz/run_entries_fuzz.py -timeout=10)
  "${command[@]}" -max_total_time="$SECONDS_EACH" -artifact_prefix="$found-" -print_final_stats=1 \
    "$found" "${seeds[@]}"
done

printf '==> store_fuzz for %s s\n' "$SECONDS_EACH"
.venv/bin/python tests/fuzz/store_fuzz.py "$SECONDS_EACH"
