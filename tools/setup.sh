#!/usr/bin/env bash
# Brings this checkout to where a goal can run: tools/setup.sh demo|test|bench|fuzz
#
#   1. a Python (3.11 or later), preferably one that can import torch already
#   2. system packages: compiler, OpenSSL headers and the like, installed where that is allowed
#   3. .venv, with torch and the Python packages of the goal
#   4. the native core, built and installed in place (editable)
#
# What is done already is found by stamps and skipped, so running it again takes a moment.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly GOAL="${1:?usage: tools/setup.sh demo|test|bench|fuzz}"
readonly VENV=.venv
readonly TORCH="${SF_TORCH:-torch==2.13.0}" # what is installed where there is no torch
readonly LOG=build/setup.log
mkdir -p build

say() { printf '==> %s\n' "$*"; }
fail() {
  printf '\nsetup: %s\n' "$*" >&2
  exit 1
}

# step <what> <command...>: says what happens and how long it took.
step() {
  local what="$1" started=$SECONDS
  shift
  say "$what"
  "$@"
  printf '    done in %d s\n' $((SECONDS - started))
}

# --- 1. Python ------------------------------------------------------------------------------------

is_usable_python() {
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null
}

# Without importing it, which takes seconds.
has_torch() {
  "$1" - 2>/dev/null <<'PYTHON'
import importlib.metadata as metadata, sys
major, minor = metadata.version("torch").split(".")[:2]
sys.exit(not (major == "2" and 11 <= int(minor) <= 14))
PYTHON
}

find_python() {
  local candidate first=
  for candidate in ${SF_PYTHON:-} python3 python3.{14,13,12,11} /usr/bin/python3; do
    is_usable_python "$candidate" || continue
    first="${first:-$candidate}"
    if has_torch "$candidate"; then
      printf '%s' "$candidate"
      return
    fi
  done
  printf '%s' "$first"
}

# --- 2. System packages ---------------------------------------------------------------------------

compiles() { printf '%b\n' "$1" | ${CXX:-c++} -std=c++20 -fsyntax-only -x c++ - 2>/dev/null; }

# Prints the Debian packages that are missing for this goal.
missing_packages() {
  local python="$1"
  command -v "${CXX:-c++}" >/dev/null || printf 'g++ '
  [[ -e /usr/include/openssl/evp.h ]] ||
    compiles '#include <openssl/opensslv.h>\n#if OPENSSL_VERSION_MAJOR < 3\n#error\n#endif' ||
    printf 'libssl-dev '
  if [[ "$GOAL" == test || "$GOAL" == bench ]]; then
    [[ -e /usr/include/gtest/gtest.h ]] || compiles '#include <gtest/gtest.h>' ||
      printf 'libgtest-dev '
  fi
  if [[ "$GOAL" == test || "$GOAL" == bench ]]; then
    [[ -e /usr/include/benchmark/benchmark.h ]] ||
      compiles '#include <benchmark/benchmark.h>' || printf 'libbenchmark-dev '
  fi
  # Networks to test on, which only root can make; without these the tests are skipped.
  if [[ "$GOAL" == test || "$GOAL" == bench ]] && [[ "$(id -u)" == 0 ]] &&
    command -v apt-get >/dev/null; then
    { command -v ip && command -v tc; } >/dev/null || printf 'iproute2 '
    command -v nft >/dev/null || printf 'nftables '
    # What bench/wireguard.py compares with; its tunnel needs a TUN device.
    if [[ -c /dev/net/tun ]]; then
      command -v wireguard-go >/dev/null || printf 'wireguard-go '
      command -v wg >/dev/null || printf 'wireguard-tools '
    fi
  fi
  if [[ "$GOAL" == fuzz ]]; then
    ls /usr/bin/clang++* >/dev/null 2>&1 || printf 'clang '
    ls -d /usr/lib/clang/*/lib/linux /usr/lib/llvm-*/lib/clang/*/lib/linux >/dev/null 2>&1 ||
      printf 'libclang-rt-dev '
  fi
  if [[ -z "$python" ]]; then
    printf 'python3 python3-dev python3-venv '
  elif [[ "$("$python" -c 'import sys; print(sys.base_prefix)')" == /usr ]]; then
    [[ -e "$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ]] ||
      printf 'python3-dev '
    "$python" -c 'import ensurepip, venv' 2>/dev/null || printf 'python3-venv '
  fi
}

install_packages() {
  export DEBIAN_FRONTEND=noninteractive
  "$@" apt-get update -qq
  # shellcheck disable=SC2086  # a list of packages
  "$@" apt-get install -y -qq --no-install-recommends $packages
}

ensure_packages() {
  packages="$(missing_packages "$1")"
  [[ -n "$packages" ]] || return 0
  if ! command -v apt-get >/dev/null; then
    fail "this host lacks what Debian and Ubuntu call: $packages"
  elif [[ "$(id -u)" == 0 ]]; then
    step "Installing system packages: $packages" install_packages
  elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    step "Installing system packages: $packages" install_packages sudo
  else
    fail "system packages are missing. Run this once, then start again:
  sudo apt-get update && sudo apt-get install -y --no-install-recommends $packages"
  fi
}

# --- 3. Virtual environment -----------------------------------------------------------------------

# With torch in $1 the environment sees $1's packages, so that torch is not downloaded again.
make_environment() {
  local python="$1" options=()
  has_torch "$python" && options=(--system-site-packages)
  "$python" -m venv --clear "${options[@]}" "$VENV"
  # A virtual environment inside another one sees the system's packages, not the other one's.
  if has_torch "$python" && ! has_torch "$VENV/bin/python"; then
    "$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
      >"$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/outer.pth"
  fi
}

# Prints the requirements of the goal, from pyproject.toml, one a line; torch is seen to apart.
requirements() {
  "$VENV/bin/python" - "$GOAL" <<'PYTHON'
import sys, tomllib
project = tomllib.load(open("pyproject.toml", "rb"))
extras = {"demo": ["demo"], "test": ["demo", "test", "dev"], "bench": ["demo", "bench"]}
wanted = project["build-system"]["requires"] + project["project"]["dependencies"]
for extra in extras.get(sys.argv[1], [sys.argv[1]]):
    wanted += project["project"]["optional-dependencies"][extra]
print("\n".join(dict.fromkeys(w for w in wanted if not w.startswith("torch"))))
PYTHON
}

pip_install() { "$VENV/bin/python" -m pip install --disable-pip-version-check "$@"; }

ensure_environment() {
  local python="$1" stamp="$VENV/.requirements-$GOAL"
  if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
    step "Making $VENV with $("$python" --version)" make_environment "$python"
  fi
  if ! has_torch "$VENV/bin/python"; then
    step "Installing $TORCH (large)" pip_install "$TORCH"
  fi
  local wanted
  wanted="$(requirements)"
  if [[ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]]; then
    mapfile -t packages <<<"$wanted"
    step "Installing ${#packages[@]} Python packages" pip_install "${packages[@]}"
    printf '%s\n' "$wanted" >"$stamp"
  fi
}

# --- 4. Native core -------------------------------------------------------------------------------

torch_version() {
  "$VENV/bin/python" -c 'import importlib.metadata as m; print(m.version("torch"))'
}

is_built() {
  local stamp="$VENV/.built"
  [[ "$(cat "$stamp" 2>/dev/null)" == "$PWD torch $(torch_version)" ]] &&
    [[ -z "$(find native cmake CMakeLists.txt pyproject.toml securefabric/_version.py \
      -newer "$stamp" -print -quit 2>/dev/null)" ]]
}

install_native() {
  PATH="$PWD/$VENV/bin:$PATH" "$VENV/bin/python" -m pip install -v --disable-pip-version-check \
    --no-build-isolation --no-deps --editable . 2>&1
}

# The whole output goes to the log; the terminal shows the compiler's progress.
build() {
  local stamp="$VENV/.built" started="$VENV/.build-started"
  printf '%s torch %s\n' "$PWD" "$(torch_version)" >"$started"
  if ! install_native | tee "$LOG" | show_progress; then
    tail -40 "$LOG" >&2
    fail "the native core did not build; everything it said is in $LOG"
  fi
  mv "$started" "$stamp" # as old as the start: what changed during the build is built again
}

show_progress() {
  { grep --line-buffered -E '^ *\[[0-9]+/[0-9]+\]|error:|warning:|\*\*\*' || true; } | cut -c1-160
}

# --------------------------------------------------------------------------------------------------

python="$(find_python)"
ensure_packages "$python"
python="${python:-$(find_python)}"
[[ -n "$python" ]] ||
  fail "no Python 3.11 or later here; install one and name it: make $GOAL SF_PYTHON=python3.12"
ensure_environment "$python"
if ! is_built; then
  step "Building the native core (a few minutes the first time)" build
fi
