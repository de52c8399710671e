#!/usr/bin/env bash
# The checks beyond `make test`. All of them, or those named:
#
#   scripts/check.sh [format] [tidy] [python] [asan] [tsan] [clang] [cuda]
#   scripts/check.sh fix-format     formats in place instead
#
# A failing check does not keep the others from running; the exit status tells whether one failed.
# Run `scripts/setup.sh --dev` first, as `make check` does.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/lib.sh

bin=$PWD/.venv/bin
jobs=$(nproc)

# Files of the project that end in one of the given patterns, zero-terminated: tracked ones and new
# ones that are not ignored, less the deleted.
files() {
  local file
  git ls-files -z --cached --others --exclude-standard -- "$@" | sort -zu |
    while IFS= read -r -d '' file; do
      [[ ! -f $file ]] || printf '%s\0' "$file"
    done
}
cxx_files() { files '*.h' '*.cc' '*.cu' '*.cuh'; }
# xargs for a list that may be empty, in which case nothing is to be done.
each() { xargs -0 --no-run-if-empty "$@"; }

# The sanitizers' runtimes need memory where newer kernels may have put something else: keep the
# kernel from shuffling addresses, if it lets us.
fixed_addresses() {
  local arch
  arch=$(uname -m)
  if setarch "$arch" -R true 2>/dev/null; then
    setarch "$arch" -R "$@"
  else
    "$@"
  fi
}

run_ctest() {
  local preset=$1
  shift
  fixed_addresses "${CTEST:-ctest}" --test-dir "build/$preset" --parallel "$jobs" \
    --output-on-failure --no-tests=error "$@"
}

check_format() {
  cxx_files | each -n 50 "$bin/clang-format" --dry-run -Werror || {
    say "'make format' mends this."
    return 1
  }
}

# What is compiled here, less what nvcc compiles; headers are looked at through the files that include
# them (.clang-tidy).
check_tidy() {
  scripts/build.sh release || return
  sed -nE "s|^ *\"file\": \"($PWD/(src\|llama\|apps)/.*\\.cc)\".*|\1|p" \
    build/release/compile_commands.json | sort -u | tr '\n' '\0' |
    each -n 1 -P "$jobs" "$bin/clang-tidy" -p build/release --quiet --warnings-as-errors='*' \
      --extra-arg=-Wno-unknown-warning-option --extra-arg=-Wno-error 2>&1 |
    sed -E '/^[0-9]+ warnings? (generated|treated)/d'
}

check_python() {
  files '*.py' | each "$bin/ruff" check --quiet || return
  files '*.py' | each "$bin/ruff" format --quiet --diff || return
  # The training code is a record of how the adapter was made: formatted and linted, not typed.
  files '*.py' ':!tools/training' | each "$bin/mypy" --strict --ignore-missing-imports \
      --explicit-package-bases || return
  files 'tools/*_test.py' 'bench/*_test.py' | each "$bin/python" -m unittest
}

check_asan() {
  fixed_addresses scripts/build.sh asan -- core_tests llama_tests || return
  UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 run_ctest asan -L '^(core|llama)$'
}

# Races do not depend on the instruction set: the tests of the lower ones are left out.
check_tsan() {
  fixed_addresses scripts/build.sh tsan -- thread_tests || return
  TSAN_OPTIONS=halt_on_error=1 run_ctest tsan -L '^core$' -E '/(sse4|ssse3|sse2|scalar)$'
}

# The libraries, kernels of every instruction set included; check_tidy has clang read the program.
check_clang() {
  local compiler
  compiler=$(command -v clang++-14 || command -v clang++) || {
    say "no clang++ was found"
    return 1
  }
  scripts/build.sh clang -DCMAKE_CXX_COMPILER="$compiler" -- tactic tactic_llama
}

# That some kernels of each stage compile, for each kind of GPU.
check_cuda() {
  command -v nvcc >/dev/null || {
    say "no nvcc was found: not checked"
    return 0
  }
  "${CMAKE:-cmake}" -S src/cuda -B build/cuda_few -G Ninja -DTACTIC_CUDA_FEW=ON || return
  "${CMAKE:-cmake}" --build build/cuda_few
}

if [[ ${1-} == fix-format ]]; then
  cxx_files | each -n 50 "$bin/clang-format" -i
  files '*.py' | each "$bin/ruff" format --quiet
  exit
fi

(($#)) || set -- format tidy python asan tsan clang cuda
passed=0 failed=()
for name; do
  declare -F "check_$name" >/dev/null || die "no check is called '$name'"
  section "check: $name"
  if "check_$name"; then
    passed=$((passed + 1))
  else
    failed+=("$name")
    say "check FAILED: $name"
  fi
done
say
say "Checks: $passed passed, ${#failed[@]} failed${failed[*]:+ (${failed[*]})}"
((${#failed[@]} == 0))
